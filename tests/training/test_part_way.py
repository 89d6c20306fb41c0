"""Weights part of the way back to where training began: what is judged is kept, and training goes on from its own."""

from __future__ import annotations

import shutil

import pytest
import torch
from fakes import interrupt, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from ignite.engine import Engine, Events
from scripts.errors import DataError, root_cause
from scripts.networks.loading import kept_weights
from scripts.networks.model_file import read_model_file
from scripts.training.checkpoints import read_checkpoint
from scripts.training.part_way import PartWay

RUN = "synthetic_pink_single_seed0"
STEPS = {"init_share": 0.5, "max_epochs": 2, "batches_per_epoch": 2, "mode": "single", "learning_rate": 0.05}


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


def test_a_share_of_no_model_is_told(open_training, tmp_path):
    with pytest.raises(Exception) as told:
        open_training(tmp_path, init_share=0.5, max_epochs=1).run()
    assert isinstance(root_cause(told.value), DataError)
    assert str(root_cause(told.value)).startswith("init_share: there are no weights to share with")


def test_a_resumed_run_knows_where_it_began_when_another_model_lies_there(open_training, tmp_path):
    """As after publishing over ``init_model``: raising ``max_epochs`` goes on as if that had not been."""
    kept = {}
    for name in ("whole", "resumed"):
        (tmp_path / name).mkdir()
        served = tiny_model(tmp_path / name / "served.pt")
        run = {**STEPS, "init_model": str(served), "keep": "last", "val_interval": 1}
        workflow = open_training(tmp_path / name, **run)
        if name == "resumed":
            interrupt(workflow, Events.EPOCH_STARTED(once=2))
            shutil.copy(tmp_path / name / RUN / "model.pt", served)
            workflow = open_training(tmp_path / name, **run, resume=True)
        workflow.run()
        kept[name] = read_model_file(tmp_path / name / RUN / "model.pt")["model"]
    for name, value in kept["whole"].items():
        assert torch.equal(value, kept["resumed"][name]), name


def test_a_run_begun_without_goes_on_without(tmp_path):
    """A version before 0.12.0 has no such part in its checkpoints."""
    layer = linear(0)
    part_way = PartWay(layer, 0.5, "model.pt")
    torch.save({"epoch": 1, "iteration": 1, "identity": {}, "parts": {"early_stop": {}}}, tmp_path / "checkpoint.pt")
    part_way.load_state_dict(read_checkpoint(tmp_path / "checkpoint.pt")["parts"]["part_way"])
    torch.nn.init.constant_(layer.weight, 1)
    with part_way:
        assert layer.weight.item() == 1
    assert part_way.state_dict() == {"first": []}


def test_published_files_are_judged_as_they_are(open_training, tmp_path, caplog):
    served = tiny_model(tmp_path / "served.pt")
    run = {**STEPS, "init_model": str(served), "publish_path": str(served), "publish": "always", "val_interval": 1}
    with caplog.at_level("INFO"):
        open_training(tmp_path, **run, keep="last").run()
    score = read_model_file(tmp_path / RUN / "model.pt")["provenance"]["val_dice"]
    assert f"published {served} (val_dice {score:.4f}, " in caplog.text


def test_what_no_image_has_judged_is_reported_as_it_is_kept(open_training, tmp_path):
    workflow = open_training(tmp_path, **STEPS, init_model=str(tiny_model(tmp_path / "served.pt")), val_interval=5)
    workflow.run()
    network, kept = workflow.parser.get_parsed_content("network"), tmp_path / RUN / "model.pt"
    name = next(name for name, parameter in network.named_parameters() if parameter.requires_grad)
    learned = network.state_dict()[name].clone()
    with kept_weights(network, kept):
        assert torch.equal(network.state_dict()[name], read_model_file(kept)["model"][name])
        assert not torch.equal(network.state_dict()[name], learned)
    assert torch.equal(network.state_dict()[name], learned)
