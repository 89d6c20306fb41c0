"""
Verbs that are killed, again and again, and end as if they had not been; verbs that are interrupted, and say so.

Each kill is at a step of the process itself (see ``killing``), so that neither load nor speed matters.
``benchmarks/kills.py`` kills at random steps.
"""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from pathlib import Path

import archives
import mlflow
import pytest
import torch
from archives import known_sample, octagon_ring, save
from fakes import TINY_TRAINING, place_store, tiny_model
from killing import case, kill_at, run_verbs
from scripts.files import finished_name
from scripts.networks.model_file import read_model_file
from slides import make_drawing, save_slide

RUN = "synthetic_pink_ama_seed0"
SMALL = {"batches_per_epoch": 1, "domain_images": 2, "alignment_report": True, "alignment_windows": 4, "keep": "last"}
OURS = f"*/killed/{RUN}/"
TRAINING = [  # a checkpoint; the history and the model of an epoch; report, reference, publishing, the end
    kill_at("os.rename", f"{OURS}checkpoint.pt", 2),
    kill_at("os.rename", f"{OURS}history.csv"),
    kill_at("os.rename", f"{OURS}model.pt"),
    kill_at("os.rename", f"{OURS}alignment.json"),
    kill_at("os.rename", f"{OURS}model.pt"),
    kill_at("os.rename", "*/served/model.pt"),
    kill_at("os.rename", f"{OURS}checkpoint.pt"),
]
SLIDE = [  # in the second tile, some tiles later; overview, summary; when the folder gets its name
    kill_at("os.fsync", nth=6),
    kill_at("os.fsync", nth=15),
    kill_at("os.rename", "*/overview.jpg"),
    kill_at("os.rename", "*/summary.json"),
    kill_at("os.rename", "*/killed_slide/a"),
]
IMAGES = [kill_at("os.rename", f"*/{end}") for end in ("inference.json", "1_instances.png", "summary.csv")]
PREPARING = [
    kill_at("os.rename", "*/monuseg/labels/*.png", 2),
    kill_at("os.rename", "*/records/*.json"),
    kill_at("os.rename", "*/monuseg/split.json"),
]


@dataclass(frozen=True)
class Ran:
    """What ran in ``folder``: exit codes by the name of the output folder, in order; logs are ``<name>.<n>.log``."""

    folder: Path
    codes: dict[str, list[int]]

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.{len(self.codes[name]) - 1}.log").read_text()


@pytest.fixture(scope="module")
def ran(synthetic, encoder, tmp_path_factory) -> Ran:
    """Everything runs here, for the libraries take longer to load than the verbs to run."""
    folder = tmp_path_factory.mktemp("kills")
    weights = tiny_model(folder / "model.pt")
    slide = save_slide(folder / "a.tif", make_drawing(1500, 1200, seed=3), 0.2, levels=(1, 4))
    for number in range(3):
        name = f"TCGA-A7-{1000 + number}-01Z-00-DX1"
        image, _, places = known_sample(number)
        save(folder / "images" / f"{number}.png", image)
        save(folder / "source" / "Tissue Images" / f"{name}.tif", image)
        archives.aperio(folder / "source" / "Annotations" / f"{name}.xml", [octagon_ring(*place) for place in places])
    (folder / "killed_images" / "sub").mkdir(parents=True)
    (folder / "killed_images" / "sub" / ".mine.0123456789ab.partial.png").write_text("precious")
    cases: list[tuple[str, dict]] = []
    knowing = {"network": "{'_target_':'slides.Darkness'}", "device": "cpu", "tile_size": 256}

    def add(name: str, verb: str, config: str, kill: dict | None, settings: dict) -> None:
        number = sum(other == name for other, _ in cases)
        cases.append((name, case(verb, config, folder / f"{name}.{number}.log", kill, settings)))

    def train(name: str, kill: dict | None = None, verb: str = "training", **more) -> None:
        place_store(folder / name)
        options = {"dataset_dir": synthetic, "backbone_weights": encoder[1], "max_epochs": 2, "warmup_iterations": 0}
        options |= {"output_dir": folder / name, "publish_path": folder / name / "served" / "model.pt"}
        add(name, verb, "train.json", kill, {**TINY_TRAINING, **SMALL, **options, **more})

    def segment(name: str, kill: dict | None = None) -> None:
        model = {"ckpt_path": "none", "model": "{'_target_':'scripts.networks.model_info.ModelInfo'}"}
        add(
            name,
            "segmenting_slide",
            "wsi.json",
            kill,
            {**knowing, **model, "slide": slide, "output_dir": folder / name},
        )

    def infer(name: str, kill: dict | None = None) -> None:
        options = {"dataset_dir": folder / "images", "output_dir": folder / name, "ckpt_path": weights}
        add(name, "inferring", "inference.json", kill, {**knowing, **options, "handlers::1::_disabled_": True})

    def prepare(name: str, kill: dict | None = None) -> None:
        options = {"dataset": "monuseg", "source": folder / "source", "output_dir": folder / name, "workers": 1}
        add(name, "preparing", "prepare.json", kill, options)

    train("whole")
    train("killed", kill_at("os.rename", "*/features/*.pt", 3), verb="caching")
    for number, kill in enumerate([*TRAINING, None]):
        train("killed", kill, resume=number > 0)
    features = {"cache_dir": folder / "whole" / "features"}
    train("int_caching", kill_at("os.rename", "*/features/*.pt", 3, signal.SIGINT))
    train("int", kill_at("os.rename", "*/history.csv", 2, signal.SIGINT), **features)
    train("term", kill_at("os.rename", "*/history.csv", 2, signal.SIGTERM), **features)
    for run, kind, kills in ((segment, "slide", SLIDE), (infer, "images", IMAGES), (prepare, "domains", PREPARING)):
        run(f"whole_{kind}")
        for kill in [*kills, None]:
            run(f"killed_{kind}", kill)
    infer("int_images", kill_at("os.rename", "*_mask.png", 1, signal.SIGINT))
    segment("term_slide", kill_at("os.fsync", nth=9, number=signal.SIGTERM))
    codes: dict[str, list[int]] = {}
    for (name, _), code in zip(cases, run_verbs([one for _, one in cases])):
        codes.setdefault(name, []).append(code)
    return Ran(folder, codes)


def left_over(folder: Path) -> list[Path]:
    """What no finished verb leaves: half-written files, locks."""
    return [path for path in folder.rglob(".*") if finished_name(path.name) or path.suffix == ".lock"]


def ended(ran: Ran, name: str, kills: int) -> tuple[Path, Path]:
    """The output folders of the verb that was killed so often and of the undisturbed one."""
    whole = name.replace("killed", "whole")
    assert ran.codes[whole] == [0], ran.log(whole)[-3000:]
    assert ran.codes[name] == [-signal.SIGKILL] * kills + [0], ran.log(name)[-3000:]
    return ran.folder / name, ran.folder / whole


def assert_same_files(one: Path, other: Path, names: list[str]) -> None:
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def runs(output: Path) -> tuple[mlflow.MlflowClient, list]:
    client = mlflow.MlflowClient(f"sqlite:///{output / 'mlruns.db'}")
    return client, client.search_runs([client.get_experiment_by_name("ama_sam").experiment_id])


def test_a_training_killed_in_every_phase_ends_as_the_undisturbed_one(ran):
    killed, whole = ended(ran, "killed", 1 + len(TRAINING))
    assert [path.name for path in killed.iterdir() if path.name.startswith(RUN)] == [RUN]
    for folder in (RUN, "served"):
        model, expected = (read_model_file(output / folder / "model.pt") for output in (killed, whole))
        assert model.keys() == expected.keys() and model["model"].keys() == expected["model"].keys()
        for key, value in expected["model"].items():
            assert torch.equal(model["model"][key], value), key
    assert_same_files(killed / RUN, whole / RUN, ["history.csv"])
    assert not left_over(killed / RUN)
    client, (run,) = runs(killed)
    assert run.info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")] == [1, 2]


def test_a_slide_killed_in_every_phase_gives_the_same_files(ran):
    killed, whole = ended(ran, "killed_slide", len(SLIDE))
    assert_same_files(killed / "a", whole / "a", ["nuclei.geojson", "nuclei.csv", "tiles.csv", "overview.jpg"])
    assert json.loads((killed / "a" / "summary.json").read_text())["tiles_of_earlier_runs"] > 0
    assert not left_over(killed) and not list(killed.glob(".a.*"))


def test_images_killed_in_every_phase_give_the_same_files(ran):
    killed, whole = ended(ran, "killed_images", len(IMAGES))
    ends = ("_mask.png", "_instances.png", ".geojson", "_nuclei.csv")
    assert_same_files(killed, whole, [f"{number}{end}" for number in range(3) for end in ends])
    assert [path.parent for path in left_over(killed)] == [killed / "sub"], "where nothing is ours nothing is removed"


def test_preparing_killed_in_every_phase_gives_the_same_domain(ran):
    killed, whole = ended(ran, "killed_domains", len(PREPARING))
    files = [str(path.relative_to(whole)) for path in (whole / "monuseg").rglob("[!.]*") if path.is_file()]
    assert len(files) == 9
    assert_same_files(killed, whole, files)
    assert not left_over(killed), "also not where preparing keeps what it has done"


@pytest.mark.parametrize(
    "name, what, how",
    [
        ("int", "Interrupted", "with --resume true goes on after the last epoch that was finished"),
        ("term", "Ended by SIGTERM", "with --resume true goes on after the last epoch that was finished"),
        ("int_caching", "Interrupted", "begins again"),
        ("int_images", "Interrupted", "begins again"),
        ("term_slide", "Ended by SIGTERM", "goes on where it ended"),
    ],
)
def test_an_interrupted_verb_ends_in_two_lines(ran, name, what, how):
    """What happened, and how to go on; the run in MLflow is closed; nothing half-written stays."""
    told = ran.log(name)
    assert ran.codes[name] != [0] and "Traceback" not in told and "ERROR" not in told, told[-3000:]
    assert f"\n{what}: what was finished is kept.\nThe same command {how}.\n" in told, told[-3000:]
    assert not left_over(ran.folder / name)
    if name in ("int", "term"):
        assert [run.info.status for run in runs(ran.folder / name)[1]] == ["KILLED"]
