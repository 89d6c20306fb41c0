"""Two processes over gloo, started by torchrun as the docs have it, against one."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys

import mlflow
import pytest
import torch
from fakes import open_verb, tiny_encoder
from scripts.data.synthetic import make_synthetic
from scripts.networks.model_file import read_model_file

SETTINGS = {
    "mode": "ama",
    "backbone": "vit_test",
    "decoder_size": "light",
    "crop_size": 64,
    "window_size": 128,
    "cache_windows": 2,
    "batch_size": 6,
    "batches_per_epoch": 3,
    "max_epochs": 2,
    "val_interval": 1,
    "tile_size": 256,
    "alignment_windows": 4,
}
# sums run over samples and threads in another order, nothing else differs: 7e-5 was seen. AdamW turns the smallest
# gradient into a step of the learning rate's size, which is therefore the tolerance of single weights (6e-4 was seen)
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    tiny_encoder(folder)
    make_synthetic(folder / "synthetic", {"training": 4, "validation": 3, "testing": 3})
    return folder


def _run(bundle_root, folder, processes, verb, config, output, **settings):
    """Run a verb in this process, or by torchrun in several; returns what these printed."""
    settings = {"dataset_dir": str(folder / "synthetic"), "output_dir": str(output), **settings}
    if processes == 1:
        open_verb(bundle_root, config, "train" if config == "train" else None, **settings).run()
        return ""
    configs = [f"configs/{config}.json", f"configs/multi_gpu_{config}.json"]
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m", "monai.bundle"]
    options = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "run", verb, "--config_file", str(configs), *options],
        cwd=bundle_root,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(bundle_root, folder):
    """Folder of the run, by number of processes."""
    runs = {}
    for processes in (1, 2):
        output = folder / f"train_{processes}"
        settings = {**SETTINGS, "backbone_weights": str(folder / "encoder.pth")}
        _run(bundle_root, folder, processes, "training", "train", output, **settings)
        runs[processes] = output / "synthetic_pink_ama_seed0"
    return runs


def _table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_two_processes_train_as_one_does(trained):
    """The same seed and batch: losses, gradients, validation and weights, on random crops and with the adversary."""
    one, two = (_table(trained[n] / "history.csv") for n in (1, 2))
    assert [row.keys() for row in one] == [row.keys() for row in two]
    for row, other in zip(one, two, strict=True):
        numbers, others = ({key: float(value) for key, value in each.items()} for each in (row, other))
        # a cosine near 0 is a difference of large numbers
        assert others.pop("gradient_cosine") == pytest.approx(numbers.pop("gradient_cosine"), abs=TOLERANCE)
        assert others == pytest.approx(numbers, rel=TOLERANCE)
    assert float(one[-1]["lambda"]) > 0 and float(one[-1]["gradient_adversarial"]) > 0
    one, two = (read_model_file(trained[n] / "model.pt")["model"] for n in (1, 2))
    assert all(torch.allclose(two[k].float(), v.float(), rtol=0, atol=TOLERANCE) for k, v in one.items())


def test_the_first_process_writes_for_all(trained):
    """One run in MLflow, one folder, each file once; the alignment report too."""
    for n in (1, 2):
        run_dir = trained[n]
        client = mlflow.MlflowClient(f"sqlite:///{run_dir.parent / 'mlruns.db'}")
        (run,) = client.search_runs([client.get_experiment_by_name("ama_sam").experiment_id])
        assert run.info.status == "FINISHED"
        assert len(client.get_metric_history(run.info.run_id, "train/loss")) == SETTINGS["max_epochs"]
        assert [p.name for p in run_dir.parent.iterdir() if p.is_dir() and p.name.startswith("synth")] == [run_dir.name]
    files = [{path.name for path in trained[n].iterdir()} for n in (1, 2)]
    assert files[0] == files[1] >= {"model.pt", "checkpoint.pt", "history.csv", "train.json", "alignment.json"}
    stored = [len(list((trained[n].parent / "features").glob("[!.]*"))) for n in (1, 2)]
    assert stored[0] == stored[1] == 24, "three domains of 4 images, two windows each"


def test_two_processes_evaluate_as_one_does(bundle_root, folder, trained):
    metrics, overlays, calibration = [], [], []
    for processes in (1, 2):
        output = folder / f"evaluated_{processes}"
        settings = {"tile_size": SETTINGS["tile_size"]}
        settings["ckpt_path"] = str(trained[1] / "model.pt")
        printed = _run(bundle_root, folder, processes, "evaluating", "evaluate", output, **settings)
        assert printed.count("\nsynthetic_dark") == processes - 1, "the table is printed once"
        metrics.append(json.loads((output / "metrics.json").read_text()))
        assert len(_table(output / "metrics.csv")) == 9
        assert "overall" not in metrics[-1], "the auxiliary domains were not asked for"
        calibration.append(json.loads((output / "calibration.json").read_text()))
        overlays.append({path.name for path in (output / "overlays").iterdir()})
        client = mlflow.MlflowClient(f"sqlite:///{output / 'mlruns.db'}")
        (run,) = client.search_runs([client.get_experiment_by_name("ama_sam_evaluation").experiment_id])
        assert run.data.metrics["synthetic_pink/dice"] == metrics[-1]["domains"]["synthetic_pink"]["dice"]["mean"]
    assert overlays[0] == overlays[1]
    for one, two in ([report["domains"] for report in metrics], calibration):
        assert one.keys() == two.keys()
        for domain in one:
            assert one[domain].keys() == two[domain].keys()
            for name, value in one[domain].items():
                assert two[domain][name] == pytest.approx(value, rel=TOLERANCE), (domain, name)
