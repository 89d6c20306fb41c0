"""What requests may say, without a server."""

from __future__ import annotations

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
