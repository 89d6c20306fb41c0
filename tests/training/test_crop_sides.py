"""Sides of crops and windows: those that the encoder takes are trained on, others are told before any work."""

from __future__ import annotations

import json

import pytest
from scripts.errors import DataError, root_cause

SHORT = {"max_epochs": 1, "domain_images": 0, "overlay_images": 0}


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "single", "crop_size": 80, "alignment_report": True}, {"adapters": "late", "crop_size": 80},
        {"mode": "single", "crop_size": 272, "window_size": 384},  # larger than images that are made smaller
        {"mode": "single", "crop_size": 96, "window_size": 96, "cache": "off", "alignment_report": True},
    ],
    ids=str,
)  # fmt: skip
def test_a_crop_need_only_fit_what_the_step_does_with_it(open_training, tmp_path, settings):
    open_training(tmp_path, **SHORT, **settings).run()
    assert list(tmp_path.glob("*_seed0/model.pt")) and not list(tmp_path.glob("*_seed0/alignment.*"))


def test_windows_of_the_alignment_report_are_what_the_network_takes_of_a_crop(open_training, tmp_path):
    open_training(tmp_path, **SHORT, crop_size=80, alignment_report=True, alignment_windows=4).run()
    report = json.loads(next(tmp_path.glob("*_seed0/alignment.json")).read_text())
    assert report["provenance"]["window_size"] == 64
    assert all(domain["window_sides"] == [[64, 64]] for domain in report["domains"].values())


@pytest.mark.parametrize("mode", ["ama", "single"])
@pytest.mark.parametrize(
    "settings, told",
    [
        ({"crop_size": 80, "cache": "off"}, "crop_size: it must be a multiple of 32 for vit_test with cache off"),
        ({"crop_size": 80, "backbone": "vit_test_half"}, "crop_size: it must be a multiple of 32 for vit_test_half"),
        ({"window_size": 112}, "window_size: it must be a multiple of 32 for vit_test with cache on, and 112 is not"),
    ],
    ids=str,
)
def test_other_sides_are_told_before_any_image_is_encoded(open_training, tmp_path, mode, settings, told):
    with pytest.raises(Exception) as error:  # noqa: B017 which class MONAI wraps it in does not matter
        open_training(tmp_path, **SHORT, mode=mode, cache_dir=str(tmp_path / "features"), **settings).run()
    assert isinstance(root_cause(error.value), DataError) and str(root_cause(error.value)).startswith(told)
    assert not (tmp_path / "features").exists()
