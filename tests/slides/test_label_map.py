"""A slide's label map: what the outlines say, pixel by pixel, with little in memory."""

from __future__ import annotations

import json
import tracemalloc

import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
import tifffile
from results import read_geojson
from scripts.data.pixel_size import stated_mpp
from scripts.nuclei.ome_tiff import write_ome_tiff
from scripts.slides.label_map import slide_label_map
from slides import make_drawing, save_slide, segment_slide

MPP = 0.2  # of the slide; the network sees 0.25


def assert_drawn(ids: np.ndarray, features: list[dict]) -> None:
    """Pixel centres within an outline of the GeoJSON have its id, others 0; those on an outline have either."""
    inside, touched = np.zeros(ids.shape, np.int64), np.zeros(ids.shape, bool)
    for feature in features:
        outline = shapely.geometry.shape(feature["geometry"])
        x0, y0, x1, y1 = (int(side) for side in outline.bounds)
        y, x = np.mgrid[y0 : min(y1 + 2, ids.shape[0]), x0 : min(x1 + 2, ids.shape[1])]
        within = shapely.contains_xy(outline, x + 0.5, y + 0.5)
        on = shapely.intersects_xy(outline, x + 0.5, y + 0.5) & ~within
        inside[y[within], x[within]] = feature["properties"]["measurements"]["id"]
        touched[y[on], x[on]] = True
    np.testing.assert_array_equal(np.where(touched, 0, ids), np.where(touched, 0, inside))
    assert inside.any() and touched.sum() < 0.05 * (inside > 0).sum()


@pytest.fixture(scope="module")
def folder(bundle_root, tmp_path_factory):
    drawing = make_drawing(2507, 1803, seed=2)
    path = save_slide(tmp_path_factory.mktemp("in") / "a.tif", drawing, MPP)
    return segment_slide(bundle_root, path, tmp_path_factory.mktemp("out"), outputs="geojson,parquet,ome.tif")


def test_ids_and_pixel_size_are_those_of_the_other_outputs(folder):
    ids = tifffile.imread(folder / "nuclei.ome.tif")
    assert ids.shape == (1803, 2507) and len(np.unique(ids)) > 80
    assert_drawn(ids, read_geojson(folder / "nuclei.geojson"))
    table = geopandas.read_parquet(folder / "nuclei.parquet")
    assert set(np.unique(ids)) - {0} == set(table.id)
    assert stated_mpp(folder / "nuclei.ome.tif") == pytest.approx(MPP)
    assert "nuclei.arrows" not in {path.name for path in folder.iterdir()}
    assert json.loads((folder / "summary.json").read_text())["nuclei"] == ids.max()


def test_smaller_levels_have_every_other_pixel(folder):
    with tifffile.TiffFile(folder / "nuclei.ome.tif") as tiff:
        whole, *smaller = (level.asarray() for level in tiff.series[0].levels)
    assert [level.shape for level in smaller] == [(902, 1254), (451, 627)]
    for step, level in zip((2, 4), smaller):
        np.testing.assert_array_equal(level, whole[::step, ::step])


def test_bioio_reads_it_as_it_is(folder):
    reader = pytest.importorskip("bioio_ome_tiff").Reader(folder / "nuclei.ome.tif")
    np.testing.assert_array_equal(reader.data.squeeze(), tifffile.imread(folder / "nuclei.ome.tif"))
    assert (reader.physical_pixel_sizes.X, reader.physical_pixel_sizes.Y) == pytest.approx((MPP, MPP))


def test_a_region_is_a_map_of_the_whole_slide(bundle_root, tmp_path):
    """So that it lies on the slide as the outlines do; without tissue it is empty."""
    path = save_slide(tmp_path / "a.tif", make_drawing(1803, 1507, seed=2), MPP)
    options = {"outputs": "geojson,ome.tif", "region": "300,200,700,500"}
    folder = segment_slide(bundle_root, path, tmp_path / "out", **options)
    ids = tifffile.imread(folder / "nuclei.ome.tif")
    assert ids.shape == (1507, 1803)
    assert_drawn(ids, read_geojson(folder / "nuclei.geojson"))
    empty = segment_slide(
        bundle_root, path, tmp_path / "out2", **{**options, "region": "0,0,400,400", "tissue_threshold": 0.9}
    )
    ids = tifffile.imread(empty / "nuclei.ome.tif")
    assert ids.shape == (1507, 1803) and not ids.any()


def test_memory_holds_a_few_tiles_of_a_slide(folder, tmp_path):
    """The nuclei of a slide of 1.6 GB as a map, whose stream is kept here by asking for GeoParquet's rows."""
    nuclei = pq.read_table(folder / "nuclei.parquet").combine_chunks()
    with pa.OSFile(str(tmp_path / "s"), "wb") as file, pa.ipc.new_stream(file, nuclei.schema) as stream:
        stream.write_table(nuclei, max_chunksize=40)
    tracemalloc.start()
    write_ome_tiff(tmp_path / "a.ome.tif", slide_label_map(tmp_path / "s", (20_000, 40_000), MPP), "a")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**25
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as tiff:
        assert [len(level.pages) for level in tiff.series[0].levels] == [1] * 7
