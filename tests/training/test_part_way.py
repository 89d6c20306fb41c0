"""Weights part of the way back to where training began: what is judged is kept, and training goes on from its own."""

from __future__ import annotations

import shutil

import pytest
import torch
from fakes import tiny_model
from hypothesis import given
from hypothesis import strategies as st
from ignite.engine import Engine
from scripts.errors import DataError, root_cause
from scripts.networks.model_file import read_model_file
from scripts.training.part_way import PartWay


def linear(value: float) -> torch.nn.Linear:
    layer = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(layer.weight, value)
    layer.bias.requires_grad_(False)
    return layer


@given(share=st.floats(0, 0.99), first=st.floats(-10, 10), learned=st.floats(-10, 10))
def test_the_engine_sees_the_mean_and_leaves_what_was_learned(share, first, learned):
    layer = linear(first)
    bias = layer.bias.clone()
    engine = Engine(lambda engine, _: layer.weight.item())
    PartWay(layer, share, "model.pt").attach(engine)
    torch.nn.init.constant_(layer.weight, learned)
    layer.bias += 1  # what is not trained is no part of it
    for _ in range(2):
        state = engine.run([0])
        assert state.output == pytest.approx(share * first + (1 - share) * learned, abs=1e-5)
        assert layer.weight.item() == torch.tensor(learned).item() and torch.equal(layer.bias, bias + 1)


@pytest.mark.parametrize("share", [-0.1, 1, 1.5])
def test_a_share_that_is_none(share):
    with pytest.raises(ValueError, match="init_share must be at least 0 and below 1"):
        PartWay(linear(0), share, "model.pt")


def test_a_training_keeps_the_mean_and_goes_on_from_what_it_learned(open_training, tmp_path):
    served = tiny_model(tmp_path / "served.pt")
    run = {"init_model": str(served), "init_share": 0.5, "max_epochs": 2, "batches_per_epoch": 2, "mode": "single"}
    open_training(tmp_path, **run, keep="last", val_interval=1).run()
    run_dir = tmp_path / "synthetic_pink_single_seed0"
    first, kept = (read_model_file(path)["model"] for path in (served, run_dir / "model.pt"))
    learned = torch.load(run_dir / "checkpoint.pt", weights_only=True)["parts"]["decoder"]
    moved = 0
    for name, value in learned.items():
        if value.is_floating_point():
            name = f"decoder.{name}"
            assert torch.equal(kept[name], value.lerp(first[name], 0.5)), name
            moved += not torch.equal(kept[name], value)
    assert moved, "nothing was learned"


def test_a_resumed_training_remembers_where_it_began(open_training, tmp_path):
    run = {"init_share": 0.5, "batches_per_epoch": 2, "mode": "single", "keep": "last", "val_interval": 1}
    kept = {}
    for name in ("whole", "resumed"):
        folder = tmp_path / name
        folder.mkdir()
        served = tiny_model(folder / "served.pt")
        run_dir = folder / "synthetic_pink_single_seed0"
        options = {**run, "init_model": str(served), "lr_scheduler#t_total": 100}
        if name == "resumed":
            open_training(folder, **options, max_epochs=1).run()
            shutil.copy(run_dir / "model.pt", served)  # as publishing does
        open_training(folder, **options, max_epochs=2, resume=name == "resumed").run()
        kept[name] = read_model_file(run_dir / "model.pt")["model"]
    for name, value in kept["whole"].items():
        assert torch.allclose(kept["resumed"][name], value, atol=1e-6), name


def test_a_share_of_no_model_is_told(open_training, tmp_path):
    with pytest.raises(Exception) as told:
        open_training(tmp_path, init_share=0.5, max_epochs=1).run()
    assert isinstance(root_cause(told.value), DataError)
    assert str(root_cause(told.value)).startswith("init_share: there are no weights to share with")
