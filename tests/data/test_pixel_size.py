"""What a file says of its pixel size is used, in whatever of the usual ways it says it."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scripts.data.pixel_size import same_mpp, stated_mpp
from scripts.data.readers import LoadNucleid
from scripts.errors import DataError

PIXELS = np.full((20, 30, 3), 200, np.uint8)
OME = {"axes": "YXS", "PhysicalSizeX": 500, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 500, "PhysicalSizeYUnit": "nm"}
TIFFS = {
    "centimetres": ({"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}, 0.5),
    "inches": ({"resolution": (50800, 50800), "resolutionunit": "INCH"}, 0.5),
    "OME": ({"metadata": OME, "ome": True, "photometric": "rgb"}, 0.5),
    "ImageJ": ({"imagej": True, "resolution": (2, 2), "metadata": {"unit": "um"}}, 0.5),
    "ImageJ, micron": ({"imagej": True, "resolution": (2, 2), "metadata": {"unit": "micron"}}, 0.5),
    "ImageJ, \\u00B5m": ({"imagej": True, "resolution": (2, 2), "metadata": {"unit": "\\u00B5m"}}, 0.5),
    "a screen's 72 dpi": ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),
    "no unit": ({"resolution": (2, 2), "resolutionunit": "NONE"}, None),
    "nothing": ({}, None),
}


@pytest.mark.parametrize("kind", TIFFS)
def test_a_tiff_states_its_pixel_size(tmp_path, kind):
    arguments, expected = TIFFS[kind]
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, **arguments)
    assert stated_mpp(tmp_path / "a.tif") == pytest.approx(expected)
    item = LoadNucleid(["image"])({"image": str(tmp_path / "a.tif")})
    assert item["image"].meta["mpp_from"] == ("file" if expected else "unknown")
    assert item.get("mpp") == pytest.approx(expected)


def test_a_pngs_density_is_its_screens(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png", dpi=(50800, 50800))
    assert stated_mpp(tmp_path / "a.png") is None


def test_what_is_given_goes_before_what_the_file_states_and_a_difference_is_told(tmp_path, caplog):
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, resolution=(2e4, 2e4), resolutionunit="CENTIMETER")
    item = LoadNucleid(["image"])({"image": str(tmp_path / "a.tif"), "mpp": 0.25})
    assert item["mpp"] == 0.25 and item["image"].meta["mpp"] == 0.25 and item["image"].meta["mpp_from"] == "given"
    assert "a.tif: it states pixels of 0.5 um, but 0.25 are given" in caplog.text


def test_pixels_that_are_not_square_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, resolution=(2e4, 1e4), resolutionunit="CENTIMETER")
    with pytest.raises(DataError, match="a.tif.*not square"):
        stated_mpp(tmp_path / "a.tif")


@given(st.floats(0.05, 20), st.floats(0.9, 1.1))
def test_sizes_that_differ_by_less_than_a_fiftieth_are_the_same(mpp, ratio):
    assert same_mpp(mpp * ratio, mpp) == (abs(mpp * ratio / mpp - 1) <= 0.02)
