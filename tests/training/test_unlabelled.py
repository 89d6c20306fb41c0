"""Training with domains whose labels nobody may read: where each lies a folder, which no reader can open."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Events
from PIL import Image
from scripts.errors import DataError, root_cause
from scripts.networks.model_file import read_model_file
from scripts.networks.model_info import model_info


def _hide_labels(data: Path, *domains: str) -> None:
    for domain in domains:
        for label in (data / domain / "labels").iterdir():
            label.unlink()
            label.mkdir()


@pytest.fixture()
def data(synthetic, tmp_path) -> Path:
    return Path(shutil.copytree(synthetic, tmp_path / "data"))


def _columns(run_dir: Path) -> dict[str, str]:
    with (run_dir / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))[-1]


@pytest.mark.parametrize("cache", ["on", "off"])
def test_an_unlabelled_auxiliary_is_aligned_and_its_labels_are_never_opened(open_training, data, tmp_path, cache):
    _hide_labels(data, "synthetic_dark")
    workflow = open_training(
        tmp_path, dataset_dir=str(data), unlabelled="synthetic_dark", max_epochs=2, alignment_report=True, cache=cache,
        cache_dir=str(tmp_path / "features"), cache_windows=1,
    )  # fmt: skip
    trainer, seen = workflow.parser.get_parsed_content("train::trainer"), []

    @trainer.on(Events.ITERATION_COMPLETED)
    def _(engine):
        seen.extend(engine.state.output["domain"].tolist())

    workflow.run()
    run_dir = tmp_path / "synthetic_pink_ama_seed0"
    last = _columns(run_dir)
    dark = workflow.parser.get_parsed_content("domain_names").index("synthetic_dark")
    assert dark in seen and float(last["domain_loss"]) > 0
    assert "train_dice_synthetic_dark" not in last and float(last["train_dice_synthetic_blurred"]) >= 0
    assert float(last["val_dice"]) >= 0
    assert (run_dir / "alignment.json").is_file(), "of the domains with labels"
    areas = model_info(run_dir / "model.pt").nucleus_area_px
    assert set(areas) == {"synthetic_pink", "synthetic_blurred"}


def test_an_unlabelled_primary_is_aligned_to_and_the_last_weights_are_kept(open_training, data, tmp_path, caplog):
    _hide_labels(data, "synthetic_pink")
    with caplog.at_level(logging.INFO):
        open_training(
            tmp_path, dataset_dir=str(data), unlabelled="synthetic_pink", max_epochs=2, adapters="late",
            cache_dir=str(tmp_path / "features"), cache_windows=1,
        ).run()  # fmt: skip
    assert "the primary 'synthetic_pink' has no labels: its Dice cannot be known" in caplog.text
    run_dir = tmp_path / "synthetic_pink_ama_seed0"
    last = _columns(run_dir)
    assert not {name for name in last if name.startswith("val_")} and "train_dice_synthetic_pink" not in last
    kept = read_model_file(run_dir / "model.pt")
    assert kept["provenance"]["epoch"] == 2 and "val_dice" not in kept["provenance"]
    assert [domain["role"] for domain in kept["domains"]] == ["primary", "auxiliary", "auxiliary"]


def test_the_segmentation_learns_nothing_of_an_unlabelled_domain(open_training, data, tmp_path):
    """With mode joint, which reverses nothing, other unlabelled images give the same network."""
    weights = []
    for n in range(2):
        workflow = open_training(
            tmp_path / str(n), dataset_dir=str(data), unlabelled="synthetic_dark", max_epochs=1, mode="joint",
            auxiliary="synthetic_dark", cache="off", domain_images=0, overlay_images=0,
        )  # fmt: skip
        # the discriminator's gradient would count in the norm
        workflow.parser.get_parsed_content("train::iteration").clip_norm = 0
        workflow.run()
        weights.append(workflow.parser.get_parsed_content("network").decoder.state_dict())
        for image in (data / "synthetic_dark" / "images").iterdir():
            Image.fromarray(255 - np.asarray(Image.open(image))).save(image)
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"held_out": 0.25}, "held_out: the primary 'synthetic_pink' has no labels to validate by"),
        ({"mode": "single"}, "no labels to learn from in synthetic_pink"),
        ({"start_counts": True}, "no validation image can judge the start"),
    ],
)
def test_what_needs_the_primarys_labels_is_refused(open_training, data, tmp_path, settings, told):
    with pytest.raises(Exception) as error:  # noqa: B017 which class MONAI wraps it in does not matter
        open_training(
            tmp_path, dataset_dir=str(data), unlabelled="synthetic_pink", max_epochs=1, cache="off", **settings
        ).run()
    assert isinstance(root_cause(error.value), DataError) and told in str(root_cause(error.value))


def test_a_domain_list_says_it_in_place_of_the_key(open_training, data, tmp_path):
    _hide_labels(data, "synthetic_dark")
    domains = [
        {"name": "synthetic_pink", "role": "primary", "root": str(data / "synthetic_pink")},
        {"name": "synthetic_dark", "role": "auxiliary", "root": str(data / "synthetic_dark"), "labels": False},
    ]
    open_training(tmp_path, domains=domains, max_epochs=1, cache="off", domain_images=0, overlay_images=0).run()
    settings = json.loads((tmp_path / "synthetic_pink_ama_seed0" / "train.json").read_text())
    assert settings["domains"][1]["labels"] is False
