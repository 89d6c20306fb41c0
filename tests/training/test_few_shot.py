"""The recipe for two tiles of one's own: better than what it began with on a held-out quarter, or unchanged."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from fakes import tiny_model
from scripts.errors import DataError, root_cause
from scripts.networks.model_file import read_model_file


@pytest.fixture()
def recipe(bundle_root):
    return json.loads((bundle_root / "configs" / "few_shot.json").read_text())


def test_the_recipe_sets_keys_that_training_has(bundle_root, recipe):
    assert recipe.keys() <= json.loads((bundle_root / "configs" / "train.json").read_text()).keys()


def test_what_is_not_better_leaves_the_weights_as_they_were(open_training, recipe, tmp_path, caplog):
    served = tiny_model(tmp_path / "served.pt")
    own = {"init_model": str(served), "learning_rate": 0.0, "max_epochs": 2, "batches_per_epoch": 3}
    with caplog.at_level(logging.INFO):
        open_training(tmp_path, **{**recipe, **own, "domain_images": 0}).run()
    kept = read_model_file(tmp_path / "synthetic_pink_joint_seed0" / "model.pt")
    assert kept["provenance"]["epoch"] == 0, "before training"
    for name, value in read_model_file(served)["model"].items():
        assert torch.equal(value, kept["model"][name]), name
    score = kept["provenance"]["val_dice"]
    assert f"best val_dice {score:.4f}, epoch 0; {score:.4f} before training" in caplog.text


def test_what_is_better_is_kept_and_says_by_how_much(open_training, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        open_training(tmp_path, held_out=0.25, start_counts=True, max_epochs=3, mode="single", val_interval=1).run()
    kept = read_model_file(tmp_path / "synthetic_pink_single_seed0" / "model.pt")["provenance"]
    assert kept["epoch"] > 0
    assert f"best val_dice {kept['val_dice']:.4f}, epoch {kept['epoch']}; 0." in caplog.text


def test_a_start_that_nothing_can_judge_is_told(open_training, tmp_path):
    with pytest.raises(Exception) as told:
        open_training(tmp_path, start_counts=True, max_epochs=1, **{"validate#dataset#data": []}).run()
    assert isinstance(root_cause(told.value), DataError) and "no validation image" in str(root_cause(told.value))
