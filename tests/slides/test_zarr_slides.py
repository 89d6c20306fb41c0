"""OME-Zarr slides in, label maps as OME-Zarr out: as with any other format, and readable by users' tools."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from results import read_geojson
from scripts.nuclei.label_pyramid import pyramid_of
from scripts.nuclei.ome_zarr import write_ome_zarr
from scripts.owned import OwnFiles
from scripts.slides.listing import list_slides
from scripts.slides.reading import open_slide
from slides import make_drawing, save_slide, segment_slide
from zarrs import save_zarr

MPP = 0.2  # of the slides; the network sees 0.25
SIZE = 1807, 1503


@pytest.fixture(scope="module")
def drawing():
    return make_drawing(*SIZE, seed=2)


@pytest.fixture(scope="module", params=["0.4", "0.5"])
def store(request, drawing, tmp_path_factory) -> Path:
    pixels = drawing.draw(0, 0, *SIZE, 1).transpose(2, 0, 1)
    return save_zarr(tmp_path_factory.mktemp("in") / "a.ome.zarr", pixels, MPP, request.param, levels=3)


@pytest.fixture(scope="module")
def result(bundle_root, store, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out")
    before = contents(store)
    segment_slide(bundle_root, store, out, outputs="geojson,ome.tif,ome.zarr")
    assert contents(store) == before, "results go beside the user's store"
    return out / "a"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_its_nuclei_are_those_of_the_same_slide_as_tiff(bundle_root, drawing, store, result, tmp_path):
    slide = open_slide(store)
    assert slide.sizes == [(1807, 1503), (904, 752), (452, 376)] and slide.mpp == pytest.approx(MPP)
    tiff = segment_slide(bundle_root, save_slide(tmp_path / "a.tif", drawing, MPP, levels=(1,)), tmp_path / "out")
    outlines = [[f["geometry"] for f in read_geojson(folder / "nuclei.geojson")] for folder in (result, tiff)]
    assert outlines[0] == outlines[1] and len(outlines[0]) > 50
    assert json.loads((result / "summary.json").read_text())["slide"] == str(store)


def test_ome_zarr_reads_the_labels(result):
    reader, io = pytest.importorskip("ome_zarr.reader"), pytest.importorskip("ome_zarr.io")
    ids = tifffile.imread(result / "nuclei.ome.tif")
    nodes = list(reader.Reader(io.parse_url(result / "nuclei.ome.zarr" / "labels" / "nuclei"))())
    label = next(node for node in nodes if any(isinstance(spec, reader.Label) for spec in node.specs))
    assert [level.shape for level in label.data] == [(1503, 1807), (752, 904)]
    np.testing.assert_array_equal(np.asarray(label.data[0]), ids)
    np.testing.assert_array_equal(np.asarray(label.data[1]), ids[::2, ::2])
    (steps,) = label.metadata["coordinateTransformations"][0]
    assert steps == {"type": "scale", "scale": [MPP, MPP]}
    assert [axis["unit"] for axis in label.metadata["axes"]] == ["micrometer"] * 2
    names = list(reader.Reader(io.parse_url(result / "nuclei.ome.zarr" / "labels"))())
    assert names, "the group lists its labels"


def test_bioio_reads_the_labels(result):
    reader = pytest.importorskip("bioio_ome_zarr").Reader(result / "nuclei.ome.zarr")
    np.testing.assert_array_equal(reader.data.squeeze(), tifffile.imread(result / "nuclei.ome.tif"))
    assert (reader.physical_pixel_sizes.X, reader.physical_pixel_sizes.Y) == pytest.approx((MPP, MPP))


def test_its_metadata_are_as_ngff_demands(result):
    models = pytest.importorskip("ome_zarr_models.v04")
    import zarr

    root = zarr.open_group(str(result / "nuclei.ome.zarr"), mode="r")
    assert models.Image.from_zarr(root).attributes.multiscales[0].axes[0].unit == "micrometer"
    assert models.Labels.from_zarr(root["labels"]).attributes.labels == ["nuclei"]
    assert models.ImageLabel.from_zarr(root["labels/nuclei"]).attributes.image_label.source.image == "../../"


def test_a_finished_result_is_replaced_whole_and_only_if_all_of_it_is_ours(bundle_root, store, tmp_path):
    options = {"outputs": "ome.zarr", "region": "0,0,900,700"}
    segment_slide(bundle_root, store, tmp_path, **options)
    folder = tmp_path / "a"
    first = contents(folder / "nuclei.ome.zarr")
    segment_slide(bundle_root, store, tmp_path, **options, resume=False)
    assert contents(folder / "nuclei.ome.zarr") == first and not list(tmp_path.glob(".a.*"))
    assert not OwnFiles(folder).others()
    (folder / "nuclei.ome.zarr" / "labels" / "mine").write_text("precious")
    with pytest.raises(SystemExit, match="mine: it was not written by this bundle"):
        segment_slide(bundle_root, store, tmp_path, **options, resume=False)
    assert (folder / "nuclei.ome.zarr" / "labels" / "mine").read_text() == "precious"


def test_a_folder_of_slides_has_stores_but_no_label_maps_of_ours(store, result, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.ome.zarr").symlink_to(store)
    (tmp_path / "in" / "results").symlink_to(result)
    assert list_slides(tmp_path / "in") == [str(tmp_path / "in" / "a.ome.zarr")]
    assert list_slides(store) == [str(store)]


def test_damaged_chunks_are_listed_and_white(bundle_root, drawing, tmp_path):
    pixels = drawing.draw(0, 0, *SIZE, 1).transpose(2, 0, 1)
    path = save_zarr(tmp_path / "a.ome.zarr", pixels, MPP)
    (chunk,) = path.glob("*/c/0/2/2")
    chunk.write_bytes(b"broken")
    folder = segment_slide(bundle_root, path, tmp_path / "out", tissue_threshold=0).with_name("a")
    with (folder / "unread.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    near = 256 / 8 + 10  # how far damage is narrowed down, and what resampling looks at besides
    assert rows and all(int(row["x"]) > 512 - near and int(row["x"]) + int(row["width"]) < 768 + near for row in rows)


def test_memory_and_disk_hold_what_has_nuclei(tmp_path):
    pytest.importorskip("zarr")
    ids = np.zeros((5000, 5000), np.int32)
    ids[10:20, 10:20] = 70_000
    write_ome_zarr(tmp_path / "a.zarr", pyramid_of(ids), "a")
    chunks = [path for path in (tmp_path / "a.zarr").rglob("*") if path.is_file() and not path.name.startswith(".")]
    assert len(chunks) == 4, "one of each level"
