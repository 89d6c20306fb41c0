from __future__ import annotations

import os
from pathlib import Path
from xml.etree import ElementTree

import tifffile
from scripts.errors import DataError

__all__ = ["PLAUSIBLE_MPP", "SAME_MPP", "number", "same_mpp", "square_mpp", "stated_mpp", "tiff_mpp"]

SAME_MPP = 0.02  # pixel sizes that differ by a smaller share are the same: resampling would only blur
PLAUSIBLE_MPP = (0.05, 20.0)  # micrometres; a TIFF's 72 dpi, which says nothing, is 353
MICROMETRES = {
    "µm": 1.0,
    "um": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "nm": 1e-3,
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
    "Å": 1e-4,
}
MICROMETRES |= {"in": 25400.0, "inch": 25400.0}


def same_mpp(one: float, other: float) -> bool:
    """Whether two pixel sizes, in micrometres, count as the same."""
    return abs(one / other - 1) <= SAME_MPP


def stated_mpp(path: str | os.PathLike) -> float | None:
    """
    The pixel size that an image file states: a TIFF by OME, ImageJ or its resolution.

    Other formats state none that can be believed: a PNG's or JPEG's density is the screen's, NIfTI's spacing often 1.

    Returns:
        micrometres per pixel, or None if it is not stated or not plausible.

    Raises:
        DataError: when pixels are far from square.
    """
    path = Path(path)
    if path.suffix.lower() not in (".tif", ".tiff"):
        return None
    try:
        with tifffile.TiffFile(path) as tiff:
            return tiff_mpp(path, tiff)
    except (tifffile.TiffFileError, OSError):
        return None  # whoever reads the pixels tells what is wrong with the file


def tiff_mpp(path: Path, tiff: tifffile.TiffFile) -> float | None:
    """See :func:`stated_mpp`; of the largest picture, for labels and thumbnails may come first."""
    if tiff.is_ome:
        try:
            root = ElementTree.fromstring(tiff.ome_metadata)  # nosec B314 # see tests/trust/test_bombs.py
            pictures = root.findall(".//{*}Pixels")
        except ElementTree.ParseError as error:  # expat ends what entities blow up
            hint = "Save it again from the program that wrote it."
            raise DataError(path, f"its description as OME-XML cannot be read ({error})", hint) from error
        pixels = max(pictures, key=lambda one: number(one.get("SizeX")) or 0, default=None)
        if pixels is not None and "PhysicalSizeX" in pixels.attrib:
            sides = []
            for axis in "XY":
                unit = MICROMETRES.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
                size = number(pixels.get(f"PhysicalSize{axis}", pixels.get("PhysicalSizeX")))
                sides.append(None if unit is None or size is None else size * unit)
            return square_mpp(path, *sides)
    tags = max(tiff.series, key=lambda one: one.keyframe.imagewidth * one.keyframe.imagelength).keyframe.tags
    unit = {2: 25400.0, 3: 10000.0, 4: 1000.0, 5: 1.0}.get(
        int(tags["ResolutionUnit"].value) if "ResolutionUnit" in tags else 2
    )
    if tiff.is_imagej and (name := (tiff.imagej_metadata or {}).get("unit")):
        unit = MICROMETRES.get(str(name).replace("\\u00B5", "µ").lower())  # ImageJ's resolution is in its own unit
    if unit is None or "XResolution" not in tags or "YResolution" not in tags:
        return None
    densities = [tags[name].value for name in ("XResolution", "YResolution")]
    return square_mpp(path, *(unit * low / high if high else None for high, low in densities))


def square_mpp(path: Path, x: float | None, y: float | None) -> float | None:
    """The one size of pixels, None if it is unknown or not plausible; DataError if they are far from square."""
    if x is None or y is None or not all(PLAUSIBLE_MPP[0] <= side <= PLAUSIBLE_MPP[1] for side in (x, y)):
        return None
    if abs(x - y) > 0.05 * max(x, y):
        raise DataError(path, f"its pixels are not square ({x} x {y} um)", "Resample it")
    return (x + y) / 2


def number(text: str | None) -> float | None:
    """A text as a number, None if it is none."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return None
