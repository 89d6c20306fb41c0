"""What requests may say, without a server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from label_server import missing_package
from scripts.errors import DataError

REPO = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(missing_package() is not None, reason=f"{missing_package()} is not installed")


@pytest.fixture
def schema(monkeypatch):
    monkeypatch.syspath_prepend(str(REPO / "apps" / "ama_sam"))
    from lib import schema

    return schema


def kinds(schema):
    return [kind for kind in vars(schema).values() if isinstance(kind, type) and issubclass(kind, schema.Strict)]


def test_a_field_is_known_or_ignored_and_never_both(schema):
    assert len(kinds(schema)) > 7
    for kind in kinds(schema):
        assert not kind.ignored & kind.model_fields.keys()
        assert kind.model_validate(dict.fromkeys(kind.ignored, "x")) == kind(), "they change nothing"


def test_what_looks_like_a_config_is_refused_in_every_field(schema):
    for kind in kinds(schema):
        if issubclass(kind, schema.Options):
            for name in {*kind.model_fields, *kind.ignored}:
                for value in ("$1", "@network", "%train.json", {"_target_": "os.system"}):
                    with pytest.raises(ValueError, match=f"'?{name}'?"):
                        kind.model_validate({name: value})


def test_true_is_no_number(schema):
    for kind in kinds(schema):
        for name, field in kind.model_fields.items() if issubclass(kind, schema.Options) else ():
            if field.annotation is not bool:
                with pytest.raises(ValueError, match=f"'?{name}'?"):
                    kind.model_validate({name: True})


def test_devices_are_those_of_the_machine_by_both_their_names(schema, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Card")
    for name, device in (("cpu", "cpu"), ("cuda", "cuda"), ("cuda:1", "cuda:1"), ("Card:1", "cuda:1")):
        assert schema.SegmentOptions(device=name).device == schema.TrainOptions(device=name).device == device
    assert schema.SegmentOptions(device=["Card:0", "Card:1"]).device == "cuda:0", "a choice that was not made"
    assert schema.default_device() == "cuda"
    for name in ("cuda:2", "cuda:01", "Card", "mps", "", "cuda:1; import os", [], ["cuda", "cpu", {}][2:]):
        with pytest.raises(ValueError, match="device"):
            schema.SegmentOptions(device=name)
    with pytest.raises(ValueError, match="there is no cuda:7 on this machine. There is cpu, cuda:0, cuda:1"):
        schema.TrainOptions(device="cuda:7")


def test_options_are_numbers_also_where_a_client_sends_text(schema):
    options = schema.SegmentOptions.model_validate({"threshold": "0.4", "min_area": 30, "mpp": 0})
    assert (options.threshold, options.min_area, options.mpp) == (0.4, 30.0, 0.0)
    assert schema.TrainOptions.model_validate({"max_epochs": "3", "pretrained": "false"}).max_epochs == 3


def test_among_a_servers_own_fields_only_options_are_read(schema):
    request = {"model": "ama_sam", "bundle_path": "$x", "gpus": "all", "max_epochs": 2}
    assert schema.TrainOptions.of(request) == schema.TrainOptions(max_epochs=2)
    with pytest.raises(ValueError, match="max_epochs"):
        schema.TrainOptions.of({**request, "max_epochs": "$open('x')"})


@pytest.mark.parametrize("region", [{"size": [1]}, {"location": "0,0"}, {"size": [1, 2**40]}, {"location": [0.5, 0]}])
def test_a_region_is_two_times_two_whole_numbers(schema, region):
    with pytest.raises(ValueError, match="size|location"):
        schema.RegionRequest.model_validate(region)
    assert schema.RegionRequest(location=(3, 4), size=(5, 6)).region() == [3, 4, 5, 6]
    assert schema.RegionRequest(location=(3, 4), size=(0, 0)).region() is None


@pytest.mark.parametrize(
    "origin", ["*", "viewer.example.org", "https://viewer.example.org/page", "https://", "file:///a"]
)
def test_a_server_whose_settings_protect_nothing_does_not_start(schema, monkeypatch, origin):
    from fastapi import FastAPI
    from lib.server import protect

    with pytest.raises(DataError, match="no web page's origin"):
        protect(FastAPI(), [origin])
    monkeypatch.setenv("AMA_SAM_TOKEN", "")
    with pytest.raises(DataError, match="the token is empty"):
        protect(FastAPI(), ["https://viewer.example.org/"])


@pytest.mark.parametrize(
    "kind, field, value",
    [
        *(("SegmentOptions", "threshold", v) for v in (7, 0, -1, "high")),
        *(("SegmentOptions", name, -1) for name in ("marker_depth", "min_area")),
        ("BatchOptions", "threshold", 1),
        *(("TrainOptions", name, -1) for name in ("max_epochs", "batches_per_epoch", "learning_rate", "seed")),
        ("TrainOptions", "mode", "xyz"),
        ("TrainOptions", "publish", "never"),
        ("TrainOptions", "epochs", 3),
        ("SegmentOptions", "treshold", 0.5),
    ],
)
def test_settings_are_held_to_what_the_command_line_holds_them_to(schema, kind, field, value):
    with pytest.raises(ValueError, match=field):
        getattr(schema, kind).model_validate({field: value})


def test_a_wrong_setting_is_told_in_the_command_lines_words(schema):
    with pytest.raises(ValueError, match="threshold: it must be a number above 0 and below 1, and 7.0 is not"):
        schema.RegionRequest.model_validate({"params": {"threshold": 7}})
    with pytest.raises(ValueError, match="did you mean 'threshold'"):
        schema.InferOptions.model_validate({"treshold": 0.5})


@pytest.fixture
def check_settings(schema):
    from lib.app_settings import check_settings

    return check_settings


@pytest.mark.parametrize(
    "conf, told",
    [
        ({"mpp": "20x"}, "mpp: '20x' is no number"),
        ({"mpp": "250"}, "mpp: it must be a number from"),
        ({"auxilary_dir": "data"}, "did you mean 'auxiliary_dir'"),
        ({"auxiliary_dir": "nowhere"}, "auxiliary_dir: there is no folder 'nowhere'"),
        ({"auxiliary": "tnbc"}, "auxiliary: nothing says where"),
    ],
)
def test_a_server_with_a_wrong_setting_does_not_start(check_settings, conf, told):
    with pytest.raises(DataError, match=told):
        check_settings(conf)


def test_settings_that_are_right_or_monai_labels_are_taken(check_settings, synthetic, tmp_path):
    check_settings(
        {"mpp": "0.25", "auxiliary_dir": synthetic, "auxiliary": "synthetic_dark", "model_dir": str(tmp_path)}
    )
    check_settings({"skip_strategies": "true", "models": "ama_sam"})
    with pytest.raises(DataError, match="there is no domain 'dark'"):
        check_settings({"auxiliary_dir": synthetic, "auxiliary": "dark"})


@pytest.mark.parametrize("name", ["labelled", "unlabelled"])
def test_an_auxiliary_domain_is_not_called_as_the_studies_own_images(check_settings, synthetic, tmp_path, name):
    for theirs, ours in (("synthetic_dark", name), ("synthetic_pink", "pink")):
        os.symlink(os.path.join(synthetic, theirs), tmp_path / ours)
    with pytest.raises(DataError, match=f"{name}: the studies' own images are the domain of this name. Rename"):
        check_settings({"auxiliary_dir": str(tmp_path)})
    check_settings({"auxiliary_dir": str(tmp_path), "auxiliary": "pink"})


def test_a_training_tells_how_far_it_is_from_what_it_has_written(schema, tmp_path):
    from lib.train_stats import newest_run, train_stats

    assert newest_run(tmp_path) is None
    run = tmp_path / "labelled_single_seed0"
    run.mkdir()
    (run / "train.json").write_text('{"max_epochs": 4}')
    begun = train_stats(newest_run(tmp_path))
    assert begun["epoch"] == 0 and begun["max_epochs"] == 4 and begun["current_time"] == "0:00:00"
    (run / "history.csv").write_text("epoch,train_loss,val_dice\n1,2.0,\n2,1.0,0.7\n3,1.0,0.6\n")
    stats = train_stats(run)
    assert (stats["epoch"], stats["best_metric"], stats["eval"]["best_metric_epoch"]) == (3, 0.7, 2)
    assert "total_time" not in stats and None not in stats.values()
    (run / "history.csv").write_text("epoch,val_dice\n4,0.8\n")
    assert "total_time" in train_stats(run)


def test_agreement_scores_what_a_person_left_of_what_was_found(schema, tmp_path):
    import numpy as np
    from lib.scoring import Agreement
    from lib.studies import Studies
    from PIL import Image

    studies = Studies(str(tmp_path / "studies"))
    found = np.zeros((64, 64), np.uint8)
    found[8:24, 8:24], found[40:56, 40:56] = 1, 2
    corrected = np.where(found == 2, 0, found)
    for name, pixels in (("found", found), ("corrected", corrected)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    for name in ("a", "b"):
        Image.fromarray(np.full((64, 64, 3), 200 + len(studies.list_images()), np.uint8)).save(tmp_path / f"{name}.png")
        studies.add_image(name, str(tmp_path / f"{name}.png"), {})
    studies.save_label("a", str(tmp_path / "found.png"), "original", {})
    studies.save_label("a", str(tmp_path / "corrected.png"), "final", {})
    studies.save_label("b", str(tmp_path / "found.png"), "final", {})
    scores = Agreement()({}, studies)
    assert scores == {"a": {"dice": 0.6667, "aji": 0.5, "pq": 0.6667}}, "only what has both"
    assert studies.get_image_info("a")["dice"] == 0.6667
