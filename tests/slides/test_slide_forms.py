"""Slides as people have them: the same pixels at the same places, or one clear sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from dicom_slides import save_dicom
from scripts.data.readers import read_image
from scripts.errors import DataError
from scripts.owned import OwnFiles
from scripts.slides.listing import list_slides, name_folders
from scripts.slides.reading import open_slide
from scripts.slides.tiles import TissueMap
from skimage.io import imsave

PIXELS = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
TILED = {"tile": (64, 64), "metadata": None, "resolution": (40000, 40000), "resolutionunit": "CENTIMETER"}
CLEAR = np.full((200, 300), 255, np.uint8)
CLEAR[:, :100] = 0
FORMS = {
    "grey": (PIXELS[..., 0], {"photometric": "minisblack"}),
    "white is zero": (PIXELS[..., 0], {"photometric": "miniswhite"}),
    "cmyk": (np.dstack([PIXELS, CLEAR]), {"photometric": "separated"}),
    "palette": (
        PIXELS[..., 0],
        {"photometric": "palette", "colormap": np.arange(768).reshape(3, 256).astype("u2") * 85},
    ),
    "alpha": (np.dstack([PIXELS, CLEAR]), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
    "constant alpha": (np.dstack([PIXELS, CLEAR * 0]), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
    "unknown fourth": (np.dstack([PIXELS, CLEAR]), {"photometric": "rgb", "extrasamples": ["unspecified"]}),
    "planar": (PIXELS.transpose(2, 0, 1), {"photometric": "rgb", "planarconfig": "separate"}),
    "planes": (PIXELS.transpose(2, 0, 1), {"photometric": "minisblack", "metadata": {"axes": "CYX"}, "ome": True}),
    "stack": (np.stack([PIXELS, 255 - PIXELS]), {"photometric": "rgb", "metadata": {"axes": "ZYXS"}, "ome": True}),
    "jpeg2000": (PIXELS, {"photometric": "rgb", "compression": "jpeg2000"}),
    "webp": (PIXELS, {"photometric": "rgb", "compression": "webp"}),
    "jpegxl": (PIXELS, {"photometric": "rgb", "compression": "jpegxl"}),
    "jpeg": (PIXELS, {"photometric": "rgb", "compression": "jpeg"}),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_slide_is_read_as_the_image_is(tmp_path, form):
    pixels, options = FORMS[form]
    path = tmp_path / ("x.ome.tif" if options.get("ome") else "x.tif")
    tifffile.imwrite(path, pixels, **{**TILED, **options})
    slide = open_slide(path)
    whole, bad = slide.read(0, 0, 300, 200, 1.0)
    assert not bad
    np.testing.assert_array_equal(whole, read_image(path))
    part, _ = slide.read(30, 50, 90, 70, 1.0)  # a region that is transparent all over is no other than the whole
    np.testing.assert_array_equal(part, whole[50:120, 30:120])


@pytest.mark.parametrize("full", [255, 4095, 65535])
def test_sixteen_bits_are_read_as_those_of_images_in_all_windows_alike(tmp_path, full):
    """A window without bright pixels must not be taken for one of fewer bits."""
    path = tmp_path / "x.tif"
    pixels = np.rint(PIXELS * (full / 255)).astype(np.uint16)
    pixels[:80, :80] = pixels[:80, :80] // 300
    pixels[100, 200] = full
    tifffile.imwrite(path, pixels, **TILED)
    slide, image = open_slide(path), read_image(path)
    np.testing.assert_array_equal(slide.read(0, 0, 300, 200, 1.0)[0], image)
    np.testing.assert_array_equal(slide.read(10, 10, 50, 50, 1.0)[0], image[10:60, 10:60])


@pytest.mark.parametrize("form", ["two channels", "four channels", "32 bit", "turned", "claims"])
def test_what_is_no_slide_is_told(tmp_path, form):
    path, options = tmp_path / "x.tif", dict(TILED)
    pixels = {"two channels": PIXELS[..., :2], "four channels": np.dstack([PIXELS, CLEAR])}.get(form, PIXELS)
    if "channels" in form:
        options |= {"photometric": "minisblack", "planarconfig": "contig"}
    elif form == "32 bit":
        pixels = PIXELS.astype(np.uint32)
    elif form == "turned":
        options["extratags"] = [(274, "H", 1, 6, True)]
    tifffile.imwrite(path, pixels, **options)
    if form == "claims":
        with tifffile.TiffFile(path, mode="r+") as tiff:
            for tag in ("ImageWidth", "ImageLength"):
                tiff.pages[0].tags[tag].overwrite(2_000_000, dtype="I")
    with pytest.raises(DataError, match="x.tif") as caught:
        open_slide(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("unit, size", [("m", 2.5e-7), ("in", 0.25 / 25400), ("mm", 2.5e-4), ("\u00b5m", 0.25)])
def test_units_of_ome(tmp_path, unit, size):
    about = {"axes": "YXS", "PhysicalSizeX": size, "PhysicalSizeXUnit": unit}
    about |= {"PhysicalSizeY": size, "PhysicalSizeYUnit": unit}
    tifffile.imwrite(tmp_path / "x.ome.tif", PIXELS, photometric="rgb", tile=(64, 64), metadata=about)
    assert open_slide(tmp_path / "x.ome.tif").mpp == pytest.approx(0.25)


def test_the_pixel_size_is_that_of_the_largest_picture(tmp_path):
    with tifffile.TiffWriter(tmp_path / "x.ome.tif", ome=True) as tiff:
        tiff.write(PIXELS[:64, :64], photometric="rgb", metadata={"axes": "YXS", "PhysicalSizeX": 9.0})
        size = {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}
        tiff.write(PIXELS, photometric="rgb", tile=(64, 64), metadata={"axes": "YXS", **size})
    slide = open_slide(tmp_path / "x.ome.tif")
    assert (slide.width, slide.height, slide.mpp) == (300, 200, 0.25)


def leica(path, left: int, top: int) -> None:
    """A Leica SCN of ``PIXELS``, scanned at a place of a larger glass."""
    nm, (height, width) = 250, PIXELS.shape[:2]
    glass = f'sizeX="{(width + 600) * nm}" sizeY="{(height + 400) * nm}"'
    tail = "<scanSettings><objectiveSettings><objective>40</objective></objectiveSettings><illuminationSettings>"
    tail += "<numericalAperture>0.65</numericalAperture><illuminationSource>brightfield</illuminationSource>"
    tail += "</illuminationSettings></scanSettings></image>"
    begin = '<creationDate>2020-01-01T00:00:00Z</creationDate><device model="Leica SCN400" version="1"/>'

    def image(name: str, ifd: int, size: str, view: str) -> str:
        pixels = f'<pixels {size}><dimension {size} r="0" ifd="{ifd}"/></pixels><view {view} spacingZ="0"/>'
        return f'<image name="{name}" uuid="urn:uuid:{ifd}">{begin}{pixels}{tail}'

    head = 'xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="urn:uuid:8"'
    main = f'sizeX="{width * nm}" sizeY="{height * nm}" offsetX="{left * nm}" offsetY="{top * nm}"'
    xml = f'<?xml version="1.0"?><scn {head}><collection name="X" uuid="urn:uuid:9" {glass}><barcode></barcode>'
    xml += image("macro", 0, 'sizeX="128" sizeY="128"', f'{glass} offsetX="0" offsetY="0"')
    xml += image("main", 1, f'sizeX="{width}" sizeY="{height}"', main) + "</collection></scn>"
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        options = {"tile": (64, 64), "photometric": "rgb", "compression": "jpeg", "metadata": None}
        options |= {"compressionargs": {"level": 98}, "resolutionunit": "CENTIMETER"}
        tiff.write(np.full((128, 128, 3), 230, np.uint8), description=xml, resolution=(1421, 1421), **options)
        tiff.write(PIXELS, resolution=(40000, 40000), **options)


def test_places_count_from_the_corner_of_what_was_scanned(tmp_path):
    leica(tmp_path / "x.scn", 300, 200)
    slide = open_slide(tmp_path / "x.scn")
    assert (slide.width, slide.height, slide.origin, slide.mpp) == (300, 200, (300, 200), 0.25)
    pixels, bad = slide.read(0, 0, 300, 200, 1.0)
    light = np.array([0.299, 0.587, 0.114])  # JPEG blurs the colours of noise
    assert not bad and np.abs((pixels - PIXELS.astype(int)) @ light).mean() < 10
    assert np.abs((np.roll(pixels, 1, 1) - PIXELS.astype(int)) @ light).mean() > 40


def test_lists_and_folders_of_slides(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, **TILED)
    for name, encoding in (("bom.txt", "utf-8-sig"), ("wide.txt", "utf-16")):
        (tmp_path / name).write_text("a.tif\n", encoding=encoding)
        assert list_slides(tmp_path / name) == [str(tmp_path / "a.tif")]
    elsewhere = tmp_path.parent / f"{tmp_path.name}_elsewhere"
    elsewhere.mkdir()
    tifffile.imwrite(elsewhere / "b.tif", PIXELS, **TILED)
    (tmp_path / "link").symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(tmp_path)
    assert list_slides(tmp_path) == [str(tmp_path / "a.tif"), str(tmp_path / "link" / "b.tif")]


def test_label_maps_in_sub_folders_of_results_are_no_slides(tmp_path, monkeypatch):
    (tmp_path / "results" / "patient").mkdir(parents=True)
    (tmp_path / "a.tif").touch()
    OwnFiles(tmp_path / "results").path("patient/b_instances.ome.tif").touch()
    assert list_slides(tmp_path) == [str(tmp_path / "a.tif")]
    monkeypatch.chdir(tmp_path / "results" / "patient")
    for folder in (tmp_path / "results" / "patient", "."):
        with pytest.raises(DataError, match="no slide found"):
            list_slides(folder)


@pytest.mark.parametrize("glass", [(245, 244, 246), (243, 236, 214), (226, 230, 246), (250, 250, 250)])
@pytest.mark.parametrize("tissue", [(225, 180, 205), (190, 140, 180)])
def test_tissue_is_found_on_tinted_glass(tmp_path, glass, tissue):
    pixels = np.full((1024, 1024, 3), glass, np.float64)
    pixels[256:512, 256:768] = np.multiply(tissue, np.divide(glass, 255))
    noisy = np.clip(pixels + np.random.default_rng(0).normal(0, 2, pixels.shape), 0, 255).astype(np.uint8)
    for name, values in (("colour", noisy), ("grey", noisy.mean(-1).astype(np.uint8))):
        options = {"photometric": "minisblack" if name == "grey" else "rgb"}
        tifffile.imwrite(tmp_path / f"{name}.tif", values, **{**TILED, **options})
        tissue_map = TissueMap(open_slide(tmp_path / f"{name}.tif"), (0, 0, 1024, 1024), 0.25)
        assert tissue_map.mask.mean() == pytest.approx(1 / 8, rel=0.06), name


def test_tiles_that_were_never_written_are_glass_on_a_slide_and_refused_in_an_image(tmp_path):
    """Scanners leave out what they did not scan; an image of which parts are missing was not copied whole."""
    tiles = [PIXELS[:64, :64], None, PIXELS[:64, 64:128], PIXELS[64:128, :64]]
    options = {**TILED, "photometric": "rgb", "shape": (128, 128, 3), "dtype": np.uint8}
    tifffile.imwrite(tmp_path / "x.tif", iter(tiles), **options)
    pixels, bad = open_slide(tmp_path / "x.tif").read(0, 0, 128, 128, 1.0)
    assert not bad and (pixels[:64, 64:] == 255).all()
    np.testing.assert_array_equal(pixels[64:, :64], PIXELS[:64, 64:128])
    with pytest.raises(DataError, match="x.tif: the file cannot be read .*never written"):
        read_image(tmp_path / "x.tif")


def test_the_files_of_a_dicom_series_are_one_slide(tmp_path):
    """Levels, label, overview and thumbnail of one series; another; annotations; what is no DICOM file stays."""
    pixels = np.random.default_rng(0).integers(0, 256, (128, 192, 3), dtype=np.uint8)
    for name, series, flavour in (
        ("a_label", "1.2.9", "LABEL"), ("b_overview", "1.2.9", "OVERVIEW"), ("c_thumbnail", "1.2.9", "THUMBNAIL"),
        ("d_level", "1.2.9", "VOLUME"), ("f_other", "1.2.8", "VOLUME"),
    ):  # fmt: skip
        save_dicom(tmp_path / f"{name}.dcm", pixels, series, flavour)
    save_dicom(tmp_path / "e_level.dcm", pixels[:64, :64], "1.2.9", mpp=0.75)
    save_dicom(tmp_path / "a_annotations.dcm", pixels, "1.2.7", Modality="ANN")
    (tmp_path / "g_nothing.dcm").write_bytes(b"nothing")
    found = [Path(path).name for path in list_slides(tmp_path)]
    assert found == ["d_level.dcm", "f_other.dcm", "g_nothing.dcm"]
    for name in ("d_level.dcm", "f_other.dcm"):
        slide = open_slide(tmp_path / name)
        assert (slide.width, slide.height, slide.mpp) == (192, 128, 0.25)
        np.testing.assert_array_equal(slide.read(0, 0, 192, 128, 1.0)[0], pixels)
    assert list_slides(tmp_path / "e_level.dcm") == [str(tmp_path / "e_level.dcm")], "what is named is taken"


@pytest.mark.parametrize("files, names", [
    (["1.2.3/a.dcm", "1.2.3/b.dcm", "p7/IM0.dcm", "deep/p8/IM0.dcm"], ["1.2.3", "deep/p8", "p7"]),
    (["IM0.dcm", "IM1.dcm"], ["cohort"]),
    (["IM0.dcm", "p7/IM0.dcm"], ["cohort", "p7"]),
    (["p7/x.dcm", "p7/y.dcm*", "q/x.svs"], ["p7/x", "p7/y", "q/x"]),  # two series in one folder; another format
    (["p7/IM0.dcm", "p7.svs"], ["p7_dcm", "p7_svs"]),
    (["p7/IM0.dcm", "p7/deeper/IM0.dcm"], ["p7_dcm", "p7/deeper"]),
    (["IM0.dcm", "cohort/IM0.dcm"], ["cohort_dcm", "cohort/IM0"]),
])  # fmt: skip
def test_results_of_a_series_are_named_by_its_folder(tmp_path, files, names):
    """``*``: of another series than the others of its folder."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    for file in files:
        path = tmp_path / "cohort" / file.rstrip("*")
        path.parent.mkdir(parents=True, exist_ok=True)
        save_dicom(path, pixels, f"1.2.{1 + file.endswith('*')}") if ".dcm" in file else path.write_bytes(b"")
    slides = list_slides(tmp_path / "cohort")
    folders = name_folders(slides, tmp_path / "out", tmp_path / "cohort")
    assert sorted(folder.relative_to(tmp_path / "out").as_posix() for folder in folders.values()) == sorted(names)


def test_results_of_a_dicom_file_that_was_named_are_named_by_it(tmp_path):
    path = save_dicom(tmp_path / "IM0.dcm", np.zeros((64, 64, 3), np.uint8), "1.2.1")
    assert name_folders([str(path)], tmp_path / "out", path) == {str(path): tmp_path / "out" / "IM0"}


def test_an_image_that_is_no_slide_is_told_what_takes_it(tmp_path):
    imsave(tmp_path / "a.png", np.zeros((20, 30, 3), np.uint8), check_contrast=False)
    with pytest.raises(DataError, match="a.png: it cannot be read as a slide .*, or segment it as an image by"):
        open_slide(tmp_path / "a.png")
