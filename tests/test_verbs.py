"""The verbs as a user types them, each in a process of its own, and the configs they run."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from fakes import tiny_model
from monai.bundle import ConfigParser, ConfigWorkflow, verify_metadata, verify_net_in_out
from PIL import Image
from scripts.errors import root_cause
from scripts.networks.loading import load_model, load_network
from scripts.networks.model_file import read_model_file
from scripts.networks.model_info import describe_decoder
from scripts.setup_run import unknown_keys

CONFIGS = ("train", "evaluate", "inference", "wsi")
VERBS = {"train": "training", "evaluate": "evaluating", "inference": "inferring", "wsi": "segmenting_slide"}


def _run(bundle_root, config, *arguments, inside=True, code=0):
    """Run a verb from inside the bundle, or from the folder above it; returns what it printed."""
    where = [] if inside else ["--bundle_root", "bundle"]
    path = f"configs/{config}.json" if inside else f"bundle/configs/{config}.json"
    command = [sys.executable, "-m", "monai.bundle", "run", VERBS[config], "--config_file", path, *where]
    done = subprocess.run(
        [*command, *map(str, arguments)],
        cwd=bundle_root if inside else bundle_root.parent,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
    )
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def shipped(bundle_root):
    path = bundle_root / "models" / "model.pt"
    assert path.stat().st_size <= 25 * 2**20, "the model zoo takes files of at most 25 MB"
    return read_model_file(path)


# --- configs


@pytest.mark.parametrize("config", CONFIGS)
def test_every_key_of_a_config_is_used(bundle_root, config):
    """Nothing dead in a config: against empty defaults, only what is run by name is left."""
    parser = ConfigParser(ConfigParser.load_config_file(bundle_root / "configs" / f"{config}.json"))
    parser.resolve_macro_and_relative_ids()
    # tables such as run_params are used as a whole, hence none of their keys by name
    tables = ("provenance", "run_facts", "run_params", "settings")
    dead = [key for key in unknown_keys(parser.get(), {}) if key.partition("::")[0] not in tables]
    # what MONAI's own tools and MONAI Label take by name
    more = {"train": ["caching", "clearing_cache"], "inference": ["network_def", "post_transforms"]}.get(config, [])
    assert dead == sorted(["imports", "initialize", "run", VERBS[config], *more])


def test_an_override_is_known_if_the_defaults_have_it_or_something_refers_to_it():
    defaults = {"epochs": 1, "net": {"_target_": "Net"}, "train": {"lr": 1}}
    assert unknown_keys({**defaults, "epoch": 2}, defaults) == ["epoch"]
    assert unknown_keys({**defaults, "train": {"lr": 1, "lrr": 2}}, defaults) == ["train::lrr"]
    assert unknown_keys({**defaults, "width": 3, "net": {"_target_": "Net", "width": "@width"}}, defaults) == []
    assert unknown_keys({**defaults, "_meta_": {"version": "1"}}, defaults) == []


def test_the_network_stands_where_monai_asks_for_it_and_nowhere_else(bundle_root):
    files = {path.stem: ConfigParser.load_config_file(path) for path in (bundle_root / "configs").glob("*.json")}
    assert {name for name, content in files.items() if "network_def" in content} == {"train", "inference"}
    built = []
    for name in ("train", "inference"):
        parser = ConfigParser(files[name])
        parser["image_encoder"] = {"_target_": "scripts.networks.sam_encoders.build_encoder", "backbone": "vit_test"}
        built.append(describe_decoder(parser.get_parsed_content("network_def").decoder))
    assert built[0] == built[1], "what is trained by default is what MONAI's tools build by default"
    assert len({files[name]["tile_size"] for name in CONFIGS}) == 1


@pytest.mark.parametrize("config, kind", [("train", "train"), ("inference", "infer")])
def test_the_properties_monai_asks_of_a_bundle_resolve(bundle_root, shipped, synthetic, tmp_path, config, kind):
    data = synthetic if config == "train" else os.path.join(synthetic, "synthetic_pink", "images")
    workflow = ConfigWorkflow(
        config_file=str(bundle_root / "configs" / f"{config}.json"),
        workflow_type=kind,
        bundle_root=str(bundle_root),
        logging_file=False,
        dataset_dir=data,
        output_dir=str(tmp_path),
        **({"cache": "off"} if config == "train" else {}),  # encoding would take most of the time
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    for name, about in workflow.properties.items():
        if about["required"]:
            assert getattr(workflow, name) is not None, name


# --- weights


def test_the_shipped_model_tells_where_it_comes_from(shipped):
    provenance = shipped["provenance"]
    assert provenance["domains"][0] == "tnbc" and "monuseg" not in provenance["domains"]
    assert provenance["mode"] == "joint" and 0 < provenance["val_dice"] <= 1, "as the model card says"


def test_the_shipped_encoder_is_mobile_sam(shipped, mobile_sam):
    from scripts.networks.sam_encoders import fingerprint
    from scripts.networks.weights import load_encoder

    assert fingerprint(load_encoder("vit_t", mobile_sam)) == shipped["provenance"]["encoder_fingerprint"]


def test_training_without_any_weights_file_takes_the_encoder_from_the_bundle(bundle_root, shipped):
    from scripts.networks.sam_encoders import fingerprint
    from scripts.networks.weights import load_encoder

    encoder = load_encoder("vit_t", models_dir=bundle_root / "models")
    assert fingerprint(encoder) == shipped["provenance"]["encoder_fingerprint"]


@pytest.mark.parametrize("problem", ["missing", "truncated", "foreign"])
def test_a_model_file_that_cannot_be_used_is_named(bundle_root, shipped, tmp_path, problem):
    path = tmp_path / "model.pt"
    if problem == "truncated":
        path.write_bytes((bundle_root / "models" / "model.pt").read_bytes()[:100_000])
    if problem == "foreign":
        torch.save({"weights": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="model.pt.*--ckpt_path"):
        load_network(path)


def test_a_model_of_another_width_says_which_settings_it_needs(bundle_root, shipped, tmp_path):
    parser = ConfigParser()
    parser.read_config(str(bundle_root / "configs" / "inference.json"))
    parser["decoder_size"] = "light"
    with pytest.raises(ValueError, match="size standard.*--decoder_size standard"):
        load_model(parser.get_parsed_content("network_def"), bundle_root / "models" / "model.pt")


# --- verbs


@pytest.mark.slow
def test_train_evaluate_and_segment_from_the_command_line(bundle_root, shipped, synthetic, tmp_path):
    """The whole path on the synthetic default, training from outside the bundle and the rest from inside."""
    printed = _run(
        bundle_root, "train", "--dataset_dir", synthetic, "--output_dir", tmp_path, "--max_epochs", 1,
        "--batches_per_epoch", 2, "--batch_size", 4, "--crop_size", 64, "--window_size", 64, "--cache_windows", 1,
        "--val_interval", 1, inside=False,
    )  # fmt: skip
    assert "val_dice" in printed
    model = tmp_path / "synthetic_pink_joint_seed0" / "model.pt"

    out = tmp_path / "evaluation"
    printed = _run(
        bundle_root, "evaluate", "--dataset_dir", synthetic, "--ckpt_path", model, "--split", "testing",
        "--output_dir", out,
    )  # fmt: skip
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics["domains"]) == {"synthetic_pink", "synthetic_dark", "synthetic_blurred"}
    for domain in metrics["domains"].values():
        for name in ("dice", "iou", "hd_px", "hd95_px", "surface_dice", "aji", "pq", "f1_50"):
            assert {"mean", "std", "n"} <= domain[name].keys(), name
        assert isinstance(domain["undefined"], int)
    with (out / "metrics.csv").open() as f:
        assert len(list(csv.DictReader(f))) == sum(d["images"] for d in metrics["domains"].values())
    assert len(list((out / "overlays").glob("synthetic_pink_*.png"))) == 6
    assert "dice" in printed


@pytest.mark.slow
def test_inferring_goes_on_after_a_broken_file(bundle_root, shipped, real_data, tmp_path):
    """Real tissue in several forms beside a broken file: all the others are segmented, at the size of the input."""
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    tile = Image.open(real_data / "tnbc" / "images" / "09_1.png").convert("RGB")
    tile.save(images / "rgb.png")
    tile.convert("L").save(images / "grey.tif")
    tile.convert("RGBA").crop((0, 0, 300, 200)).save(images / "odd_size.png")
    tile.crop((0, 0, 60, 45)).save(images / "smaller_than_a_tile.jpg", quality=95)
    Image.fromarray(np.asarray(tile.convert("L")).astype(np.uint16) * 257).save(images / "sixteen_bit.png")
    (images / "broken.png").write_bytes((images / "rgb.png").read_bytes()[:5000])

    printed = _run(bundle_root, "inference", "--dataset_dir", images, "--output_dir", out, code=1)
    assert "1 of 6 files failed" in printed
    with (out / "errors.csv").open() as f:
        (error,) = csv.DictReader(f)
    assert error["file"].endswith("broken.png")
    for path in images.iterdir():
        if path.stem == "broken":
            assert not list(out.glob("broken*"))
            continue
        mask = np.asarray(Image.open(out / f"{path.stem}_mask.png"))
        instances = np.asarray(Image.open(out / f"{path.stem}_instances.png"))
        assert mask.shape == instances.shape == Image.open(path).size[::-1]
        assert mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 255}
        assert instances.dtype == np.uint16 and ((instances > 0) == (mask > 0)).all()
        assert (out / f"{path.stem}_overlay.jpg").is_file()
    truth = np.asarray(Image.open(real_data / "tnbc" / "labels" / "09_1.png")) > 0
    found = np.asarray(Image.open(out / "rgb_mask.png")) > 0
    assert 2 * (truth & found).sum() / (truth.sum() + found.sum()) > 0.6, "the shipped model finds real nuclei"

    shutil.rmtree(out)
    for path in images.iterdir():
        if path.stem != "smaller_than_a_tile":
            path.unlink()
    _run(bundle_root, "inference", "--dataset_dir", images, "--output_dir", out, inside=False)
    assert (out / "summary.csv").is_file() and not (out / "errors.csv").exists()


@pytest.mark.slow
def test_a_misspelt_override_ends_with_one_clear_line(bundle_root, shipped, synthetic, tmp_path):
    printed = _run(bundle_root, "train", "--dataset_dir", synthetic, "--output_dir", tmp_path, "--max_epoch", 3, code=1)
    assert "did you mean 'max_epochs'" in printed.strip().splitlines()[-1]


def test_monais_own_checks_pass(bundle_root, shipped, monkeypatch, caplog):
    monkeypatch.chdir(bundle_root)
    with caplog.at_level(logging.INFO):
        verify_net_in_out("network_def", "configs/metadata.json", "configs/inference.json", n=2)
    assert "verified with no error" in caplog.text


def test_metadata_follows_the_schema(bundle_root, caplog):
    """`verify_metadata` with the schema beside the data, where there is one; the zoo's CI downloads it."""
    from conftest import SHARED

    schema = SHARED / "schema" / "meta_schema_20240725.json"
    if not schema.is_file():
        pytest.skip(f"metadata schema not found at {schema}; set AMA_SAM_TEST_DATA")
    with caplog.at_level(logging.INFO):
        verify_metadata(str(bundle_root / "configs" / "metadata.json"), str(schema))
    assert "metadata is verified" in caplog.text


# --- settings as a command line gives them


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
@pytest.mark.parametrize("config", ["train", "evaluate", "inference", "wsi", "align"])
def test_a_device_may_be_named_by_text(bundle_root, config, device):
    """`--device cuda:1` arrives as text; every key that follows from it must understand that."""
    parser = ConfigParser(ConfigParser.load_config_file(bundle_root / "configs" / f"{config}.json"))
    parser["device"] = device
    follows = [key for key in ("amp", "tile_batch_size", "num_workers", "workers") if key in parser.get()]
    values = {key: parser.get_parsed_content(key) for key in follows}
    assert values["amp"] is (device != "cpu")
    assert values.get("tile_batch_size") == (None if "tile_batch_size" not in values else 1 if device == "cpu" else 4)


def test_no_config_takes_a_device_to_be_an_object(bundle_root):
    for path in (bundle_root / "configs").glob("*.json"):
        assert not re.search(r"@device\.", path.read_text()), path.name


@pytest.mark.parametrize("config", ["evaluate", "inference", "wsi", "align"])
def test_a_model_needs_no_key_and_one_that_contradicts_it_is_refused(bundle_root, tmp_path, config):
    path = tiny_model(tmp_path / "model.pt")
    parser = ConfigParser(ConfigParser.load_config_file(bundle_root / "configs" / f"{config}.json"))
    parser.update({"bundle_root": str(bundle_root), "ckpt_path": str(path), "device": "cpu"})
    assert parser.get_parsed_content("network").image_encoder.backbone_type == "vit_test"
    assert parser.get_parsed_content("network_mpp") == 0.25, "the model's"
    parser["target_mpp"] = 0.5
    parser.parse(reset=True)
    assert parser.get_parsed_content("network_mpp") == 0.5
    parser["backbone"] = "vit_b"
    parser.parse(reset=True)
    with pytest.raises(Exception) as told:  # noqa: B017 which class MONAI wraps it in does not matter
        parser.get_parsed_content("network")
    assert "it has backbone vit_test, and --backbone says vit_b" in str(root_cause(told.value))


@pytest.mark.parametrize("backbone, stride", [("vit_test", 16), ("vit_test_half", 32)])
def test_domains_are_aligned_at_the_encoders_coarsest_stride(bundle_root, tmp_path, backbone, stride):
    given = {"backbone": backbone, "backbone_weights": "random", "ckpt_path": str(tmp_path / "none.pt")}
    for config in ("train", "inference"):
        parser = ConfigParser(ConfigParser.load_config_file(bundle_root / "configs" / f"{config}.json"))
        parser.update(given)
        assert parser.get_parsed_content("network_def").decoder.settings["aligned_stride"] == stride


def test_a_training_that_begins_with_a_model_builds_that_models_network(bundle_root, tmp_path):
    path = tiny_model(tmp_path / "model.pt", size="wide")
    parser = ConfigParser(ConfigParser.load_config_file(bundle_root / "configs" / "train.json"))
    parser.update({"init_model": str(path), "backbone_weights": "random"})
    keys = ("backbone", "decoder_size", "channels", "aligned_stride")
    assert [parser.get_parsed_content(key) for key in keys] == ["vit_test", "wide", 2, 16]
    parser = ConfigParser(ConfigParser.load_config_file(bundle_root / "configs" / "train.json"))
    assert parser.get_parsed_content("backbone") == "vit_t" and parser.get_parsed_content("decoder_size") == "standard"
