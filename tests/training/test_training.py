from __future__ import annotations

import csv
import json
import re
import shutil

import mlflow
import pytest
import torch
from fakes import interrupt, tiny_model
from ignite.engine import Events
from PIL import Image
from scripts.errors import DataError, root_cause
from scripts.networks.loading import load_network
from scripts.networks.model_file import read_model_file
from scripts.networks.model_info import model_info
from scripts.out_of_domain.reference import DomainReference
from scripts.training import publishing


@pytest.fixture(scope="module")
def trained(open_training, tmp_path_factory):
    """One short training of three epochs: its workflow and its folder."""
    output = tmp_path_factory.mktemp("ama")
    workflow = open_training(output, max_epochs=3)
    workflow.run()
    return workflow, output / "synthetic_pink_ama_seed0"


def _history(run_dir):
    with (run_dir / "history.csv").open(newline="") as f:
        return list(csv.DictReader(f))


def test_training_leaves_what_a_user_needs(trained):
    _, run_dir = trained
    for name in ("model.pt", "checkpoint.pt", "history.csv", "curves.png", "overlay.png", "train.json"):
        assert (run_dir / name).stat().st_size > 0, name
    assert Image.open(run_dir / "overlay.png").size == (2 * 512, 2 * 536), "three validation images, in two columns"
    last = _history(run_dir)[-1]
    assert 0 <= float(last["val_dice"]) <= 1 and float(last["val_hd95"]) >= 0
    assert 0 < float(last["lambda"]) <= 0.1
    assert {"domain_accuracy", "gradient_cosine", "train_dice_synthetic_dark"} <= last.keys()


def test_training_is_filed_in_mlflow(trained):
    _, run_dir = trained
    client = mlflow.MlflowClient(f"sqlite:///{run_dir.parent / 'mlruns.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("ama_sam").experiment_id])
    assert run.info.run_name == run_dir.name and run.info.status == "FINISHED"
    assert run.data.params["mode"] == "ama" and run.data.params["auxiliary"] == "synthetic_blurred,synthetic_dark"
    in_groups = {
        "val_dice": "val/dice",
        "train_dice_synthetic_pink": "train/dice_synthetic_pink",
        "train_loss": "train/loss",
        "gradient_cosine": "gradient/cosine",
        "lambda": "adversary/lambda",
        "domain_accuracy": "adversary/domain_accuracy",
    }
    for column, name in in_groups.items():
        logged = {p.step: p.value for p in client.get_metric_history(run.info.run_id, name)}
        assert logged == {int(row["epoch"]): pytest.approx(float(row[column])) for row in _history(run_dir)}
    assert {name.split("/")[0] for name in run.data.metrics} <= {
        "adversary", "alignment", "gradient", "seconds", "train", "val",
    }  # fmt: skip
    artifacts = {a.path for a in client.list_artifacts(run.info.run_id)}
    assert artifacts >= {"train.json", "history.csv", "curves.png"}


def test_frozen_means_bit_identical_after_training(trained, encoder):
    workflow, run_dir = trained
    before = encoder[0].backbone.state_dict()
    live = workflow.parser.get_parsed_content("network").image_encoder.backbone.state_dict()
    saved = read_model_file(run_dir / "model.pt")["model"]
    for name, value in before.items():
        assert torch.equal(live[name], value), name
        assert torch.equal(saved[f"image_encoder.backbone.{name}"].to(value.dtype), value), f"{name} in model.pt"


def test_the_model_knows_its_training_domains_at_the_end(trained):
    reference = DomainReference.of_model(read_model_file(trained[1] / "model.pt"))
    assert reference.names == ["synthetic_pink", "synthetic_blurred", "synthetic_dark"]
    assert all(distances.min() > 0 for distances in reference.held_out)
    windows = [len(distances) for distances in reference.held_out]
    assert windows == [10, 40, 10], "ten images each, of which those of 0.4 um are seen at the primary's 0.25"


def test_a_model_file_tells_what_it_was_trained_on(trained, bundle_root):
    info = model_info(trained[1] / "model.pt")
    version = json.loads((bundle_root / "configs" / "metadata.json").read_text())["version"]
    assert (info.backbone, info.decoder["size"], info.mpp, info.version) == ("vit_test", "light", 0.25, version)
    roles = {domain["name"]: domain["role"] for domain in info.domains}
    assert roles == dict.fromkeys(("synthetic_blurred", "synthetic_dark"), "auxiliary") | {"synthetic_pink": "primary"}
    assert not info.lacks and set(info.nucleus_area_px) == set(roles)


def test_everything_that_is_not_frozen_was_trained(trained, open_training, tmp_path):
    workflow, _ = trained
    untrained = open_training(tmp_path, max_epochs=3).parser.get_parsed_content("model")
    after = workflow.parser.get_parsed_content("model")
    still = [
        name
        for (name, a), (_, b) in zip(after.named_parameters(), untrained.named_parameters())
        if a.requires_grad and torch.equal(a, b)
    ]
    assert not still


WITHOUT_FEATURES = {
    "_target_": "Compose",
    "transforms": ["@train::preprocessing", {"_target_": "DeleteItemsd", "keys": "features"}],
}


def test_training_on_stored_features_equals_training_with_the_encoder(open_training, tmp_path):
    """The same windows and crops, once with what is stored and once with the features computed in each step."""
    on = {"max_epochs": 2, "window_size": 64, "batches_per_epoch": 5}
    losses = {}
    for name, overrides in (
        ("stored", {}),
        ("computed", {"train::dataset::transform": WITHOUT_FEATURES}),
        ("other seed", {"seed": 1}),
    ):
        workflow = open_training(tmp_path, **on, **overrides)
        trainer, losses[name] = workflow.parser.get_parsed_content("train::trainer"), []

        @trainer.on(Events.ITERATION_COMPLETED)
        def _(engine, seen=losses[name]):
            seen.append(engine.state.output["loss"].item())

        workflow.run()
    assert losses["stored"] != losses["computed"]
    assert losses["stored"][0] == pytest.approx(losses["computed"][0], rel=2e-4), "of the same weights"
    assert losses["stored"] == pytest.approx(losses["computed"], rel=1e-2), "after ten steps"
    assert losses["stored"] != pytest.approx(losses["other seed"], rel=2e-2)


def test_caching_stores_what_training_then_finds(open_training, tmp_path, capsys):
    cache_dir = str(tmp_path / "features")
    workflow = open_training(tmp_path, cache_dir=cache_dir)
    workflow.parser.get_parsed_content("caching")
    stored = {file: file.stat().st_mtime_ns for file in (tmp_path / "features").glob("*.pt")}
    assert len(stored) == 60, "three domains of 10 training images, two windows each"
    assert {p.name for p in tmp_path.iterdir()} == {"features", "mlruns.db"}, "no run has begun"
    capsys.readouterr()
    open_training(tmp_path, cache_dir=cache_dir, mode="single", max_epochs=1, seed=3).run()
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "features").glob("*.pt")} == stored
    assert "encoding" not in capsys.readouterr().err


def test_without_cache_nothing_is_stored(open_training, tmp_path):
    open_training(tmp_path, cache="off", cache_dir=str(tmp_path / "features"), max_epochs=1).run()
    assert not (tmp_path / "features").exists()


def test_compiling_is_a_key(open_training, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(type(module).__name__))
    open_training(tmp_path, max_epochs=1).run()
    assert not compiled
    open_training(tmp_path, max_epochs=1, compile=True).run()
    assert compiled == ["FrozenEncoder"]


def test_a_resumed_run_equals_one_that_never_stopped(trained, open_training, tmp_path):
    _, run_dir = trained
    interrupt(open_training(tmp_path, max_epochs=3), Events.ITERATION_STARTED(once=4))  # within the second epoch
    open_training(tmp_path, max_epochs=3, resume=True).run()

    resumed_dir = tmp_path / run_dir.name
    whole, resumed = (read_model_file(d / "model.pt")["model"] for d in (run_dir, resumed_dir))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    whole, resumed = (torch.load(d / "checkpoint.pt", weights_only=True)["parts"] for d in (run_dir, resumed_dir))
    assert all(torch.equal(value, resumed["adversary"][name]) for name, value in whole["adversary"].items())
    assert _history(resumed_dir) == _history(run_dir)


def test_the_same_seed_gives_the_same_run_and_another_another(trained, open_training, tmp_path):
    _, run_dir = trained
    open_training(tmp_path, max_epochs=3).run()
    assert _history(tmp_path / run_dir.name) == _history(run_dir)
    open_training(tmp_path, max_epochs=3, seed=7).run()
    assert _history(tmp_path / "synthetic_pink_ama_seed7") != _history(run_dir)


def test_a_second_run_never_overwrites_the_first(trained, open_training):
    _, run_dir = trained
    again = open_training(run_dir.parent, max_epochs=3)
    assert again.parser.get_parsed_content("run_name") == f"{run_dir.name}_2"


@pytest.mark.parametrize("mode, coefficients", [("grl", [1, 1, 1]), ("joint", [0, 0, 0]), ("signed", [-1, 1, 1])])
def test_the_mode_reaches_the_gradient_reversal(open_training, tmp_path, mode, coefficients):
    parser = open_training(tmp_path, mode=mode).parser
    assert parser.get_parsed_content("model").adversary.cgrl.coefficients.tolist() == coefficients


@pytest.mark.parametrize("given, resume", [("false", False), ("true", True), ("False", False), (True, True)])
def test_true_and_false_on_the_command_line_are_read_as_such(open_training, tmp_path, given, resume):
    assert open_training(tmp_path, resume=given).parser.get_parsed_content("resume") is resume


def test_what_is_neither_true_nor_false_is_refused(open_training, tmp_path):
    with pytest.raises(Exception) as error:
        open_training(tmp_path, resume="maybe")
    assert "resume: it must be true or false, and 'maybe' is not" in str(root_cause(error.value))


def test_single_domain_training_has_no_adversary_and_no_other_domain(open_training, tmp_path):
    workflow = open_training(tmp_path, mode="single", max_epochs=1)
    workflow.run()
    assert workflow.parser.get_parsed_content("model").adversary is None
    items = workflow.parser.get_parsed_content("train::dataset").data
    assert len(items) == 10 and all("synthetic_pink" in item["image"] for item in items)
    assert "domain_accuracy" not in _history(tmp_path / "synthetic_pink_single_seed0")[0]


def test_overrides_reach_the_objects(open_training, tmp_path):
    parser = open_training(
        tmp_path,
        learning_rate=0.5,
        lambda_max=0.7,
        auxiliary_weight=0.25,
        primary="synthetic_dark",
        targets="foreground",
    ).parser
    assert parser.get_parsed_content("optimizer").defaults["lr"] == 0.5
    iteration = parser.get_parsed_content("train::trainer")._process_function
    assert (iteration.lambda_max, iteration.auxiliary_weight) == (0.7, 0.25)
    assert parser.get_parsed_content("domain_names")[0] == "synthetic_dark"
    assert parser.get_parsed_content("network").decoder.out_channels == 1


def test_the_papers_single_channel_trains(open_training, tmp_path):
    open_training(tmp_path, targets="foreground", max_epochs=1).run()
    model = read_model_file(tmp_path / "synthetic_pink_ama_seed0" / "model.pt")
    assert model["model"]["decoder.head.weight"].shape[0] == 4, "one channel for each pixel of a 2x2 square"


@pytest.mark.parametrize("targets, channels", [("hv", 3), ("border", 2)])
def test_what_separates_nuclei_is_a_key_and_travels_in_the_model(open_training, tmp_path, targets, channels):
    open_training(tmp_path, targets=targets, max_epochs=1).run()
    path = tmp_path / "synthetic_pink_ama_seed0" / "model.pt"
    assert model_info(path).targets == load_network(path).targets == targets
    assert model_info(path).decoder["out_channels"] == channels
    goes_on = open_training(tmp_path, init_model=str(path), backbone_weights=str(path)).parser
    assert goes_on.get_parsed_content("network").targets == targets, "what begins with it is taught the same"


def test_training_stops_when_validation_no_longer_improves(open_training, tmp_path):
    open_training(tmp_path, max_epochs=9, learning_rate=0.0, patience=2).run()
    assert len(_history(tmp_path / "synthetic_pink_ama_seed0")) == 3  # the first is the best, two bring nothing


def test_the_last_weights_can_be_kept_whatever_validation_says(open_training, tmp_path):
    """Validation may look in as often as it likes: it changes neither the training nor what is kept of it."""
    trained = {"mode": "joint", "max_epochs": 3, "learning_rate": 0.5, "keep": "last"}  # so high that epochs differ
    kept = {}
    for name, overrides in {
        "often": {"val_interval": 1},
        "seldom": {"val_interval": 2},
        "once": {"val_interval": 3},
    }.items():
        workflow = open_training(tmp_path / name, **trained, **overrides)
        workflow.run()
        kept[name] = read_model_file(tmp_path / name / "synthetic_pink_joint_seed0" / "model.pt")
        assert kept[name]["provenance"]["epoch"] == 3
        for key, value in workflow.parser.get_parsed_content("network").state_dict().items():
            assert torch.equal(value, kept[name]["model"][key]), key
    assert ["val_dice" in kept[name]["provenance"] for name in kept] == [True, False, True]
    for key, value in kept["once"]["model"].items():
        assert torch.equal(value, kept["often"]["model"][key]) and torch.equal(value, kept["seldom"]["model"][key]), key
    with pytest.raises(Exception) as error:
        open_training(tmp_path, keep="first").run()
    assert "keep: it must be one of best, last, and 'first' is not" in str(root_cause(error.value))


def test_a_domain_list_in_an_overlay_config_replaces_the_folder_settings(open_training, synthetic, tmp_path):
    domains = [
        {"name": "theirs", "role": "auxiliary", "root": f"{synthetic}/synthetic_blurred", "mpp": 0.5},
        {"name": "mine", "role": "primary", "root": f"{synthetic}/synthetic_dark", "datalist": "split.json"},
    ]
    workflow = open_training(tmp_path, domains=domains, target_mpp=0.25, max_epochs=1)
    workflow.run()
    assert _history(tmp_path / "mine_ama_seed0")[0].keys() >= {"train_dice_mine", "train_dice_theirs"}
    alone = open_training(tmp_path, domains=domains, mode="single").parser
    assert {item["domain_name"] for item in alone.get_parsed_content("train::dataset").data} == {"mine"}
    twice = [{**entry, "role": "primary"} for entry in domains]
    with pytest.raises(RuntimeError) as told:
        open_training(tmp_path, domains=twice).run()
    assert re.search("2 domains are primary: theirs, mine", str(root_cause(told.value)))


def test_without_a_validation_part_the_last_epoch_is_kept(open_training, synthetic, tmp_path):
    shutil.copytree(f"{synthetic}/synthetic_pink", tmp_path / "data" / "pink")
    split = json.loads((tmp_path / "data" / "pink" / "split.json").read_text())
    (tmp_path / "data" / "pink" / "split.json").write_text(json.dumps({"training": split["training"]}))
    open_training(tmp_path, dataset_dir=str(tmp_path / "data"), mode="single", max_epochs=2).run()
    model = read_model_file(tmp_path / "pink_single_seed0" / "model.pt")
    assert model["provenance"]["epoch"] == 2 and "val_dice" not in model["provenance"]


@pytest.mark.parametrize("broken", ["image", "label"])
def test_a_broken_training_file_is_named(open_training, synthetic, tmp_path, broken):
    shutil.copytree(f"{synthetic}/synthetic_pink", tmp_path / "data" / "pink")
    entry = json.loads((tmp_path / "data" / "pink" / "split.json").read_text())["training"][3]
    path = tmp_path / "data" / "pink" / entry[broken]
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(RuntimeError) as told:
        open_training(tmp_path, dataset_dir=str(tmp_path / "data"), mode="single", max_epochs=1).run()
    assert isinstance(root_cause(told.value), DataError) and str(path) in str(root_cause(told.value))


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"max_epoch": 3}, "unknown config key 'max_epoch' .did you mean 'max_epochs'"),
        ({"train#lr": 3}, "train::lr"),
        ({"primary": "tnbc"}, "no domain 'tnbc'.*synthetic_pink"),
        ({"mode": "amma"}, "mode: it must be one of ama, .*did you mean 'ama'"),
        ({"auxiliary": "none"}, "--mode single"),
        ({"backbone": "vit_x"}, "vit_b"),
        ({"backbone_weights": "nowhere.pth"}, "nowhere.pth"),
        ({"dataset_dir": "nowhere"}, "nowhere"),
        ({"resume": True}, "no checkpoint to resume from"),
    ],
)
def test_settings_that_cannot_work_are_told(open_training, tmp_path, overrides, message):
    with pytest.raises(Exception) as told:  # noqa: B017 which class MONAI wraps it in does not matter
        open_training(tmp_path, **overrides).run()
    assert re.search(message, str(root_cause(told.value)))


def test_a_loss_that_is_not_finite_stops_and_names_the_images(open_training, tmp_path):
    workflow = open_training(tmp_path, max_epochs=1)
    with torch.no_grad():
        workflow.parser.get_parsed_content("network").decoder.head.bias.fill_(float("nan"))
    with pytest.raises(RuntimeError) as told:
        workflow.run()
    assert isinstance(root_cause(told.value), FloatingPointError)
    assert "learning_rate" in str(root_cause(told.value)) and ".png" in str(root_cause(told.value))
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlruns.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("ama_sam").experiment_id])
    assert run.info.status == "FAILED"


def test_a_checkpoint_of_another_encoder_is_not_resumed(trained, open_training, tmp_path):
    _, run_dir = trained
    shutil.copytree(run_dir, tmp_path / run_dir.name)
    with pytest.raises(RuntimeError) as told:
        open_training(tmp_path, max_epochs=5, resume=True, backbone_weights="random").run()
    assert "encoder_fingerprint" in str(root_cause(told.value))


# --- beginning with an existing model, and publishing


def test_training_begins_with_an_existing_models_decoder(trained, open_training, tmp_path):
    _, run_dir = trained
    start = read_model_file(run_dir / "model.pt")["model"]
    parser = open_training(tmp_path, init_model=str(run_dir / "model.pt")).parser
    decoder = parser.get_parsed_content("model").network.decoder.state_dict()
    assert all(torch.equal(value, start[f"decoder.{name}"]) for name, value in decoder.items())
    anew = open_training(tmp_path).parser.get_parsed_content("model").network.decoder.state_dict()
    assert not all(torch.equal(value, anew[name]) for name, value in decoder.items())


@pytest.mark.parametrize(
    "other, message",
    [
        ({"decoder_size": "standard"}, "(?s)model.pt.*--decoder_size light"),
        ({"backbone_weights": "random"}, "model.pt.*another encoder's features"),
        ({"init_model": "nowhere.pt"}, "nowhere.pt.*no such model file.* with --init_model, or"),
        ({"init_model": "model.ts"}, "model.ts: it is an export.*the model.pt .* with --init_model"),
        ({"init_model": "model.onnx", "backbone_weights": "model.onnx"}, "model.onnx: it is an export.*--init_model"),
    ],
)
def test_a_model_that_does_not_fit_is_not_begun_with(trained, open_training, tmp_path, other, message):
    _, run_dir = trained
    with pytest.raises(RuntimeError) as told:
        open_training(tmp_path, **{"init_model": str(run_dir / "model.pt"), **other}).run()
    assert isinstance(root_cause(told.value), DataError) and re.search(message, str(root_cause(told.value)))


def test_a_model_of_another_backbone_is_not_begun_with(bundle_root, open_training, tmp_path):
    with pytest.raises(RuntimeError) as told:
        open_training(tmp_path, init_model=str(bundle_root / "models" / "model.pt")).run()
    assert "holds a vit_t model, not vit_test" in str(root_cause(told.value))


@pytest.mark.parametrize("publish, replaced", [("better", False), ("always", True)])
def test_a_served_model_that_validates_better_is_replaced_only_if_asked(
    trained, open_training, tmp_path, publish, replaced
):
    """The served one is a trained model, the new one has learned nothing."""
    _, run_dir = trained
    served = tmp_path / "served" / "model.pt"
    served.parent.mkdir()
    shutil.copy(run_dir / "model.pt", served)
    before = served.read_bytes()
    options = {"publish_path": str(served), "publish": publish, "learning_rate": 0.0, "max_epochs": 1, "seed": 5}
    open_training(tmp_path, **options).run()
    kept = list((tmp_path / "served" / "previous").glob("*.pt"))
    if replaced:
        assert served.read_bytes() == (tmp_path / "synthetic_pink_ama_seed5" / "model.pt").read_bytes()
        assert [path.read_bytes() for path in kept] == [before]
    else:
        assert served.read_bytes() == before and not kept


def test_models_published_within_a_second_keep_all_that_were_served(tmp_path, monkeypatch):
    monkeypatch.setattr(publishing.time, "strftime", lambda form: "20260101_000000")
    served = tmp_path / "served" / "model.pt"
    served.parent.mkdir()
    for number in range(4):
        (tmp_path / "new.pt").write_text(str(number))
        publish = publishing.PublishModel(tmp_path / "new.pt", served, "always", torch.nn.Identity(), None)
        monkeypatch.setattr(publish, "_score", lambda model: None)
        publish(None)
    assert served.read_text() == "3"
    assert {path.read_text() for path in (tmp_path / "served" / "previous").iterdir()} == {"0", "1", "2"}


def test_a_first_model_and_one_of_another_size_are_published(open_training, tmp_path):
    served = tmp_path / "served" / "model.pt"
    open_training(tmp_path, publish_path=str(served), max_epochs=1).run()
    assert read_model_file(served)["decoder"]["size"] == "light"
    tiny_model(served, size="standard")
    open_training(tmp_path, publish_path=str(served), max_epochs=1).run()
    assert read_model_file(served)["decoder"]["size"] == "light"
    assert len(list((tmp_path / "served" / "previous").glob("*.pt"))) == 1


def test_images_handed_over_are_the_primary(open_training, synthetic, tmp_path):
    """As MONAI Label's stock app trains: nothing but paths, one image, no validation."""
    item = {"image": f"{synthetic}/synthetic_pink/images/", "label": f"{synthetic}/synthetic_pink/labels/"}
    name = sorted(p.name for p in (tmp_path / synthetic / "synthetic_pink" / "images").iterdir())[0]
    item = {key: value + name for key, value in item.items()}
    served = tmp_path / "served" / "model.pt"
    options = {"train#dataset#data": [item], "validate#dataset#data": [], "train#trainer#max_epochs": 1}
    open_training(tmp_path, device="cpu", publish_path=str(served), **options).run()
    provenance = read_model_file(served)["provenance"]
    assert provenance["domains"] == ["labelled"] and provenance["mode"] == "single" and provenance["epoch"] == 1


def test_images_handed_over_learn_beside_auxiliary_domains(open_training, synthetic, tmp_path):
    folder = tmp_path / synthetic / "synthetic_pink"
    items = [{"image": str(p), "label": str(folder / "labels" / p.name)} for p in (folder / "images").iterdir()]
    auxiliary = {"name": "dark", "role": "auxiliary", "root": f"{synthetic}/synthetic_dark"}
    options = {"train#dataset#data": items[:2], "validate#dataset#data": items[2:3], "domains": [auxiliary]}
    open_training(tmp_path, publish_path=str(tmp_path / "m.pt"), max_epochs=1, **options).run()
    provenance = read_model_file(tmp_path / "m.pt")["provenance"]
    assert provenance["domains"] == ["labelled", "dark"] and provenance["mode"] == "ama"
    assert "val_dice" in provenance
