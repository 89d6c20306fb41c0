"""What samples mean is what the file says: any type, order and photometric against a plain reference decoding."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scripts.data.readers import read_image, read_label, read_mask
from scripts.errors import DataError

RGB = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
RGB[0, :2] = [[0, 0, 0], [255, 255, 255]]
LABEL = np.zeros((24, 40), np.int32)
LABEL[2:5, 3:9], LABEL[5:9, 3:7], LABEL[20:, 30:] = 1, 7, 300


@settings(max_examples=120, deadline=None)
@given(
    top=st.sampled_from([("u1", 255), ("u2", 65535), ("u2", 255), ("i2", 255), ("i4", 65535), ("f4", 1), ("f8", 255)]),
    order=st.sampled_from("<>"),
    photometric=st.sampled_from(["minisblack", "miniswhite", "rgb", "planar", "planes", "palette", "cmyk"]),
    compression=st.sampled_from([None, "zlib", "lzw"]),
    tiled=st.booleans(),
    alpha=st.sampled_from([None, "unassalpha", "assocalpha", "unspecified"]),
    seed=st.integers(0, 99),
)
def test_any_tiff_is_what_it_was_made_of(tmp_path_factory, top, order, photometric, compression, tiled, alpha, seed):
    kind, full = top
    path = tmp_path_factory.getbasetemp() / "any.tif"
    shown = np.random.default_rng(seed).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    shown[0, :2] = [[0, 0, 0], [255, 255, 255]]
    options = {"compression": compression, "byteorder": order, "tile": (16, 16) if tiled else None}
    values = (shown * (full / 255)).astype(kind)
    tolerance = 0
    if photometric in ("minisblack", "miniswhite"):
        shown = shown[..., :1].repeat(3, 2)
        grey = values[..., 0]
        if photometric == "miniswhite":
            if np.dtype(kind).kind == "f":
                return
            whole = np.iinfo(kind).max
            # what is shown as black is the largest number of the type
            grey = (whole - (shown[..., 0].astype(np.int64) * whole // 255)).astype(kind)
            tolerance = 1
        tifffile.imwrite(path, grey, photometric=photometric, **options)
    elif photometric == "palette":
        table = np.random.default_rng(seed).integers(0, 256, (3, 256)).astype(np.uint16)
        tifffile.imwrite(path, shown[..., 0], photometric="palette", colormap=table * 257, **options)
        shown = table.T.astype(np.uint8)[shown[..., 0]]
    elif photometric == "cmyk":
        ink = np.dstack([255 - shown, np.zeros(shown.shape[:2], np.uint8)])
        tifffile.imwrite(path, ink, photometric="separated", **options)
    elif photometric == "planar":
        planes = values.transpose(2, 0, 1)
        tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate", **options)
    elif photometric == "planes":
        tifffile.imwrite(path, values.transpose(2, 0, 1), photometric="minisblack", metadata={"axes": "CYX"}, **options)
    elif alpha is None:
        tifffile.imwrite(path, values, photometric="rgb", **options)
    else:
        clear = np.full(shown.shape[:2], full, kind)
        clear[:, :7] = 0
        coloured = values * (clear > 0)[..., None] if alpha == "assocalpha" else values
        stored = np.dstack([coloured, clear]).astype(kind)
        tifffile.imwrite(path, stored, photometric="rgb", extrasamples=[alpha], **options)
        if alpha != "unspecified":
            shown[:, :7] = 255
        tolerance = 1
    assert np.abs(read_image(path).astype(int) - shown).max() <= tolerance


@pytest.mark.parametrize("codec", ["jpeg2000", "webp", "jpegxl", "zstd", "lzma"])
def test_codecs_in_tiff(tmp_path, codec):
    tifffile.imwrite(tmp_path / "x.tif", RGB, photometric="rgb", compression=codec)
    np.testing.assert_array_equal(read_image(tmp_path / "x.tif"), RGB)


@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation_of_a_tiff_is_that_of_pil(tmp_path, turn):
    for name, pixels in (("deep", RGB.astype(np.uint16) * 257), ("flat", RGB)):
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, photometric="rgb", extratags=[(274, "H", 1, turn, True)])
    exif = Image.Exif()
    exif[274] = turn
    Image.fromarray(RGB).save(tmp_path / "x.png", exif=exif)
    for name in ("deep", "flat"):
        np.testing.assert_array_equal(read_image(tmp_path / f"{name}.tif"), read_image(tmp_path / "x.png"))


@pytest.mark.parametrize("channels", [2, 4, 5])
@pytest.mark.parametrize("form", ["planes", "samples", "mha"])
def test_fluorescence_channels_are_no_colours(tmp_path, channels, form):
    values = np.random.default_rng(1).integers(0, 255, (channels, 24, 40), dtype=np.uint8)
    path = tmp_path / "x.tif"
    if form == "planes":
        tifffile.imwrite(path, values, photometric="minisblack", metadata={"axes": "CYX"}, ome=True)
    elif form == "samples":
        tifffile.imwrite(path, values.transpose(1, 2, 0), photometric="minisblack", planarconfig="contig")
    else:
        import itk

        path = tmp_path / "x.mha"
        itk.imwrite(itk.image_from_array(np.ascontiguousarray(values.transpose(1, 2, 0)), is_vector=True), str(path))
    with pytest.raises(DataError, match=r"x\..*not"):
        read_image(path)


def test_floats_of_neither_range(tmp_path):
    values = RGB / np.float32(255)
    values[3, 3] = 1.02  # resampling overshoots
    tifffile.imwrite(tmp_path / "over.tif", values.astype(np.float32), photometric="rgb")
    expected = RGB.copy()
    expected[3, 3] = 255
    np.testing.assert_array_equal(read_image(tmp_path / "over.tif"), expected)
    values[3, 3] = 40
    tifffile.imwrite(tmp_path / "hot.tif", values.astype(np.float32), photometric="rgb")
    with pytest.raises(DataError, match="hot.tif.*at most 1"):
        read_image(tmp_path / "hot.tif")
    tifffile.imwrite(tmp_path / "complex.tif", RGB[..., 0].astype(np.complex64))
    with pytest.raises(DataError, match="complex"):
        read_image(tmp_path / "complex.tif")
    with pytest.raises(DataError, match="complex"):
        read_label(tmp_path / "complex.tif")


def test_the_largest_picture_is_the_one(tmp_path):
    with tifffile.TiffWriter(tmp_path / "x.ome.tif", ome=True) as tiff:
        tiff.write(RGB[:8, :8], photometric="rgb", metadata={"axes": "YXS", "Name": "label"})
        tiff.write(RGB, photometric="rgb", metadata={"axes": "YXS", "Name": "main"})
    with tifffile.TiffWriter(tmp_path / "y.tif") as tiff:
        tiff.write(RGB[::4, ::4], photometric="rgb", subfiletype=1, metadata=None)
        tiff.write(RGB, photometric="rgb", metadata=None)
    for name in ("x.ome.tif", "y.tif"):
        np.testing.assert_array_equal(read_image(tmp_path / name), RGB)


def test_labels_are_what_is_stored_whatever_is_shown(tmp_path):
    mask = LABEL > 0
    tifffile.imwrite(tmp_path / "ids.tif", LABEL.astype(np.uint16), photometric="miniswhite")
    np.testing.assert_array_equal(read_label(tmp_path / "ids.tif"), LABEL)
    tifffile.imwrite(tmp_path / "last_axis.tif", LABEL[..., None].astype(np.uint16))
    np.testing.assert_array_equal(read_label(tmp_path / "last_axis.tif"), LABEL)
    for name, values in (("bits", mask), ("bytes", mask.astype(np.uint8) * 255)):
        tifffile.imwrite(tmp_path / f"{name}.tif", values, photometric="miniswhite")
        np.testing.assert_array_equal(read_label(tmp_path / f"{name}.tif") > 0, mask)
        np.testing.assert_array_equal(read_mask(tmp_path / f"{name}.tif"), mask)


def test_what_can_be_no_label_map(tmp_path):
    Image.fromarray(LABEL > 0).save(tmp_path / "fax.tif", compression="group4", tiffinfo={262: 0})
    tifffile.imwrite(tmp_path / "jpeg.tif", RGB, photometric="rgb", compression="jpeg")
    Image.fromarray(RGB).save(tmp_path / "jpeg.png", format="JPEG")
    tifffile.imwrite(tmp_path / "stack.tif", np.stack([LABEL, LABEL]).astype(np.uint16))
    alpha = np.dstack([RGB * 0, (LABEL > 0).astype(np.uint8) * 255])
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    for name in ("fax.tif", "jpeg.tif", "jpeg.png", "stack.tif", "alpha.png"):
        for read in (read_label, read_mask):
            with pytest.raises(DataError, match=name):
                read(tmp_path / name)


@pytest.mark.parametrize("suffix", [".nii", ".mha", ".nrrd", ".tif"])
def test_headers_that_claim_too_much_are_refused_before_pixels_are_read(tmp_path, suffix):
    path = tmp_path / f"bomb{suffix}"
    if suffix == ".nii":
        import nibabel

        header = nibabel.Nifti1Header()
        header.set_data_shape((30000, 30000, 10))
        header.set_data_dtype(np.float64)
        header["vox_offset"], header["magic"] = 352, b"n+1"
        path.write_bytes(header.binaryblock + bytes(400))
    elif suffix == ".mha":
        path.write_text(
            "ObjectType = Image\nNDims = 2\nBinaryData = True\nDimSize = 60000 60000\n"
            "ElementType = MET_DOUBLE\nElementDataFile = LOCAL\n"
        )
    elif suffix == ".nrrd":
        path.write_text("NRRD0004\ntype: double\ndimension: 2\nsizes: 60000 60000\nencoding: gzip\nendian: little\n\n")
    else:
        tifffile.imwrite(path, shape=(2**15, 2**15, 3), dtype=np.uint8, tile=(2**14, 2**14), photometric="rgb")
    with pytest.raises(DataError, match="too large") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)
