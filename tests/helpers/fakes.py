from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events
from mlflow import MlflowClient
from monai.bundle import ConfigWorkflow
from scripts.experiments.verbs import BundleVerb, VerbFailed
from scripts.files import write_json, write_table
from scripts.networks.ama_sam import AMASAM
from scripts.networks.hr_decoder import HRDecoder
from scripts.networks.loading import save_model
from scripts.networks.sam_encoders import FrozenEncoder, build_encoder, load_backbone
from scripts.nuclei.targets import channel_count
from scripts.training.checkpoints import read_checkpoint
from torch import nn


class TinyEncoder(nn.Module):
    """A frozen encoder's interface on three random convolutions, so that tests of the rest need no SAM."""

    channels, strides, size_multiple, backbone_type = (4, 6, 8), (4, 8, 16), 16, "tiny"
    adapters = "none"

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, c, s, stride=s) for c, s in zip(self.channels, self.strides))
        self.requires_grad_(False)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        features: list[torch.Tensor] = []
        for layer in self.layers:
            features.append(layer(image / 255.0))
        return features

    def finish(self, begun: list[torch.Tensor]) -> list[torch.Tensor]:
        return begun


def randomised(module: nn.Module) -> nn.Module:
    """Random values also where initialisation gives zeros and ones (norms, attention biases, positions)."""
    state = {k: torch.rand_like(v) + 0.1 if v.is_floating_point() else v for k, v in module.state_dict().items()}
    weights = {k: torch.randn_like(v) * 0.1 for k, v in state.items() if v.is_floating_point() and v.ndim > 1}
    module.load_state_dict(state | weights)
    return module


def tiny_encoder(folder: Path) -> tuple[FrozenEncoder, Path]:
    """A random encoder of the tiny preset, and the checkpoint that training takes it from."""
    torch.manual_seed(1)
    encoder = build_encoder("vit_test")
    load_backbone(encoder, {f"backbone.{k}": v for k, v in encoder.backbone.state_dict().items()})
    path = folder / "encoder.pth"
    torch.save({f"image_encoder.{k}": v for k, v in encoder.backbone.state_dict().items()}, path)
    return encoder, path


@functools.cache
def _empty_store() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        MlflowClient(f"sqlite:///{folder}/mlruns.db").search_experiments()
        return Path(folder, "mlruns.db").read_bytes()


def place_store(output_dir: Path) -> None:
    """An empty MLflow store where a verb would make one itself, which takes it a second or two each time."""
    output_dir.mkdir(parents=True, exist_ok=True)
    if not (output_dir / "mlruns.db").exists():
        (output_dir / "mlruns.db").write_bytes(_empty_store())


# the real train.json at its smallest, for the tiny preset
TINY_TRAINING = {
    "mode": "ama",
    "backbone": "vit_test",
    "decoder_size": "light",
    "crop_size": 64,
    "window_size": 128,
    "cache_windows": 2,
    "batch_size": 4,
    "batches_per_epoch": 2,
    "val_interval": 1,
    "tile_size": 256,
    "alignment_report": False,  # see test_alignment
    "log_model": False,  # see test_logged_model
}


def tiny_model(path: Path, size: str = "light", seed: int = 1, targets: str = "distance") -> Path:
    """A model file of the tiny preset with a random decoder."""
    encoder, weights = tiny_encoder(path.parent)
    weights.unlink()
    torch.manual_seed(seed)
    decoder = HRDecoder(
        in_channels=encoder.channels, strides=encoder.strides, size=size, out_channels=channel_count(targets)
    )
    save_model(path, AMASAM(encoder, decoder, targets), {"seed": seed}, {"version": "0", "mpp": 0.25, "domains": []})
    return path


def tiny_bundle(bundle_root: Path, folder: Path, **changes: dict) -> Path:
    """
    A copy of the bundle with the tiny preset as its defaults and a random ``models/model.pt``.

    Args:
        bundle_root: the bundle.
        folder: of the copy.
        changes: by config (``inference={"network": ...}``), keys of the top level to set besides.
    """
    shutil.copytree(bundle_root / "configs", folder / "configs")
    shutil.copytree(bundle_root / "scripts", folder / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "models").mkdir()
    tiny_model(folder / "models" / "model.pt", targets="hv")  # as the configs' network_def
    unsure = {"min_peak": 0}  # as a random network is
    small = {"backbone": "vit_test", "decoder_size": "light", "tile_size": 256, **unsure}
    settings = {"train": TINY_TRAINING, "inference": small}
    settings |= {"wsi": {"tile_size": 512, **unsure}, "evaluate": {"tile_size": 256, **unsure}}
    for name, values in settings.items():
        path = folder / "configs" / f"{name}.json"
        content = json.loads(path.read_text())
        content.update({**values, **changes.get(name, {})})
        path.write_text(json.dumps(content, indent=4))
    return folder


def own_app(bundle_root: Path, folder: Path) -> Path:
    """
    Our app in ``folder/apps/ama_sam`` beside ``folder/bundle``, a tiny one.

    Its network finds what is dark (``slides.Darkness``): what is to be found is known exactly.
    """
    app = folder / "apps" / "ama_sam"
    shutil.copytree(bundle_root.parent / "apps" / "ama_sam", app, ignore=shutil.ignore_patterns("model", "logs"))
    knowing = {"network": {"_target_": "slides.Darkness"}}
    tiny_bundle(bundle_root, folder / "bundle", inference=knowing, wsi=knowing)
    return app


def open_verb(bundle_root: Path, config: str, kind: str | None, **overrides) -> ConfigWorkflow:
    """The workflow of a real config with overrides, initialised and ready to run."""
    workflow = ConfigWorkflow(
        config_file=str(bundle_root / "configs" / f"{config}.json"),
        workflow_type=kind,
        bundle_root=str(bundle_root),
        logging_file=False,
        **overrides,
    )
    workflow.initialize()
    return workflow


def domains_named(primary: str, *auxiliary: str) -> list[dict]:
    """A domain list whose folders nobody looks at."""
    roles = {primary: "primary"} | dict.fromkeys(auxiliary, "auxiliary")
    return [{"name": name, "role": role, "root": f"/data/{name}"} for name, role in roles.items()]


class FakeVerb(BundleVerb):
    """
    A training or evaluation that only files what the real ones file: a metric of each epoch and a checkpoint after it,
    a model, ``metrics.csv``.

    Args:
        verb: ``training`` or ``evaluating``.
        settings: as of ``BundleVerb``.
        epochs: of the training.
        fails: names of runs that fail at once.
        stops_after: run name -> number of epochs after which ``error`` is raised.
        refuses_checkpoint: resuming fails.
        meets: barrier at which every run waits for others.
        images: of the evaluation, by domain; of those it is asked for.
        score: settings and image -> Dice.
        fates: settings -> the evaluated domain's part of ``fates.json``.
    """

    def __init__(
        self,
        verb: str,
        settings: dict | None = None,
        epochs: int = 2,
        fails: frozenset | set = frozenset(),
        stops_after: dict | None = None,
        error: type[BaseException] = VerbFailed,
        refuses_checkpoint: bool = False,
        meets: threading.Barrier | None = None,
        images: dict | None = None,
        score=lambda settings, image: 0.5,
        fates=None,
    ) -> None:
        super().__init__(verb, f"{verb}.json", settings or {"max_epochs": 1})
        self.epochs, self.fails, self.stops_after, self.error = epochs, fails, stops_after or {}, error
        self.refuses_checkpoint, self.images, self.score = refuses_checkpoint, images or {"tnbc": ["a", "b"]}, score
        self.meets, self.fates = meets, fates
        self.calls: list[dict] = []
        self.epochs_done = 0

    def run(
        self,
        folder: Path,
        settings: dict,
        config: str | None = None,
        threads: int | None = None,
        progress=lambda line: None,
    ) -> None:
        self.calls.append(settings)
        progress(f"{self.verb}: 50% 3/6")
        if self.meets is not None:
            self.meets.wait()
        folder.mkdir(parents=True, exist_ok=True)
        client, run_id, name = MlflowClient(settings["tracking_uri"]), settings["mlflow_run_id"], settings["run_name"]
        if name in self.fails or settings.get("resume") and self.refuses_checkpoint:
            raise VerbFailed(f"{self.verb}: it broke")
        if self.verb == "training":
            checkpoint = folder / "checkpoint.pt"
            first = read_checkpoint(checkpoint)["epoch"] if settings["resume"] else 0
            for epoch in range(first, self.epochs):
                if self.stops_after.get(name) == epoch:
                    raise self.error
                client.log_metric(run_id, "val/dice", 0.5, step=epoch + 1)
                torch.save(
                    {"epoch": epoch + 1, "iteration": 0, "identity": {}, "parts": {"early_stop": {"stale": 0}}},
                    checkpoint,
                )
                self.epochs_done += 1
            (folder / "model.pt").write_text("trained")
            return
        if name in self.stops_after:
            raise self.error
        rows = [
            {"file": f"/data/{domain}/{image}.png", "domain": domain, "mpp": 0.25, "dice": self.score(settings, image)}
            for domain, images in self.images.items()
            if domain in (settings["primary"], *settings["auxiliary"])
            for image in images
        ]
        worse = [{"aji": row["dice"] / 2, "pq": row["dice"] / 2, "hd95_px": 10 * (1 - row["dice"])} for row in rows]
        write_table(folder / "metrics.csv", [{**row, **other} for row, other in zip(rows, worse)])
        client.log_metric(run_id, f"{settings['primary']}/dice", sum(row["dice"] for row in rows) / len(rows))
        client.log_artifact(run_id, str(folder / "metrics.csv"))
        if self.fates is not None:
            write_json(folder / "fates.json", {settings["primary"]: self.fates(settings)})
            client.log_artifact(run_id, str(folder / "fates.json"))


class KillsStarter:
    """A handler: at the first step of epoch 2 the process that started this one is killed, once of all runs."""

    def __init__(self, told: str, epoch_length: int) -> None:
        self.told, self.step = Path(told), epoch_length + 1

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED(once=self.step), self._kill)

    def _kill(self, engine: Engine) -> None:
        if not self.told.exists():
            write_json(self.told, {"killed": os.getppid(), "verb": os.getpid()})
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(600)  # one that goes on without it would be in the next one's way


def interrupt(workflow, event) -> None:
    """Run a training that Ctrl-C ends at an event of Ignite's."""

    def stop(engine):
        raise KeyboardInterrupt

    workflow.parser.get_parsed_content("train::trainer").add_event_handler(event, stop)
    with pytest.raises(KeyboardInterrupt):
        workflow.run()
