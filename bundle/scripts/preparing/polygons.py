from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scripts.errors import DataError
from skimage.draw import polygon as even_odd_polygon

__all__ = ["Finding", "Instances", "Outline", "rasterise"]

MAX_INSTANCES = 65535  # what a 16-bit label map can hold
BLOCK = 256  # edges that are compared with all others at once


@dataclass(frozen=True)
class Finding:
    """
    Something a user should know about an annotation.

    Args:
        problem: the kind, a fixed phrase, so that findings can be counted.
        where: the nucleus, by its name in the file.
        detail: what was seen and what was done about it.
        severity: ``"warning"``, or ``"error"`` if nothing could be made of the image.
    """

    problem: str
    where: str = ""
    detail: str = ""
    severity: str = "warning"


@dataclass
class Instances:
    """Nuclei of one image: ``label`` (H, W) uint16, 0 is background, and what was noticed while reading them."""

    label: np.ndarray
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True)
class Outline:
    """
    One nucleus as polygons.

    Args:
        name: how the file calls it, for messages.
        rings: arrays (n, 2) of x and y in pixels; drawn together, so that the parts of a nucleus share one id.
        holes: arrays like ``rings`` that are cut out of them.
    """

    name: str
    rings: Sequence[np.ndarray]
    holes: Sequence[np.ndarray] = ()


def rasterise(
    outlines: Iterable[Outline], shape: Sequence[int], pixel_centre: float, path: str | os.PathLike = "polygons"
) -> Instances:
    """
    Fill polygons in the order of the file, a later one on top; the n-th gets id n.

    A pixel belongs to a polygon if its centre lies inside of it or on its outline. Where that centre is depends on
    the program that wrote the coordinates: with ``pixel_centre`` 0 the vertex (3, 5) is the centre of column 3, row
    5; with 0.5 it is that pixel's upper left corner, so that a square from (0, 0) to (4, 4) has 16 pixels. Where a
    polygon crosses itself, whatever it winds around is inside, also what it winds around twice.

    Args:
        outlines: the nuclei.
        shape: (H, W) of the image.
        pixel_centre: 0 or 0.5, see above.
        path: the file, for messages.

    Returns:
        the label map and one finding for each nucleus that is degenerate, outside the image, cut by its border,
        self-crossing, or covered by later ones.

    Raises:
        DataError: when there are more nuclei than 16 bits can number, or coordinates are no numbers.
    """
    outlines = list(outlines)
    if len(outlines) > MAX_INSTANCES:
        raise DataError(path, f"{len(outlines)} nuclei are more than 16-bit labels can hold", "Split the image.")
    height, width = shape[:2]
    label = np.zeros((height, width), np.uint16)
    findings: list[Finding] = []
    areas: dict[int, int] = {}
    for number, outline in enumerate(outlines, start=1):
        masks = [_fill(ring, pixel_centre, path, outline.name, findings) for ring in outline.rings]
        masks = [mask for mask in masks if mask is not None]
        if not masks:
            continue
        pixels = np.unique(np.concatenate(masks), axis=0) if len(masks) > 1 else masks[0]
        for hole in outline.holes:
            cut = _fill(hole, pixel_centre, path, outline.name, findings)
            if cut is not None:
                pixels = pixels[~_among(pixels, cut)]
        rows, columns = pixels.T
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        if not inside.any():
            findings.append(Finding("polygon outside the image", outline.name, "no pixel of it is in the image"))
            continue
        if not inside.all():
            share = 1 - inside.mean()
            findings.append(Finding("polygon cut by the image border", outline.name, f"{share:.0%} of it is outside"))
        label[rows[inside], columns[inside]] = number
        areas[number] = int(inside.sum())
    findings += _covered(label, areas, outlines)
    return Instances(label, findings)


def _covered(label: np.ndarray, areas: dict[int, int], outlines: list[Outline]) -> list[Finding]:
    left = np.bincount(label.ravel(), minlength=len(outlines) + 1)
    found = []
    for number, area in areas.items():
        name, lost = outlines[number - 1].name, area - int(left[number])
        if not left[number]:
            found.append(Finding("nucleus covered by later ones", name, "nothing of it is left"))
        elif lost > 0.5 * area:
            found.append(Finding("nucleus mostly covered", name, f"{lost} of {area} pixels belong to later ones"))
    return found


def _fill(
    ring: np.ndarray, pixel_centre: float, path: str | os.PathLike, name: str, findings: list[Finding]
) -> np.ndarray | None:
    """Pixels (n, 2), row and column, of one ring; None and a finding if it has no area."""
    ring = np.asarray(ring, float).reshape(-1, 2) - pixel_centre
    if not np.isfinite(ring).all() or np.abs(ring).max(initial=0) > 1e7:
        raise DataError(path, f"polygon '{name}' has coordinates that are no pixels", "Correct it in the file.")
    if len(set(map(tuple, ring.tolist()))) < 3:
        findings.append(Finding("degenerate polygon", name, f"{len(ring)} points without area"))
        return None
    origin = np.floor(ring.min(0)).astype(int) - 1
    x, y = (ring - origin).T
    size = (int(np.ceil(y.max())) + 2, int(np.ceil(x.max())) + 2)
    if size[0] * size[1] > 2**28:
        raise DataError(path, f"polygon '{name}' spans {size[1]}x{size[0]} pixels", "It is no nucleus: take it out.")
    mask = np.zeros(size, bool)
    mask[even_odd_polygon(y, x, size)] = True
    if _crosses_itself(x, y):
        findings.append(Finding("self-crossing polygon", name, "filled with all that its outline winds around"))
        mask |= _winding_number(x, y, size) != 0
    if not mask.any():
        findings.append(Finding("degenerate polygon", name, "it holds the centre of no pixel"))
        return None
    return np.argwhere(mask) + origin[::-1]


def _crosses_itself(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether two edges cross properly; touching and running over itself do not count."""
    x1, y1 = np.roll(x, -1), np.roll(y, -1)
    along, down = x1 - x, y1 - y
    for start in range(0, len(x), BLOCK):
        i = slice(start, start + BLOCK)
        # on which side of edge i (rows) the two ends of edge j (columns) are
        first = along[i, None] * (y - y[i, None]) - down[i, None] * (x - x[i, None])
        second = along[i, None] * (y1 - y[i, None]) - down[i, None] * (x1 - x[i, None])
        rows, columns = np.nonzero(first * second < 0)
        rows += start
        third = along[columns] * (y[rows] - y[columns]) - down[columns] * (x[rows] - x[columns])
        fourth = along[columns] * (y1[rows] - y[columns]) - down[columns] * (x1[rows] - x[columns])
        if (third * fourth < 0).any():
            return True
    return False


def _winding_number(x: np.ndarray, y: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """How often the outline goes around the centre of each pixel, counted by the edges to the right of it."""
    winding = np.zeros(size, np.int32)
    rows, columns = np.arange(size[0]), np.arange(size[1])
    for x0, y0, x1, y1 in zip(x, y, np.roll(x, -1), np.roll(y, -1)):
        if y0 == y1:
            continue
        direction, (top, bottom) = (1, (y0, y1)) if y0 < y1 else (-1, (y1, y0))
        crossed = rows[(rows >= top) & (rows < bottom)]
        at = x0 + (crossed - y0) * (x1 - x0) / (y1 - y0)
        winding[crossed] += direction * (columns < at[:, None])
    return winding


def _among(pixels: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which rows of ``pixels`` are rows of ``others`` too."""
    base = min(pixels.min(), others.min())
    span = int(max(pixels[:, 1].max(), others[:, 1].max()) - base) + 1
    keys, cut = ((p[:, 0] - base) * span + p[:, 1] - base for p in (pixels, others))
    return np.isin(keys, cut)
