"""Whole trainings with other ways to align domains."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from fakes import interrupt
from ignite.engine import Events
from scripts.errors import DataError, root_cause
from scripts.training.checkpoints import read_checkpoint

NAME = "synthetic_pink_ama_seed0"
SHORT = {"max_epochs": 2, "domain_images": 0, "overlay_images": 0}


def _rows(output: Path) -> list[dict[str, str]]:
    with (output / NAME / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "settings",
    [
        {"alignment_loss": "mmd", "aligned_stride": 4}, {"alignment_loss": "coral", "aligned_by": "class"},
        {"aligned_by": "class", "spectral_norm": True},
        {"aligned_at": "encoder", "adapters": "late", "alignment_report": True},
    ],
    ids=str,
)  # fmt: skip
def test_domains_are_aligned_in_another_way(open_training, tmp_path, settings):
    open_training(tmp_path, **SHORT, **settings).run()
    last = _rows(tmp_path)[-1]
    assert float(last["domain_loss"]) > 0 and float(last["gradient_adversarial"]) > 0
    assert ("domain_accuracy" in last) == ("alignment_loss" not in settings), "only a discriminator judges"
    kept = json.loads((tmp_path / NAME / "train.json").read_text())
    assert all(kept[key] == value for key, value in settings.items())


def test_the_discriminator_learns_alone_while_it_warms_up(open_training, tmp_path):
    open_training(tmp_path, **SHORT, lambda_warmup=0.5).run()
    first, second = (float(row["lambda"]) for row in _rows(tmp_path))
    assert first == 0 < second


def test_spectral_norm_goes_on_as_if_a_run_had_not_stopped(open_training, tmp_path):
    states = []
    for name in ("whole", "stopped"):
        workflow = open_training(tmp_path / name, **SHORT, spectral_norm=True)
        if name == "stopped":
            interrupt(workflow, Events.EPOCH_STARTED(once=2))
            workflow = open_training(tmp_path / name, **SHORT, spectral_norm=True, resume=True)
        workflow.run()
        states.append(read_checkpoint(tmp_path / name / NAME / "checkpoint.pt")["parts"]["adversary"])
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("mode", ["ama", "joint"])
def test_one_domain_is_trained_on_alone(open_training, tmp_path, mode):
    with pytest.raises(Exception) as error:  # noqa: B017 which class MONAI wraps it in does not matter
        open_training(tmp_path, auxiliary="none", mode=mode, cache_dir=str(tmp_path / "features")).run()
    told = f"mode: '{mode}' learns from auxiliary domains too, and there is the primary alone. Train with --mode single"
    assert isinstance(root_cause(error.value), DataError) and str(root_cause(error.value)).startswith(told)
    assert not (tmp_path / "features").exists(), "told before images are encoded"


def test_the_frozen_encoder_is_not_aligned(open_training, tmp_path):
    with pytest.raises(Exception) as error:  # noqa: B017 which class MONAI wraps it in does not matter
        open_training(tmp_path, **SHORT, aligned_at="encoder", cache_dir=str(tmp_path / "features")).run()
    assert isinstance(root_cause(error.value), DataError)
    assert str(root_cause(error.value)).startswith("aligned_at: nothing in the frozen encoder can be moved")
    assert not (tmp_path / "features").exists(), "told before images are encoded"
