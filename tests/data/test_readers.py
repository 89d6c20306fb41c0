from __future__ import annotations

import json
import logging

import itk
import nibabel
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from scripts.data.readers import LoadNucleid, read_image, read_label
from scripts.errors import DataError

# asymmetric in every axis, so that any swap or flip shows
HEIGHT, WIDTH = 24, 40
RGB = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
LABEL = np.zeros((HEIGHT, WIDTH), np.int32)
LABEL[2:5, 3:9], LABEL[5:9, 3:7], LABEL[20:, 30:] = 1, 7, 300


def write(path, array):
    """Write an (H, W[, C]) array by the library that belongs to the suffix."""
    name = path.name
    if name.endswith((".nii", ".nii.gz")):
        nibabel.save(nibabel.Nifti1Image(array.swapaxes(0, 1), np.eye(4)), path)
    elif name.endswith((".mha", ".mhd", ".nrrd")):
        itk.imwrite(itk.image_from_array(np.ascontiguousarray(array), is_vector=array.ndim == 3), str(path))
    elif name.endswith((".tif", ".tiff")):
        tifffile.imwrite(path, array, photometric="rgb" if array.ndim == 3 else "minisblack")
    else:
        Image.fromarray(array).save(path)
    return path


@pytest.mark.parametrize(
    "suffix", [".png", ".bmp", ".tif", ".tiff", ".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".PNG"]
)
def test_rgb_is_the_same_in_every_format(tmp_path, suffix):
    image = read_image(write(tmp_path / f"x{suffix}", RGB))
    assert image.dtype == np.uint8 and image.flags.c_contiguous
    np.testing.assert_array_equal(image, RGB)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".nii.gz", ".mha", ".nrrd"])
def test_label_is_the_same_in_every_format(tmp_path, suffix):
    label = read_label(write(tmp_path / f"x{suffix}", LABEL.astype(np.uint16)))
    assert label.dtype == np.int32
    np.testing.assert_array_equal(label, LABEL)


def test_jpeg_is_read_nearly_unchanged(tmp_path):
    smooth = np.broadcast_to(np.linspace(0, 250, WIDTH)[None, :, None], RGB.shape).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "x.jpg", quality=98)
    assert np.abs(read_image(tmp_path / "x.jpg").astype(int) - smooth).max() < 8


def test_nifti_with_slice_axis_and_rgb_type(tmp_path):
    turned = RGB.swapaxes(0, 1)
    nibabel.save(nibabel.Nifti1Image(turned[:, :, None, :], np.eye(4)), tmp_path / "slice.nii")
    np.testing.assert_array_equal(read_image(tmp_path / "slice.nii"), RGB)
    structured = np.ascontiguousarray(turned).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    nibabel.save(nibabel.Nifti1Image(structured, np.eye(4)), tmp_path / "rgb24.nii")
    np.testing.assert_array_equal(read_image(tmp_path / "rgb24.nii"), RGB)


def test_grey_palette_and_one_bit_become_rgb(tmp_path):
    np.testing.assert_array_equal(read_image(write(tmp_path / "g.png", RGB[..., 0])), RGB[..., :1].repeat(3, 2))
    palette = Image.fromarray(RGB).quantize(8)
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_image(tmp_path / "p.png"), np.asarray(palette.convert("RGB")))
    Image.fromarray(LABEL > 0).save(tmp_path / "b.png")
    np.testing.assert_array_equal(read_image(tmp_path / "b.png")[..., 2], 255 * (LABEL > 0))


@pytest.mark.parametrize("constant", [255, 128, 0])
def test_constant_alpha_is_harmless(tmp_path, constant):
    alpha = np.full((HEIGHT, WIDTH, 1), constant, np.uint8)
    np.testing.assert_array_equal(read_image(write(tmp_path / "x.png", np.dstack([RGB, alpha]))), RGB)


def test_varying_alpha_is_composited_on_white(tmp_path):
    alpha = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)
    alpha[:, :10] = 0
    image = read_image(write(tmp_path / "x.png", np.dstack([RGB, alpha])))
    assert (image[:, :10] == 255).all()
    np.testing.assert_array_equal(image[:, 10:], RGB[:, 10:])


@pytest.mark.parametrize("layout", ["planar", "planes", "ome", "stack", "lzw", "16 bit"])
def test_tiff_layouts(tmp_path, layout):
    path, planes = tmp_path / "x.tif", RGB.transpose(2, 0, 1)
    if layout == "planar":
        tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate")
    elif layout == "planes":
        tifffile.imwrite(path, planes, photometric="minisblack")
    elif layout == "ome":
        path = tmp_path / "x.ome.tif"
        tifffile.imwrite(path, planes, metadata={"axes": "CYX"}, photometric="minisblack")
    elif layout == "stack":
        tifffile.imwrite(path, np.stack([RGB, 255 - RGB]), photometric="rgb")
    elif layout == "lzw":
        Image.fromarray(RGB).save(path, compression="tiff_lzw")
    else:
        tifffile.imwrite(path, RGB.astype(np.uint16) * 257, photometric="rgb")
    np.testing.assert_array_equal(read_image(path), RGB)


@pytest.mark.parametrize(
    "factor, full", [(1, 255), (4095 / 255, 4095), (65535 / 255, 65535)], ids=["8 of 16 bit", "12 bit", "16 bit"]
)
def test_deep_images_are_scaled_and_told_once(tmp_path, caplog, factor, full):
    bright = RGB.copy()
    bright[0, 0] = 255
    deep = np.rint(bright * factor).astype(np.uint16)
    paths = [write(tmp_path / "x.tif", deep), tmp_path / "x.png", write(tmp_path / "g.png", deep[..., 0])]
    itk.imwrite(itk.image_from_array(deep, is_vector=True), str(paths[1]))
    with caplog.at_level(logging.WARNING):
        for path in paths:
            image = read_image(path)
            read_image(path)
            assert np.abs(image.astype(int) - (bright if path.stem == "x" else bright[..., :1])).max() <= 1, path
            told = [record.getMessage() for record in caplog.records if str(path) in record.getMessage()]
            assert len(told) == 1 and str(full) in told[0]


def test_float_images(tmp_path):
    expected = RGB.astype(int)
    assert np.abs(read_image(write(tmp_path / "a.tif", (RGB / 255).astype(np.float32))) - expected).max() <= 1
    assert np.abs(read_image(write(tmp_path / "b.tif", RGB.astype(np.float32))) - expected).max() <= 1
    for value, name in ((np.nan, "n"), (-3.0, "m"), (4000.0, "l")):
        with pytest.raises(DataError, match="intensities"):
            read_image(write(tmp_path / f"{name}.tif", np.full((HEIGHT, WIDTH), value, np.float32)))


def test_exif_orientation_is_respected(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # shown turned by 90 degrees clockwise
    Image.fromarray(RGB).save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), np.rot90(RGB, -1))


@pytest.mark.parametrize("value", [1, 255])
def test_binary_mask_becomes_its_components(tmp_path, value):
    mask = (LABEL > 0).astype(np.uint8) * value
    mask[9, 7] = value  # touches the second nucleus by a corner only
    label = read_label(write(tmp_path / "x.png", mask))
    assert label.max() == 2, "nuclei touching by side or corner are one component of a binary mask"
    np.testing.assert_array_equal(label > 0, mask > 0)


def test_label_variants(tmp_path):
    np.testing.assert_array_equal(read_label(write(tmp_path / "a.tif", LABEL.astype(np.uint32))), LABEL)
    np.testing.assert_array_equal(read_label(write(tmp_path / "b.tif", LABEL.astype(np.float32))), LABEL)
    small = (LABEL % 255).astype(np.uint8)
    np.testing.assert_array_equal(read_label(write(tmp_path / "c.png", small[..., None].repeat(3, 2))), small)
    palette = Image.fromarray(small, mode="P")
    palette.putpalette(list(RGB.reshape(-1)[:768]))
    palette.save(tmp_path / "d.png")
    np.testing.assert_array_equal(read_label(tmp_path / "d.png"), small)
    huge = read_label(write(tmp_path / "e.tif", LABEL.astype(np.uint32) * 10_000_000))
    np.testing.assert_array_equal(np.unique(huge), [0, 1, 2, 3])


def test_label_without_nuclei_is_all_zeros(tmp_path):
    label = read_label(write(tmp_path / "x.png", np.zeros((HEIGHT, WIDTH), np.uint8)))
    assert label.shape == (HEIGHT, WIDTH) and not label.any()


def test_labels_that_are_no_labels(tmp_path):
    with pytest.raises(DataError, match="coloured"):
        read_label(write(tmp_path / "a.png", RGB))
    with pytest.raises(DataError, match="fractional"):
        read_label(write(tmp_path / "b.tif", (LABEL / 2).astype(np.float32)))
    with pytest.raises(DataError, match="negative"):
        read_label(write(tmp_path / "c.tif", -LABEL))
    Image.fromarray((LABEL > 0).astype(np.uint8)).save(tmp_path / "d.jpg")
    with pytest.raises(DataError, match="JPEG"):
        read_label(tmp_path / "d.jpg")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".nii", ".nii.gz", ".mha", ".nrrd"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "other", "missing"])
def test_damaged_files_are_named(tmp_path, suffix, damage):
    path = write(tmp_path / f"slide one{suffix}", RGB)
    if damage == "missing":
        path.unlink()
    else:
        whole = path.read_bytes()
        path.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "other": b"patient,age\n" * 40}[damage])
    with pytest.raises(DataError) as caught:
        read_image(path)
    assert str(path) in str(caught.value) and caught.value.hint
    assert "\n" not in str(caught.value), "an error is one line"


def test_wrong_shapes_and_suffixes(tmp_path):
    with pytest.raises(DataError, match="'.txt' is not known"):
        read_image(tmp_path / "notes.txt")
    with pytest.raises(DataError, match=r"\(24, 40, 7\)"):
        tifffile.imwrite(tmp_path / "x.tif", np.zeros((HEIGHT, WIDTH, 7)), photometric="minisblack", planarconfig=1)
        read_image(tmp_path / "x.tif")
    with pytest.raises(DataError, match="not a grey or RGB image"):
        read_image(write(tmp_path / "volume.nii", np.zeros((HEIGHT, WIDTH, 30), np.uint8)))


def test_load_nuclei(tmp_path):
    image, label = write(tmp_path / "i.png", RGB), write(tmp_path / "l.png", LABEL.astype(np.uint16))
    item = LoadNucleid()({"image": str(image), "label": str(label), "domain": 2})
    assert item["image"].dtype == torch.float32 and item["label"].dtype == torch.int32
    np.testing.assert_array_equal(item["image"].numpy(), RGB.transpose(2, 0, 1))
    np.testing.assert_array_equal(item["label"].numpy(), LABEL[None])
    assert item["image"].meta["filename_or_obj"] == str(image) and item["label"].meta["filename_or_obj"] == str(label)
    assert item["domain"] == 2
    assert set(LoadNucleid()({"image": str(image)})) == {"image"}, "an item without label stays without"


def test_load_nuclei_of_different_size(tmp_path):
    image = write(tmp_path / "i.png", RGB)
    label = write(tmp_path / "l.png", LABEL[:-2].astype(np.uint16))
    with pytest.raises(DataError) as caught:
        LoadNucleid()({"image": str(image), "label": str(label)})
    for part in (str(image), str(label), "40x24", "40x22"):
        assert part in str(caught.value)


@pytest.mark.parametrize("name", ["tnbc", "monuseg", "dsb2018_purple", "dsb2018_white", "dsb2018_fluo"])
def test_real_counts(real_data, name):
    sets = {entry["name"]: entry for entry in json.loads((real_data / "datasets.json").read_text())["datasets"]}
    labels = sorted((real_data / name / "labels").glob("*.png"))
    assert len(labels) == sets[name]["images"]
    assert sum(len(np.unique(read_label(path))) - 1 for path in labels) == sets[name]["nuclei"]


def test_real_image_colours(real_data):
    sets = {entry["name"]: entry for entry in json.loads((real_data / "datasets.json").read_text())["datasets"]}
    images = [read_image(path) for path in sorted((real_data / "tnbc" / "images").glob("*.png"))]
    mean = np.mean([image.mean((0, 1)) for image in images], axis=0)
    np.testing.assert_allclose(mean, sets["tnbc"]["mean_rgb"], atol=0.1)
