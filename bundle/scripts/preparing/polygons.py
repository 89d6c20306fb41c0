from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import shapely
from scripts.errors import DataError

__all__ = ["Finding", "Instances", "Outline", "rasterise"]

MAX_INSTANCES = 65535  # what a 16-bit label map can hold
BLOCK = 256  # edges at once, which bounds the memory for outlines of very many


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
    5; with 0.5 it is that pixel's upper left corner, so that a square from (0, 0) to (4, 4) has 16 pixels. A polygon
    that crosses itself is filled by the nonzero rule: whatever it winds around is inside, also what it winds around
    twice. Any other is filled by the even-odd rule, which differs only where it runs over itself, as around a hole
    that a bridge joins to the outline.

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
    if len(np.unique(ring, axis=0)) < 3:
        findings.append(Finding("degenerate polygon", name, f"{len(ring)} points without area"))
        return None
    origin = np.floor(ring.min(0)).astype(int) - 1
    size = tuple(int(side) + 2 for side in np.ceil((ring - origin).max(0))[::-1])
    if size[0] * size[1] > 2**28:
        raise DataError(path, f"polygon '{name}' spans {size[1]}x{size[0]} pixels", "It is no nucleus: take it out.")
    crosses = _crosses_itself(ring - origin)
    if crosses:
        findings.append(Finding("self-crossing polygon", name, "filled with all that its outline winds around"))
    mask = _inside(ring - origin, size, nonzero=crosses)
    if not mask.any():
        findings.append(Finding("degenerate polygon", name, "it holds the centre of no pixel"))
        return None
    return np.argwhere(mask) + origin[::-1]


def _crosses_itself(ring: np.ndarray) -> bool:
    """Whether two edges cross properly; touching and running over itself do not count."""
    if shapely.is_valid(shapely.polygons(ring)):
        return False
    edges = shapely.linestrings(np.stack([ring, np.roll(ring, -1, axis=0)], axis=1))
    tree = shapely.STRtree(edges)
    start, block = 0, 1  # few at first: where corners lie at random, any edge crosses thousands
    while start < len(edges):
        if tree.query(edges[start : start + block], predicate="crosses").size:
            return True
        start, block = start + block, min(2 * block, BLOCK)
    return False


def _inside(ring: np.ndarray, size: tuple[int, int], nonzero: bool) -> np.ndarray:
    """
    The pixels (H, W) whose centre lies inside or on the outline, by the nonzero rule or the even-odd rule.

    A scan over rows, because skimage's ``polygon`` tests each pixel against each corner, and shapely's ``make_valid``
    takes minutes for three thousand corners that cross at random.
    """
    mask = np.zeros(size, bool)
    ends = np.roll(ring, -1, axis=0)
    for right in (True, False):
        # how often the outline goes around each pixel, by the edges strictly to its right, or strictly to its left:
        # on the outline itself, at least one of them counts the inside
        winding = np.zeros((size[0], size[1] + 1), np.int32)
        for start in range(0, len(ring), BLOCK):
            (x0, y0), (x1, y1) = ring[start : start + BLOCK].T, ends[start : start + BLOCK].T
            top, bottom = (np.ceil(y) if right else np.floor(y) + 1 for y in (np.minimum(y0, y1), np.maximum(y0, y1)))
            rows = (bottom - top).astype(int)
            edge = np.repeat(np.arange(len(rows)), rows)
            row = np.arange(len(edge)) - np.repeat(np.cumsum(rows) - rows, rows) + top[edge].astype(int)
            x0, y0, x1, y1 = x0[edge], y0[edge], x1[edge], y1[edge]
            at = (x0 * (y1 - row) - x1 * (y0 - row)) / (y1 - y0)
            column = (np.ceil(at) if right else np.floor(at) + 1).astype(int)
            np.add.at(winding, (row, column), np.where(y0 < y1, 1, -1))
        np.cumsum(winding, axis=1, out=winding)
        mask |= (winding[:, :-1] != 0) if nonzero else (winding[:, :-1] % 2 != 0)
    corners = np.rint(ring[(np.abs(ring - np.rint(ring)) < 1e-12).all(axis=1)]).astype(int)
    mask[corners[:, 1], corners[:, 0]] = True
    return mask


def _among(pixels: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which rows of ``pixels`` are rows of ``others`` too."""
    base = min(pixels.min(), others.min())
    span = int(max(pixels[:, 1].max(), others[:, 1].max()) - base) + 1
    keys, cut = ((p[:, 0] - base) * span + p[:, 1] - base for p in (pixels, others))
    return np.isin(keys, cut)
