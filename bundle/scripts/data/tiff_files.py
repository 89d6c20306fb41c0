from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from scripts.data.colours import Colours
from scripts.errors import DataError

__all__ = ["Picture", "main_picture", "stored_values", "upright"]

HINT = "Save it as 8-bit RGB or grey"
PHOTOMETRIC = tifffile.PHOTOMETRIC
KINDS = {
    PHOTOMETRIC.MINISBLACK: "grey",
    PHOTOMETRIC.MINISWHITE: "white is zero",
    PHOTOMETRIC.PALETTE: "palette",
    PHOTOMETRIC.RGB: "rgb",
    PHOTOMETRIC.YCBCR: "rgb",  # the decoders of JPEG give RGB
    PHOTOMETRIC.SEPARATED: "cmyk",
}
FAX = (tifffile.COMPRESSION.CCITTRLE, tifffile.COMPRESSION.CCITT_T4, tifffile.COMPRESSION.CCITT_T6)
JPEG = (tifffile.COMPRESSION.OJPEG, tifffile.COMPRESSION.JPEG)


@dataclass(frozen=True)
class Picture:
    """
    The picture that a TIFF is about: the largest of its series, for labels, thumbnails and macros may come first.

    Args:
        levels: pages of each level of its pyramid, the largest first: one with all colours, or one for each colour.
        colours: what the samples mean.
        left_out: how many further planes its stack has: of a stack the first plane counts.
        orientation: TIFF's tag; 1 is upright.
        no_label: why it can hold no label map; empty if it can.
    """

    levels: list[list[tifffile.TiffPage]]
    colours: Colours
    left_out: int
    orientation: int
    no_label: str


def main_picture(path: Path, tiff: tifffile.TiffFile) -> Picture:
    """
    Raises:
        DataError: when its channels are not said to be colours.
    """
    series = max(tiff.series, key=lambda one: one.keyframe.imagewidth * one.keyframe.imagelength)
    page = series.keyframe
    planes = _planes(series)
    count = int(np.prod([size for _, size in _stack(series)]))
    channels = len(planes) * page.samplesperpixel
    colours = _colours(path, page, channels, stacked=len(planes) > 1)
    levels = [[_page(level, index) for index in planes] for level in series.levels]
    orientation = page.tags.valueof(274, 1)
    return Picture(levels, colours, count // len(planes) - 1, int(orientation), _why_no_label(page))


def stored_values(picture: Picture) -> np.ndarray:
    """(H, W, C) of the largest level, as stored."""
    planes = []
    for page in picture.levels[0]:
        keyframe = page.keyframe
        if 0 in page.databytecounts:
            raise ValueError("parts of it were never written")
        values = page.asarray()
        if keyframe.samplesperpixel == 1:
            values = values.reshape(keyframe.imagelength, keyframe.imagewidth, 1)
        elif keyframe.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
            values = np.moveaxis(values.reshape(-1, keyframe.imagelength, keyframe.imagewidth), 0, 2)
        planes.append(values)
    return upright(planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2), picture.orientation)


def _why_no_label(page: tifffile.TiffPage) -> str:
    if page.compression in JPEG:
        return "a JPEG cannot hold a label map, its compression changes the ids"
    if page.photometric == PHOTOMETRIC.MINISWHITE and page.compression in FAX:
        return "it is a fax, whose 0 is white, which leaves open whether 0 or 1 is nucleus"
    return ""


def _planes(series: tifffile.TiffPageSeries) -> list[int]:
    """Which pages of a series are the colours of its first plane."""
    axes, shape = zip(*_stack(series)) if _stack(series) else ((), ())
    names = "C"
    if "C" not in axes and series.keyframe.samplesperpixel == 1 and shape[:1] in ((3,), (4,)):
        names = "QIS"  # three or four planes without a name are channels
    order = np.arange(int(np.prod(shape))).reshape(shape)
    for axis in reversed(range(order.ndim)):
        if axes[axis] not in names:
            order = order.take(0, axis=axis)
    return [int(index) for index in order.ravel()]


def _stack(series: tifffile.TiffPageSeries) -> list[tuple[str, int]]:
    """Axes, and their lengths, that a series has besides those of one page."""
    left, axes = list(series.keyframe.axes), list(zip(series.axes, series.shape))
    for axis, size in reversed(axes.copy()):
        if axis in left:
            left.remove(axis)
            axes.remove((axis, size))
    return axes


def _page(series: tifffile.TiffPageSeries, index: int) -> tifffile.TiffPage:
    if index >= len(series.pages) or series.pages[index] is None:
        raise ValueError(f"page {index} is missing")
    return series.pages[index]


def _colours(path: Path, page: tifffile.TiffPage, channels: int, stacked: bool) -> Colours:
    kind = KINDS.get(page.photometric)
    if kind == "rgb" and page.photometric == PHOTOMETRIC.YCBCR and page.compression not in JPEG:
        kind = None  # nobody converts it
    if kind is None:
        raise DataError(path, f"its colours are of the kind {PHOTOMETRIC(page.photometric).name}", HINT)
    extra = [] if stacked else [int(use) for use in page.extrasamples]
    if kind == "grey":  # further samples are channels of their own, unless they are said to be transparency
        extra = [use for use in extra if use in (1, 2)]
        kind = "rgb" if channels == 3 and not extra else kind  # as microscopes and ImageJ write it
    colour_samples = Colours(kind).channels
    if channels - len(extra) != colour_samples:
        shape = (page.imagelength, page.imagewidth, channels)
        raise DataError(
            path, f"shape {shape} is not a grey or RGB image, its channels are not said to be colours", HINT
        )
    alphas = [i for i, use in enumerate(extra) if use in (1, 2)]
    alpha = colour_samples + alphas[0] if alphas else None
    palette = None
    if kind == "palette":
        palette = np.ascontiguousarray((np.asarray(page.colormap) // 256).astype(np.uint8).T)
    bits = page.bitspersample if isinstance(page.bitspersample, int) else page.bitspersample[0]
    stored = None if page.dtype is None else page.dtype.itemsize * 8
    narrower = bits if page.dtype is not None and page.dtype.kind in "ui" and bits < stored else None
    return Colours(kind, alpha, bool(alphas) and extra[alphas[0]] == 1, palette, narrower)


def upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, C) turned as the tag 274 of TIFF and EXIF says."""
    if orientation >= 5:
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values
