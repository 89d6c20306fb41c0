"""Label maps as OME-TIFF, read back by the tools that users have."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from scripts.data.pixel_size import stated_mpp
from scripts.data.readers import read_label
from scripts.nuclei.label_maps import save_label_map


@pytest.fixture
def ids() -> np.ndarray:
    """(1500, 2100) with 70,000 nuclei of 5 x 5 pixels."""
    rows, columns = np.mgrid[:1500, :2100]
    nuclei = (rows // 6) * 350 + columns // 6 + 1
    return np.where((rows % 6 < 5) & (columns % 6 < 5) & (nuclei <= 70_000), nuclei, 0).astype(np.int32)


def test_it_is_tiled_with_levels_that_mix_no_ids(ids, tmp_path):
    save_label_map(tmp_path / "a.ome.tif", ids, 0.25)
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as tiff:
        assert tiff.is_ome and tiff.pages.first.is_tiled
        levels = [level.asarray() for level in tiff.series[0].levels]
    assert [level.shape for level in levels] == [(1500, 2100), (750, 1050), (375, 525)]
    for step, level in zip((1, 2, 4), levels):
        np.testing.assert_array_equal(level, ids[::step, ::step])
    assert stated_mpp(tmp_path / "a.ome.tif") == pytest.approx(0.25)
    np.testing.assert_array_equal(read_label(tmp_path / "a.ome.tif"), ids)
    assert not list(tmp_path.glob(".*")), "something half-written stayed"


def test_few_nuclei_take_16_bits_and_an_unknown_pixel_size_stays_unknown(tmp_path):
    save_label_map(tmp_path / "a.ome.tif", np.eye(40, 30, dtype=np.int32) * 7)
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as tiff:
        assert tiff.series[0].dtype == np.uint16 and len(tiff.series[0].levels) == 1
        assert "PhysicalSize" not in tiff.ome_metadata
    assert stated_mpp(tmp_path / "a.ome.tif") is None


def test_ome_types_reads_it(ids, tmp_path):
    ome_types = pytest.importorskip("ome_types")
    save_label_map(tmp_path / "a.ome.tif", ids, 0.25)
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as tiff:
        (image,) = ome_types.from_xml(tiff.ome_metadata, validate=True).images
    pixels = image.pixels
    assert (image.name, pixels.size_x, pixels.size_y, pixels.type.value) == ("a", 2100, 1500, "uint32")
    assert (pixels.physical_size_x, pixels.physical_size_y) == (0.25, 0.25)
    assert pixels.physical_size_x_unit.value == pixels.physical_size_y_unit.value == "µm"


def test_bioio_reads_it(ids, tmp_path):
    reader = pytest.importorskip("bioio_ome_tiff").Reader
    save_label_map(tmp_path / "a.ome.tif", ids, 0.25)
    read = reader(tmp_path / "a.ome.tif")
    np.testing.assert_array_equal(read.data.squeeze(), ids)
    assert (read.physical_pixel_sizes.X, read.physical_pixel_sizes.Y) == (0.25, 0.25)
