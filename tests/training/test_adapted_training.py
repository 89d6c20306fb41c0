"""Training with adapters: what is stored ends before them, what is kept holds them, and nobody repeats the key."""

from __future__ import annotations

import json

import pytest
import torch
from fakes import interrupt, open_verb
from ignite.engine import Events
from monai.bundle import ckpt_export
from scripts.networks.adapters import is_adapter
from scripts.networks.loading import load_network
from scripts.networks.model_file import read_model_file
from scripts.networks.model_info import model_info
from scripts.training.checkpoints import read_checkpoint

NAME = "synthetic_pink_ama_seed0"


def _adapters(path) -> dict[str, torch.Tensor]:
    """The adapters in a model file."""
    return {name: value for name, value in read_model_file(path)["model"].items() if "image_encoder" in name}


@pytest.fixture(scope="module")
def trained(open_training, tmp_path_factory):
    """Two epochs with late adapters: the workflow and its folder."""
    output = tmp_path_factory.mktemp("late")
    workflow = open_training(output, max_epochs=2, adapters="late", alignment_report=True)
    workflow.run()
    return workflow, output / NAME


def test_adapters_are_trained_and_the_encoder_stays_bit_identical(trained, encoder):
    saved = read_model_file(trained[1] / "model.pt")["model"]
    for name, value in encoder[0].backbone.state_dict().items():
        assert torch.equal(saved[f"image_encoder.backbone.{name}"].to(value.dtype), value), name
    moved = [value.any() for name, value in saved.items() if is_adapter(name) and name.endswith("up.weight")]
    assert len(moved) > 1 and all(moved), "they begin at zero"
    assert (trained[1] / "alignment.json").is_file(), "and the report at the end is of them"


@pytest.mark.parametrize("adapters", ["late", "early", "all"])
def test_training_on_what_is_stored_equals_training_with_the_whole_encoder(open_training, tmp_path, adapters):
    whole = {"_target_": "DeleteItemsd", "keys": "features"}
    losses = {}
    for name, overrides in (
        ("stored", {}),
        (
            "live",
            {"train::dataset::transform": {"_target_": "Compose", "transforms": ["@train::preprocessing", whole]}},
        ),
    ):
        workflow = open_training(
            tmp_path, max_epochs=1, window_size=64, batches_per_epoch=5, adapters=adapters, domain_images=0, **overrides
        )
        trainer, losses[name] = workflow.parser.get_parsed_content("train::trainer"), []

        @trainer.on(Events.ITERATION_COMPLETED)
        def _(engine, seen=losses[name]):
            seen.append(engine.state.output["loss"].item())

        workflow.run()
    assert losses["stored"] != losses["live"]
    assert losses["stored"][0] == pytest.approx(losses["live"][0], rel=2e-4), "of the same weights"
    assert losses["stored"] == pytest.approx(losses["live"], rel=1e-2), "after five steps"


def test_what_was_stored_without_adapters_is_never_taken_for_them(open_training, tmp_path):
    paths = {}
    for adapters in ("none", "late", "early", "all"):
        workflow = open_training(tmp_path, adapters=adapters, cache_dir=str(tmp_path / "features"), auxiliary="none",
                                 mode="single", limit_groups=1, cache_windows=1)  # fmt: skip
        dataset = workflow.parser.get_parsed_content("train::dataset")
        paths[adapters] = dataset.path(0, 0)
    assert len(set(paths.values())) == 3
    assert paths["early"] == paths["all"], "both end before the first block"


def test_training_without_the_cache_runs_the_adapters_too(open_training, tmp_path):
    open_training(tmp_path, max_epochs=1, adapters="late", cache="off", domain_images=0, overlay_images=0).run()
    model = tmp_path / NAME / "model.pt"
    assert model_info(model).adapters == "late"
    assert all(value.any() for name, value in _adapters(model).items() if name.endswith("up.weight"))


def test_a_resumed_run_equals_one_that_never_stopped(open_training, trained, tmp_path):
    workflow = open_training(tmp_path, max_epochs=2, adapters="late")
    interrupt(workflow, Events.EPOCH_STARTED(once=2))
    assert all(is_adapter(name) for name in read_checkpoint(tmp_path / NAME / "checkpoint.pt")["parts"]["adapters"])
    open_training(tmp_path, max_epochs=2, adapters="late", resume=True).run()
    resumed, whole = (read_checkpoint(folder / "checkpoint.pt")["parts"] for folder in (tmp_path / NAME, trained[1]))
    for part in ("decoder", "adapters"):
        for name, value in whole[part].items():
            assert torch.equal(value, resumed[part][name]), name


def test_the_recipe_for_few_labels_keeps_a_models_adapters(open_training, trained, bundle_root, tmp_path):
    recipe = json.loads((bundle_root / "configs" / "few_shot.json").read_text())
    served = trained[1] / "model.pt"
    short = {"max_epochs": 1, "batches_per_epoch": 2, "warmup_iterations": 0, "domain_images": 0, "keep": "last"}
    open_training(tmp_path, **{**recipe, **short, "start_counts": False, "init_model": str(served)}).run()
    kept = tmp_path / "synthetic_pink_joint_seed0" / "model.pt"
    assert model_info(kept).adapters == "late"
    before = _adapters(served)
    changed = [not torch.equal(value, before[name]) for name, value in _adapters(kept).items() if is_adapter(name)]
    assert all(changed), "they go on from there"


def test_evaluating_and_aligning_take_the_file_and_no_key(trained, bundle_root, synthetic, tmp_path):
    places = {"dataset_dir": synthetic, "primary": "synthetic_pink", "ckpt_path": str(trained[1] / "model.pt")}
    open_verb(bundle_root, "evaluate", None, **places, output_dir=str(tmp_path / "scores"), tile_size=256).run()
    assert json.loads((tmp_path / "scores" / "metrics.json").read_text())
    open_verb(bundle_root, "align", None, **places, output_dir=str(tmp_path / "report"), tile_size=256, window_size=64,
              windows_per_domain=4, control_path=places["ckpt_path"]).run()  # fmt: skip
    assert (tmp_path / "report" / "alignment.json").is_file()


def test_an_export_of_the_file_holds_its_adapters(trained, bundle_root, tmp_path, monkeypatch):
    monkeypatch.chdir(bundle_root)
    ckpt_export(
        config_file="configs/inference.json", filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(trained[1] / "model.pt"), ckpt_path=str(trained[1] / "model.pt"), backbone="vit_test",
        decoder_size="light",
    )  # fmt: skip
    image = torch.rand(1, 3, 64, 96) * 255
    with torch.inference_mode():
        expected, found = (load_network(path)(image) for path in (trained[1] / "model.pt", tmp_path / "model.ts"))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
