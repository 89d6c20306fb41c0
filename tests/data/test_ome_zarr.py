"""OME-Zarr images: pixels and pixel size as of any other file, and one sentence for what is no such image."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from scripts.data.images import list_images
from scripts.data.ome_zarr import open_ome_zarr
from scripts.data.readers import LoadNucleid, read_image, read_label
from scripts.errors import DataError
from scripts.files import walk_files
from scripts.slides.result_folder import check_folders
from zarrs import RED_GREEN_BLUE, edit_ngff, save_zarr


@pytest.fixture(scope="module")
def pixels(bundle_root) -> np.ndarray:
    """A tile of TNBC, (3, 320, 300)."""
    image = Image.open(bundle_root / "sample" / "sample_tnbc" / "images" / "01_1.png").convert("RGB")
    return np.ascontiguousarray(np.asarray(image)[:, :300].transpose(2, 0, 1))


@pytest.mark.parametrize("unit", ["micrometer", "nanometer", "millimeter"])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_pixels_and_pixel_size_are_those_of_the_store(pixels, tmp_path, version, unit):
    path = save_zarr(tmp_path / "a.ome.zarr", pixels, 0.25, version, unit=unit, levels=2, omero=RED_GREEN_BLUE)
    (item,) = list_images(tmp_path)
    assert item["image"] == str(path)
    image = LoadNucleid("image")(item)["image"]
    np.testing.assert_array_equal(image.numpy(), pixels)
    assert image.meta["mpp"] == pytest.approx(0.25) and image.meta["mpp_from"] == "file"
    assert open_ome_zarr(path).sizes == [(300, 320), (150, 160)]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_axes_of_length_one_and_their_order_do_not_matter(pixels, tmp_path, version):
    five = save_zarr(tmp_path / "5d.zarr", pixels[None, :, None], 0.25, version, "tczyx")
    last = save_zarr(tmp_path / "last.zarr", pixels.transpose(1, 2, 0), 0.25, version, "cyx")
    edit_ngff(last, _channels_last)  # as some write it, though NGFF wants them first
    for path in (five, last):
        assert open_ome_zarr(path).mpp == pytest.approx(0.25)
        np.testing.assert_array_equal(read_image(path), pixels.transpose(1, 2, 0))


def _channels_last(about: dict) -> None:
    (scales,) = about["multiscales"]
    scales["axes"] = scales["axes"][1:] + scales["axes"][:1]
    scales["datasets"][0]["coordinateTransformations"] = [{"type": "scale", "scale": [0.25, 0.25, 1.0]}]


def test_grey_and_no_unit(pixels, tmp_path):
    path = save_zarr(tmp_path / "a.zarr", pixels[0], None, axes="yx")
    np.testing.assert_array_equal(read_image(path), np.repeat(pixels[0][..., None], 3, 2))
    assert open_ome_zarr(path).mpp is None, "a scale of 1 without a unit is no pixel size"


def test_bio_formats_puts_images_into_numbered_groups(pixels, tmp_path):
    """Of several the largest, for a label or macro may come first."""
    zarr = pytest.importorskip("zarr")
    zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=2).attrs["bioformats2raw.layout"] = 3
    save_zarr(tmp_path / "a.zarr" / "0", pixels[:, :50, :50], 0.5, "0.4")
    save_zarr(tmp_path / "a.zarr" / "1", pixels, 0.25, "0.4")
    np.testing.assert_array_equal(read_image(tmp_path / "a.zarr"), pixels.transpose(1, 2, 0))


@pytest.mark.parametrize(
    ("axes", "shape", "what"),
    [
        ("czyx", (3, 4, 64, 64), "it has 4 planes in depth, and one plane is segmented"),
        ("tcyx", (5, 3, 64, 64), "it has 5 points in time, and one plane is segmented"),
        ("cyx", (4, 64, 64), "it has 4 channels, RGB has 3 and grey 1"),
    ],
)
def test_other_axes_are_refused_in_one_sentence(tmp_path, axes, shape, what):
    path = save_zarr(tmp_path / "a.zarr", np.zeros(shape, np.uint8), 0.25, axes=axes)
    with pytest.raises(DataError, match=f"a.zarr: {what}"):
        read_image(path)


def test_what_is_no_rgb_is_refused_in_one_sentence(pixels, tmp_path):
    deep = save_zarr(tmp_path / "deep.zarr", pixels.astype(np.uint16) * 16, 0.25)
    with pytest.raises(DataError, match="deep.zarr: its pixels are uint16, not uint8"):
        read_image(deep)
    colours = {"channels": [{"color": colour} for colour in ("0000FF", "00FF00", "FF0000")]}
    stains = save_zarr(tmp_path / "stains.zarr", pixels, 0.25, omero=colours)
    with pytest.raises(DataError, match="shown in the colours 0000FF, 00FF00, FF0000, which are not red"):
        read_image(stains)
    with pytest.raises(DataError, match="no label map"):
        read_label(save_zarr(tmp_path / "a.zarr", pixels, 0.25))


def test_what_is_no_image_is_refused_in_one_sentence(pixels, tmp_path):
    zarr = pytest.importorskip("zarr")
    old = save_zarr(tmp_path / "old.zarr", pixels, 0.25, "0.4")
    edit_ngff(old, lambda about: about["multiscales"][0].update(version="0.2"))
    plate = tmp_path / "plate.zarr"
    zarr.open_group(str(plate), mode="w", zarr_format=2).attrs["plate"] = {"wells": []}
    bare = tmp_path / "bare.zarr"
    zarr.open_group(str(bare), mode="w")
    (tmp_path / "empty.zarr").mkdir()
    gone = save_zarr(tmp_path / "gone.zarr", pixels, 0.25)
    edit_ngff(gone, lambda about: about["multiscales"][0]["datasets"][0].update(path="../old.zarr/0"))
    for path, what in [
        (old, "its NGFF version is 0.2, read are 0.4 and 0.5"),
        (plate, "it is a plate, no image"),
        (bare, r"there is no image \(multiscales\) in it"),
        (tmp_path / "empty.zarr", "it cannot be read as OME-Zarr"),
        (gone, "it cannot be read as OME-Zarr"),
    ]:
        with pytest.raises(DataError, match=f"{path.name}: {what}"):
            read_image(path)


def test_a_codec_that_executes_what_it_reads_is_refused(pixels, tmp_path):
    """numcodecs has one that unpickles: a store of a stranger must not get at it."""
    path = save_zarr(tmp_path / "a.zarr", pixels, 0.25, "0.4")
    (array,) = path.glob("*/.zarray")
    about = json.loads(array.read_text())
    array.write_text(json.dumps({**about, "filters": [{"id": "pickle"}], "compressor": None}))
    with pytest.raises(DataError, match="a.zarr: .*pickle"):
        read_image(path)


def test_damaged_chunks_are_told(pixels, tmp_path):
    path = save_zarr(tmp_path / "a.zarr", pixels, 0.25)
    chunks = [file for file in path.rglob("*") if file.is_file() and "c" in file.parts]
    chunks[0].write_bytes(b"broken")
    with pytest.raises(DataError, match="a.zarr: it is damaged"):
        read_image(path)


def test_a_store_is_one_file_only_where_it_is_asked_for(pixels, tmp_path):
    path = save_zarr(tmp_path / "a.zarr", pixels, 0.25)
    assert list(walk_files(tmp_path, stores=True)) == [path]
    assert path not in walk_files(tmp_path)


def test_without_zarr_the_sentence_says_what_to_install(bundle_root, tmp_path):
    (tmp_path / "a.zarr").mkdir()
    code = (
        "import sys; sys.modules['zarr'] = None\nfrom scripts.data.readers import read_image\nread_image(sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.zarr")], cwd=bundle_root, capture_output=True, text=True
    )
    assert "a.zarr: OME-Zarr needs zarr, which is not installed" in done.stderr
    assert "pip install 'zarr>=3.1'" in done.stderr


def test_results_do_not_go_into_a_store(tmp_path):
    store = tmp_path / "a.zarr"
    store.mkdir()
    for root, output in ((store, store), (store, store / "out"), (tmp_path, store), (tmp_path, store / "out")):
        with pytest.raises(DataError, match="a.zarr: results would lie in an image"):
            list_images(root, exclude=output)
    assert list_images(tmp_path, exclude=tmp_path / "out")
    with pytest.raises(DataError, match="this is where the data of .*a.zarr lie"):
        check_folders([(str(store), store / "a")], store)
    check_folders([(str(store), tmp_path / "a")], tmp_path)
