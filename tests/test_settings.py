"""Settings are judged before work: the table knows every key, and a wrong value is told in one sentence naming it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys

import pytest
from conftest import BUNDLE
from pydantic import TypeAdapter, ValidationError
from scripts.errors import DataError
from scripts.judging import allowed, is_programmed, judge
from scripts.settings import SETTINGS

# made of other keys, not to be set
DERIVED = {
    "learned",
    "network_mpp",
    "rank",
    "world_size",
    "identity",
    "is_not_rank0",
    "training_mode",
    "run_dir",
    "parent_name",
    "run_params",
    "run",
}
DEFAULTS = {config: json.loads((BUNDLE / "configs" / f"{config}.json").read_text()) for config in SETTINGS}
DEFAULTS["train"]["train"] = {"dataset": {"data": None}}


def _is_part(value):
    return isinstance(value, dict) and bool(value) or isinstance(value, list) and (not value or is_programmed(value))


@pytest.mark.parametrize("config", SETTINGS)
def test_table_and_config_have_the_same_keys(config):
    parts = ("variants", "displayable_configs")  # lists of the user's own programming
    plain = {key for key, value in DEFAULTS[config].items() if not _is_part(value)} - DERIVED - {*parts}
    assert not plain - set(SETTINGS[config]) and not set(SETTINGS[config]) - set(DEFAULTS[config])


@pytest.mark.parametrize("config", SETTINGS)
def test_what_the_configs_say_is_allowed(config):
    judge(config, DEFAULTS[config])
    if config == "train":
        for recipe in ("few_shot", "no_labels", "unseen"):
            judge(config, DEFAULTS[config], json.loads((BUNDLE / "configs" / f"{recipe}.json").read_text()))
    for setting in SETTINGS[config].values():
        assert allowed(setting) and setting.help and "\n" not in setting.help


def test_choices_are_those_the_code_knows():
    from scripts.data.annotation_style import GAPS
    from scripts.data.datalists import SPLITS
    from scripts.data.pixel_size import PLAUSIBLE_MPP
    from scripts.inference.outputs import OUTPUTS
    from scripts.inference.views import VIEWS
    from scripts.networks.adapters import ADAPTERS
    from scripts.networks.alignment_losses import DISTANCES
    from scripts.networks.domain_adversary import ALIGNED_AT, MODES
    from scripts.networks.hr_decoder import SIZES
    from scripts.networks.regions import ALIGNED_BY
    from scripts.networks.sam_encoders import BACKBONES, PRECISIONS
    from scripts.nuclei.instances import METHODS
    from scripts.nuclei.label_maps import LABEL_FORMATS
    from scripts.nuclei.metric_table import _TABLE
    from scripts.nuclei.targets import CHANNELS
    from scripts.sharing.packing import FORMATS
    from scripts.slides.nuclei_output import OUTPUTS as SLIDE_OUTPUTS

    train, inference = SETTINGS["train"], SETTINGS["inference"]
    for setting, choices in [
        (train["gaps"], GAPS), (train["mode"], MODES), (train["decoder_size"], SIZES), (train["backbone"], BACKBONES),
        (train["encoder_precision"], PRECISIONS), (train["targets"], CHANNELS), (inference["views"], map(str, VIEWS)),
        (train["adapters"], ADAPTERS), (train["aligned_at"], ALIGNED_AT), (train["aligned_by"], ALIGNED_BY),
        (train["alignment_loss"], ["adversary", *DISTANCES]),
        (inference["outputs"], OUTPUTS), (SETTINGS["wsi"]["outputs"], SLIDE_OUTPUTS),
        (inference["instance_method"], METHODS),
        (inference["label_format"], LABEL_FORMATS), (SETTINGS["evaluate"]["split"], SPLITS),
        (SETTINGS["share"]["format"], FORMATS), (SETTINGS["experiment"]["metrics"], [metric.name for metric in _TABLE]),
    ]:  # fmt: skip
        assert set(allowed(setting).split("one of ")[1].split(", ")) == set(choices)
    assert allowed(inference["mpp"]) == "a number from {} to {:g} or estimate or null".format(*PLAUSIBLE_MPP)


NOT_A_COUNT = (0, -3, 1.5, "two", math.nan, False, [1])
NOT_A_SHARE = (-0.1, 1.1, "half", math.nan)
WRONG = [
    *((config, "threshold", v) for config in ("inference", "wsi", "evaluate") for v in (0, 1, -1, 7, "a", math.nan)),
    *((config, "marker_depth", v) for config in ("inference", "wsi", "evaluate") for v in (0, 1.5, "deep", math.nan)),
    *((config, "mpp", v) for config in ("inference", "wsi", "prepare") for v in (0, -0.5, 250, "20x", math.inf)),
    *((config, "target_mpp", v) for config in ("inference", "train", "experiment", "align") for v in (0, "40x", -1)),
    *((config, "tile_size", v) for config in ("inference", "train", "wsi", "evaluate") for v in (0, 100, 512.0, "big")),
    *((config, "overlap", v) for config in ("inference", "evaluate") for v in (1, -0.1, "quarter", math.nan)),
    *(("train", key, v) for key in ("max_epochs", "batch_size", "cache_windows", "val_interval") for v in NOT_A_COUNT),
    *(("train", "learning_rate", v) for v in (-1, "1e-3x", 10, math.nan, math.inf, True)),
    *(("train", key, v) for key in ("lambda_max", "weight_decay", "auxiliary_weight") for v in (-1, "x", math.inf)),
    *(("train", key, v) for key in ("primary_share", "cache_rate", "held_out") for v in NOT_A_SHARE),
    *(("train", key, v) for key in ("patience", "num_workers", "warmup_iterations") for v in (-1, 0.5, "none of them")),
    *(("train", key, v) for key in ("resume", "amp", "compile", "start_counts") for v in ("yes", 1, 0, "maybe", [])),
    *((config, "min_area", v) for config in ("inference", "evaluate") for v in (-1, "small", math.nan, math.inf)),
    *((config, "min_solidity", v) for config in ("inference", "wsi", "evaluate") for v in (-1, 1.1, "round", math.nan)),
    *((config, "min_peak", v) for config in ("inference", "wsi", "evaluate") for v in (-0.1, 1, "sure", math.nan)),
    *((config, "seed", v) for config in ("train", "inference", "evaluate") for v in (-1, 1.5, "one", 2**32)),
    *((config, "device", v) for config in ("train", "inference", "wsi") for v in ("gpu", "cuda:x", 0, "cuda7", "")),
    *((config, "views", v) for config in ("inference", "wsi", "evaluate") for v in ("all", 3, 0, 2.5, 2.0, True)),
    *(("train", key, "choice") for key in ("mode", "backbone", "decoder_size", "targets", "keep", "cache", "publish")),
    ("train", "adapters", "some"), ("train", "lambda_warmup", 1), ("train", "spectral_norm", 1),
    *(("train", key, "choice") for key in ("alignment_loss", "aligned_by", "aligned_at")),
    ("train", "teacher", "a\0b"), ("train", "teacher_views", 3), ("train", "teacher_views", True),
    *(("train", "run_name", v) for v in ("../x", "a/b", "..", "", "/x", "x" * 300)),
    *(("experiment", "name", v) for v in ("../x", "a\\b", ".", " ")),
    *(("share", "name", v) for v in ("../x", "a/b")),
    *(("prepare", key, v) for key in ("validation_share", "testing_share") for v in (1, -0.1, "a tenth")),
    *(("prepare", "sha256", v) for v in ("abc", 5)),
    *(("prepare", "workers", v) for v in (-1, "all")),
    *(("wsi", "cluster", v) for v in ("local:0", "local:x", "tcp://host", "http://host:1", "", 3)),
    *(("wsi", "region", v) for v in ("1,2,3", "a,b,c,d", [0, 0, 10], "everything")),
    *(("evaluate", "split", v) for v in ("test", "validate", "train", 1, "")),
    *(("align", "splits", v) for v in (["test"], [], "validation,tests")),
    *(("align", "window_size", v) for v in (0, 100, "x")),
    *(("align", "min_groups", v) for v in (1, 0, 2.5)),
    *(("experiment", "seeds", v) for v in ("a,b", -1, [], [0.5])),
    *(("experiment", "limit_groups", v) for v in (0, "few", [0])),
    *(("experiment", "metrics", v) for v in (["dise"], "dice,dise", [])),
    *(("experiment", "confidence", v) for v in (0, 1, 95, "95%")),
    *(("experiment", "only", v) for v in ("amma", ["joint", "sngle"])),
    ("inference", "outputs", ["masks"]), ("inference", "label_format", "jpg"), ("train", "crop_size", 100),
    ("train", "output_dir", ""), ("train", "output_dir", "a\0b"), ("inference", "output_dir", __file__),
    ("train", "cache_dir", __file__), ("train", "coefficients", ["a"]), ("train", "limit_groups", 0),
    ("train", "limit_draw", -1),
    # what does not go together
    ("train", "window_size", 128), ("train", "primary_share", 0.01),
    ("train", "primary_share", 1.0), ("prepare", "validation_share", 0.9),
]  # fmt: skip


def test_true_is_no_number_nor_anything_else():
    for table in SETTINGS.values():
        for setting in table.values():
            if "true or false" not in allowed(setting):
                for value in (True, False, "true"):
                    with contextlib.suppress(ValidationError):
                        read = TypeAdapter(setting.kind).validate_python(value)
                        assert isinstance(read, str | list), setting  # a name or path may be "true"


def test_there_are_many_wrong_settings():
    assert len(WRONG) >= 150


@pytest.mark.parametrize("config, key, value", WRONG, ids=lambda value: str(value)[:24].replace("\0", "0"))
def test_a_wrong_setting_is_told_in_one_sentence_that_names_it(config, key, value):
    values = {**DEFAULTS[config], key: value}
    with pytest.raises(DataError) as told:
        judge(config, values)
    assert told.value.path == key and "\n" not in str(told.value)


@pytest.mark.parametrize(
    "config, key, given, read",
    [
        ("train", "resume", "True", True), ("train", "run_name", 2024, "2024"), ("train", "limit_groups", "null", None),
        ("train", "auxiliary", ("a", "b"), ["a", "b"]), ("train", "auxiliary", [], []),
        ("train", "auxiliary", "none", "none"),
        ("inference", "outputs", "mask,csv", ["mask", "csv"]), ("wsi", "region", (0, 0, 5, 5), [0, 0, 5, 5]),
        ("wsi", "region", "0,0,5,5", [0, 0, 5, 5]), ("experiment", "seeds", 3, [3]), ("inference", "mpp", 1, 1),
        ("inference", "mpp", None, None), ("experiment", "limit_groups", "1,2,all", [1, 2, "all"]),
    ],
)  # fmt: skip
def test_what_arrives_as_text_is_read(config, key, given, read):
    assert judge(config, DEFAULTS[config], {key: given}) == {key: read}


def test_programming_is_passed_over():
    assert judge("train", DEFAULTS["train"], {"max_epochs": "$2 + 2", "learning_rate": {"_target_": "x"}}) == {}


def test_a_near_name_is_offered():
    with pytest.raises(DataError, match="'test' is not .did you mean 'testing'"):
        judge("evaluate", DEFAULTS["evaluate"], {"split": "test"})


COMMANDS = [
    ("training", "train", ["--max_epochs", "0"], "max_epochs"),
    ("training", "train", ["--run_name", "../x"], "run_name"),
    ("training", "train", ["--max_epoch", "3"], "did you mean 'max_epochs'"),
    ("training", "train", ["--device", "cuda:99"], "there is no cuda:99"),
    ("caching", "train", ["--cache_windows", "0"], "cache_windows"),
    ("caching", "train", ["--cache_variants", "4"], "called 'cache_windows' now"),
    ("inferring", "inference", ["--threshold", "7"], "threshold"),
    ("evaluating", "evaluate", ["--split", "test"], "did you mean 'testing'"),
    ("aligning", "align", ["--window_size", "100"], "window_size"),
    ("experimenting", "experiment", ["--only", "amma"], "did you mean 'ama'"),
    ("comparing", "experiment", ["--metrics", "dise"], "did you mean 'dice'"),
    ("preparing", "prepare", ["--validation_share", "0.9"], "validation_share"),
    ("segmenting_slide", "wsi", ["--cluster", "2/2"], "cluster"),
    ("segmenting_slide", "wsi", ["--shard", "0/2"], "--cluster"),
    ("packing", "share", ["--name", "../x"], "name"),
    ("trainig", "train", [], "trainig: there is no such verb (did you mean 'training'?). This config has caching, "),
    ("inferring", "train", [], "inferring: there is no such verb"),
]


@pytest.mark.slow
@pytest.mark.parametrize("verb, config, arguments, told", COMMANDS)
def test_a_verb_ends_before_it_writes_anything(tmp_path, verb, config, arguments, told):
    places = ["--bundle_root", str(BUNDLE), "--output_dir", str(tmp_path / "out")]
    command = [sys.executable, "-m", "monai.bundle", "run", verb, "--config_file", f"{BUNDLE}/configs/{config}.json"]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [*command, *places, *arguments], cwd=tmp_path, capture_output=True, text=True, env=environment
    )
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("Error: ") and told in last
    assert "Traceback" not in done.stderr and not any(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path, monkeypatch):
    """Before work, and of a folder that is not there yet by the one that would hold it."""
    (tmp_path / "theirs").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: os.path.basename(path) != "theirs")
    judge("train", {"output_dir": str(tmp_path / "mine" / "out"), "cache_dir": str(tmp_path / "theirs")})
    for place in ("theirs", "theirs/new/out"):
        with pytest.raises(DataError, match="output_dir: it must be a folder that can be written to"):
            judge("train", {"output_dir": str(tmp_path / place)})


def test_what_has_no_discriminator_is_not_normalised():
    values = {"spectral_norm": True, "alignment_loss": "mmd", "mode": "ama"}
    with pytest.raises(DataError, match="^spectral_norm: alignment_loss mmd has no discriminator"):
        judge("train", values)
    judge("train", {**values, "mode": "single"})
    judge("train", {**values, "alignment_loss": "adversary"})


def test_notebooks_are_told_too_what_took_the_place_of_a_setting():
    from scripts.inference.in_memory import Segmenter

    config = BUNDLE / "configs" / "inference.json"
    with pytest.raises(DataError, match="^flips: there is no such setting any more. --views 2 or 4"):
        Segmenter(config, BUNDLE, {"flips": 2})
