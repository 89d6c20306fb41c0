"""
Files as people have them, each with its right answer: the right pixels or nuclei, or one sentence that names the file.

Run with ``-s`` to see the counts.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from scripts.data.label_checks import look_at_label
from scripts.data.readers import read_image, read_label
from scripts.errors import DataError
from scripts.preparing.formats.reading import read_sample
from scripts.preparing.layouts import Sample
from scripts.slides.reading import open_slide

SIDE = 160
COUNTS: Counter[str] = Counter()
rng = np.random.default_rng(0)
RGB = rng.integers(0, 256, (SIDE, SIDE + 32, 3), dtype=np.uint8)
RGB[0, :2] = [[0, 0, 0], [255, 255, 255]]
GREY = RGB[..., :1].repeat(3, 2)
LABEL = np.zeros(RGB.shape[:2], np.int32)
for index in range(25):
    LABEL[index // 5 * 30 + 5 : index // 5 * 30 + 20, index % 5 * 35 + 5 : index % 5 * 35 + 17] = index + 1
CLEAR = np.full(RGB.shape[:2], 255, np.uint8)
CLEAR[:, :40] = 0
ON_WHITE = np.where(CLEAR[..., None] > 0, RGB, 255).astype(np.uint8)


class Wrong(AssertionError):
    """Neither right nor told."""


def tiff(path: Path, values: np.ndarray, **options) -> None:
    tifffile.imwrite(path, values, **options)


def pil(path: Path, image: Image.Image, **options) -> None:
    image.save(path, **options)


def same_pixels(truth: np.ndarray, loss: int = 1) -> Callable[[Path], None]:
    def check(path: Path) -> None:
        found = read_image(path).astype(int)
        if found.shape != truth.shape or np.abs(found - truth).max() > loss:
            raise Wrong(f"{path.name}: other pixels")

    return check


def same_slide(truth: np.ndarray) -> Callable[[Path], None]:
    def check(path: Path) -> None:
        slide = open_slide(path)
        found, bad = slide.read(0, 0, slide.width, slide.height, 1.0)
        if bad or found.shape != truth.shape or np.abs(found.astype(int) - truth).max() > 1:
            raise Wrong(f"{path.name}: other pixels")

    return check


def same_nuclei(path: Path) -> None:
    found = read_label(path)
    if told := look_at_label(found).wrong:  # what training refuses
        raise DataError(path, told, "Save one integer per nucleus.")
    pairs = np.unique(np.stack([found.ravel(), LABEL.ravel()]), axis=1).shape[1]
    if found.shape != LABEL.shape or pairs != LABEL.max() + 1:
        raise Wrong(f"{path.name}: other nuclei")


def images() -> list[tuple]:
    cases = []
    types = {"u1": 255, "u2": 65535, "i2": 255, "i4": 65535, "f4": 1, "f8": 255}
    layouts = ["rgb", "planar", "planes", "black"]
    for (kind, full), layout, order, tile in itertools.product(types.items(), layouts, "<>", (None, (64, 64))):
        values = (RGB * (full / 255)).astype(kind)
        options = {"byteorder": order, "tile": tile, "photometric": "rgb"}
        truth = RGB
        if layout == "planar":
            values, options = values.transpose(2, 0, 1), {**options, "planarconfig": "separate"}
        elif layout == "planes":
            values = values.transpose(2, 0, 1)
            options = {**options, "photometric": "minisblack", "metadata": {"axes": "CYX"}}
        elif layout == "black":
            values, truth, options = values[..., 0], GREY, {**options, "photometric": "minisblack"}
        name = f"{kind}{order}{layout}{'tiled' if tile else ''}.tif"
        cases.append((name, tiff, (values,), options, same_pixels(truth)))
    for codec in (None, "zlib", "lzw", "zstd", "lzma", "jpeg2000", "webp", "jpegxl", "packbits"):
        cases.append((f"{codec}.tif", tiff, (RGB,), {"photometric": "rgb", "compression": codec}, same_pixels(RGB)))
    for depth in ("u1", "u2"):
        whole = np.iinfo(depth).max
        white = (whole - RGB[..., 0].astype(int) * (whole // 255)).astype(depth)
        cases.append((f"white_{depth}.tif", tiff, (white,), {"photometric": "miniswhite"}, same_pixels(GREY)))
    for use, truth in (("unassalpha", ON_WHITE), ("assocalpha", ON_WHITE), ("unspecified", RGB)):
        values = np.dstack([RGB * (CLEAR[..., None] > 0) if use == "assocalpha" else RGB, CLEAR])
        options = {"photometric": "rgb", "extrasamples": [use]}
        cases.append((f"{use}.tif", tiff, (values,), options, same_pixels(truth)))
        cases.append((f"{use}_16.tif", tiff, (values.astype("u2") * 257,), options, same_pixels(truth)))
        flat = np.dstack([RGB, CLEAR * 0 + 255])
        cases.append((f"{use}_flat.tif", tiff, (flat,), options, same_pixels(RGB)))
    for channels in (2, 4, 5, 7):
        values = rng.integers(0, 255, (channels, SIDE, SIDE), dtype=np.uint8)
        options = {"photometric": "minisblack"}
        named = {**options, "metadata": {"axes": "CYX"}}
        cases.append((f"fluorescence{channels}.ome.tif", tiff, (values,), {**named, "ome": True}, "told"))
        mixed = {**options, "planarconfig": "contig"}
        cases.append((f"channels{channels}.tif", tiff, (values.transpose(1, 2, 0),), mixed, "told"))
    for mode, truth in (
        ("RGB", RGB),
        ("L", None),
        ("1", None),
        ("P", None),
        ("CMYK", RGB),
        ("LA", None),
        ("RGBA", RGB),
    ):
        image = Image.fromarray(RGB).convert(mode)
        shown = np.asarray(image.convert("RGB")) if truth is None else truth
        for suffix in (".png", ".tif", ".bmp", ".jpg"):
            if (mode, suffix) in {("CMYK", ".png"), ("CMYK", ".bmp"), ("LA", ".bmp"), ("P", ".jpg"), ("LA", ".jpg")}:
                continue
            if (mode, suffix) == ("RGBA", ".jpg"):
                continue
            loss = 255 if suffix == ".jpg" else 1  # noise in JPEG
            cases.append((f"{mode}{suffix}", pil, (image,), {}, same_pixels(shown, loss)))
    for turn, suffix in itertools.product(range(1, 9), (".png", ".tif")):
        exif = Image.Exif()
        exif[274] = turn
        from PIL import ImageOps

        turned = Image.fromarray(RGB)
        turned.getexif()[274] = turn
        truth = np.asarray(ImageOps.exif_transpose(turned))
        options = {"exif": exif} if suffix == ".png" else {"tiffinfo": {274: turn}}
        cases.append((f"turned{turn}{suffix}", pil, (Image.fromarray(RGB),), options, same_pixels(truth)))
    hot, over = (RGB / 255).astype("f4"), (RGB / 255).astype("f4")
    hot[5, 5], over[5, 5], shown = 90, 1.01, RGB.copy()
    shown[5, 5] = 255
    cases.append(("hot.tif", tiff, (hot,), {"photometric": "rgb"}, "told"))
    cases.append(("over.tif", tiff, (over,), {"photometric": "rgb"}, same_pixels(shown)))
    for name, value in (("nan", np.nan), ("inf", np.inf), ("negative", -3), ("large", 4000)):
        cases.append((f"{name}.tif", tiff, (np.full((8, 8, 3), value, "f4"),), {"photometric": "rgb"}, "told"))
    cases.append(("complex.tif", tiff, (RGB[..., 0].astype("c8"),), {}, "told"))
    return cases


def labels() -> list[tuple]:
    cases = []
    for kind in ("u1", "u2", "u4", "u8", "i2", "i4", "i8", "f4", "f8"):
        for photometric in ("minisblack", "miniswhite"):
            options = {"photometric": photometric}
            cases.append((f"ids_{kind}_{photometric}.tif", tiff, (LABEL.astype(kind),), options, same_nuclei))
            mask = ((LABEL > 0) * 255 if kind != "u1" else LABEL > 0).astype(kind if kind != "u1" else bool)
            if kind != "i2":
                cases.append((f"mask_{kind}_{photometric}.tif", tiff, (mask,), options, same_nuclei))
    table = rng.integers(0, 255, 768).tolist()
    indexed = Image.fromarray(LABEL.astype(np.uint8))
    coloured = indexed.copy()
    coloured.putpalette(table)
    mask = ((LABEL > 0) * 255).astype(np.uint8)
    good = {"plain": indexed, "palette": coloured, "mask": Image.fromarray(mask), "bits": Image.fromarray(LABEL > 0)}
    good["three"] = Image.fromarray(mask[..., None].repeat(3, 2))
    good["four"] = Image.fromarray(np.dstack([mask[..., None].repeat(3, 2), mask * 0 + 255]))
    good["deep"] = Image.fromarray(LABEL.astype(np.uint16))
    for name, image in good.items():
        cases.append((f"label_{name}.png", pil, (image,), {}, same_nuclei))
        cases.append((f"label_{name}.tif", pil, (image,), {}, same_nuclei))
    from scipy import ndimage

    soft = ndimage.gaussian_filter(mask.astype(float), 1).astype(np.uint8)
    bad = {"inverted": 255 - mask, "classes": np.where(LABEL > 0, LABEL % 3 + 1, 0).astype(np.uint8), "soft": soft}
    bad["coloured"] = rng.integers(1, 255, (26, 3)).astype(np.uint8)[LABEL]
    bad["alpha"] = np.dstack([mask * 0, mask * 0, mask * 0, mask])
    bad["few_bits"] = np.where(LABEL > 0, LABEL % 12 + 1, 0).astype(np.uint8)
    for name, values in bad.items():
        cases.append((f"label_{name}.png", pil, (Image.fromarray(values),), {}, "label told"))
        cases.append((f"label_{name}.tif", pil, (Image.fromarray(values),), {}, "label told"))
    for name, values, options in (
        ("negative", np.where(LABEL > 0, LABEL, -1), {}),
        ("halves", LABEL / 2, {}),
        ("stack", np.stack([LABEL, LABEL]).astype("u2"), {}),
        ("jpeg", mask, {"compression": "jpeg"}),
        ("complex", LABEL.astype("c8"), {}),
    ):
        cases.append((f"label_{name}.tif", tiff, (values,), options, "label told"))
    return cases


def slides() -> list[tuple]:
    cases = []
    size = {"resolution": (40000, 40000), "resolutionunit": "CENTIMETER", "metadata": None}
    forms = {
        "rgb": (RGB, {"photometric": "rgb"}, RGB),
        "grey": (RGB[..., 0], {"photometric": "minisblack"}, GREY),
        "white": (255 - RGB[..., 0], {"photometric": "miniswhite"}, GREY),
        "cmyk": (np.dstack([255 - RGB, CLEAR * 0]), {"photometric": "separated"}, RGB),
        "planar": (RGB.transpose(2, 0, 1), {"photometric": "rgb", "planarconfig": "separate"}, RGB),
        "alpha": (np.dstack([RGB, CLEAR]), {"photometric": "rgb", "extrasamples": ["unassalpha"]}, ON_WHITE),
        "unspecified": (np.dstack([RGB, CLEAR]), {"photometric": "rgb", "extrasamples": ["unspecified"]}, RGB),
    }
    for (name, (values, options, truth)), order, codec, tile in itertools.product(
        forms.items(), "<>", (None, "zlib", "lzw"), ((64, 64), None)
    ):
        rows = {"tile": tile} if tile else {"rowsperstrip": 16}
        about = {**size, **options, **rows, "byteorder": order, "compression": codec}
        cases.append((f"slide_{name}{order}{codec}{bool(tile)}.tif", tiff, (values,), about, same_slide(truth)))
    for bits, order, codec in itertools.product((8, 12, 16), "<>", (None, "zlib", "jpeg2000")):
        for name in ("rgb", "grey", "planar", "unspecified", *(("white", "alpha") if bits == 16 else ())):
            values, options, truth = forms[name]
            deep = np.rint(values * ((2**bits - 1) / 255)).astype("u2")
            about = {**size, **options, "tile": (64, 64), "byteorder": order, "compression": codec}
            if codec != "jpeg2000" or (name in ("rgb", "grey") and order == "<"):  # tifffile swaps the others' bytes
                cases.append((f"slide_{name}_{bits}{order}{codec}.tif", tiff, (deep,), about, same_slide(truth)))
    for kind in ("u4", "i2", "f4"):
        cases.append((f"slide_{kind}.tif", tiff, (RGB.astype(kind),), {**size, "tile": (64, 64)}, "slide told"))
    return cases


def square(x: int, y: int, side: int = 20) -> list:
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


def feature(*rings: list, **properties) -> dict:
    geometry = {"type": "Polygon", "coordinates": list(rings)}
    return {"type": "Feature", "geometry": geometry, "properties": {"objectType": "detection", **properties}}


def annotations() -> list[tuple[str, bytes, int | None]]:
    """Name, content, and how many nuclei are to be drawn; None where the file is to be told."""
    two = [feature(square(10, 10)), feature(square(100, 100))]

    def collection(*features: object) -> dict:
        return {"type": "FeatureCollection", "features": list(features)}

    region = {"objectType": "annotation", "classification": {"name": "Region*"}}
    whole = feature([[0, 0], [192, 0], [192, 160], [0, 160], [0, 0]], objectType="annotation")
    nan = feature([[float("nan"), 1], [2, 3], [4, 5]])
    many = np.linspace(0, 2 * np.pi, 100_000)
    circle = (np.stack([np.cos(many), np.sin(many)], 1) * 30 + 60).tolist()
    contents: list[tuple[str, object, int | None]] = [
        ("collection", collection(*two), 2), ("list", two, 2), ("one", two[0], 1),
        ("nested", collection(collection(*two)), 2),
        ("hole", collection(feature(square(10, 10, 40), square(20, 20))), 1),
        ("no geometry", collection(two[0], {"type": "Feature", "geometry": None, "properties": {}}), 1),
        ("class text", collection(feature(square(9, 9), classification="Tumor")), 1),
        ("class list", collection(feature(square(9, 9), classification=["a", "b"])), 1),
        ("class json", collection(feature(square(9, 9), classification='{"name": "Tumor"}')), 1),
        ("class names", collection(feature(square(9, 9), classification={"names": ["a", "b"]})), 1),
        ("no properties", collection({"type": "Feature", "geometry": two[0]["geometry"]}), 1),
        ("properties list", collection({**two[0], "properties": []}), 1),
        ("region", collection(feature(square(0, 0, 150), **region), *two), 2),
        ("whole annotation", collection(*two, whole), 2), ("nan beside good", collection(nan, *two), 2),
        ("no coordinates", collection(two[0], feature()), 1), ("empty ring", collection(two[0], feature([])), 1),
        ("with z", collection(feature([[*point, 0] for point in square(10, 10)])), 1),
        ("open ring", collection(feature(square(10, 10)[:-1])), 1), ("none", collection(), 0),
        ("many corners", collection(feature(circle)), 1), ("no features", {"type": "FeatureCollection"}, None),
        ("bare geometry", two[0]["geometry"], None), ("number", 5, None), ("text", "hello", None),
    ]  # fmt: skip
    cases = [(name, json.dumps(content).encode(), count) for name, content, count in contents]
    text = json.dumps(collection(*two))
    cases += [("bom", text.encode("utf-8-sig"), 2), ("utf16", text.encode("utf-16"), 2), ("empty file", b"", None)]
    return [*cases, ("deep", b"[" * 100_000 + b"]" * 100_000, None), ("cut", text.encode()[:-9], None)]


CASES = [("image", *case) for case in images()] + [("label", *case) for case in labels()]
CASES += [("slide", *case) for case in slides()]


def judge(path: Path, check: Callable[[Path], None], told: bool) -> None:
    """Right pixels or a sentence that names the file; what must be told is not taken."""
    COUNTS["tried"] += 1
    try:
        check(path)
    except DataError as error:
        assert str(path) in str(error) and "\n" not in str(error), error
        assert told, f"it could be read: {error}"
        COUNTS["clear error"] += 1
    except Wrong:
        COUNTS["wrong"] += 1
        raise
    except Exception:
        COUNTS["traceback"] += 1
        raise
    else:
        if told:
            COUNTS["wrong"] += 1
        assert not told, f"{path.name} was taken"
        COUNTS["right"] += 1


@pytest.mark.parametrize("case", CASES, ids=[f"{case[0]}-{case[1]}" for case in CASES])
def test_files(tmp_path, case):
    _, name, write, values, options, check = case
    path = tmp_path / name
    write(path, *values, **options)
    readers = {"told": read_image, "label told": same_nuclei, "slide told": open_slide}
    judge(path, readers.get(check, check), told=isinstance(check, str))


@pytest.mark.parametrize("case", annotations(), ids=lambda case: case[0])
def test_annotations(tmp_path, case):
    name, content, count = case
    Image.fromarray(RGB).save(tmp_path / "i.png")
    path = tmp_path / f"{name}.geojson"
    path.write_bytes(content)

    def check(path: Path) -> None:
        _, instances = read_sample(Sample("i", str(tmp_path / "i.png"), (str(path),), "geojson"))
        if len(np.unique(instances.label)) - 1 != count:
            raise Wrong(f"{name}: {instances.findings}")

    judge(path, check, told=count is None)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
@pytest.mark.parametrize("damage", ["cut", "empty", "other", "zeros"])
def test_damage(tmp_path, suffix, damage):
    path = tmp_path / f"x{suffix}"
    Image.fromarray(RGB).save(path)
    whole = path.read_bytes()
    damaged = {"cut": whole[: len(whole) // 2], "empty": b"", "other": b"a,b\n" * 99, "zeros": bytes(len(whole))}
    path.write_bytes(damaged[damage])
    judge(path, lambda file: (read_image(file), None)[1], told=True)


def test_counts(capsys):
    with capsys.disabled():
        print(
            "\n"
            + ", ".join(f"{kind} {COUNTS[kind]}" for kind in ("tried", "right", "clear error", "wrong", "traceback"))
        )
    assert COUNTS["wrong"] == COUNTS["traceback"] == 0
    assert len(CASES) + len(annotations()) >= 250
