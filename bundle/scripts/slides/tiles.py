from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scripts.errors import DataError
from scripts.slides.slide import Slide

__all__ = ["Tile", "TissueMap", "make_tiles", "parse_region"]

TISSUE_MPP = 8.0  # micrometres per pixel of the tissue mask,
TISSUE_SIDES = 800, 2048  # unless it had too few pixels for a picture, or too many for a bounded memory
GREY = 3  # channels of a grey slide differ by no more
GLASS_LOW, GLASS_TINT = 190, 40  # the least of its darkest channel, and by how much its channels may differ
GLASS_SHARE = 0.1  # of all pixels that are within 3 grey values of its colour,
GLASS_FLAT = 0.6  # and of those within 9
TISSUE_BORDER = 64.0  # micrometres around tissue that count as tissue


@dataclass(frozen=True)
class Tile:
    """
    A square of the slide that goes through the network, and its core. Cores lie side by side without gap or overlap.

    Args:
        row: of the grid.
        column: of the grid.
        square: (left, top, side) in pixels at the network's scale; it may reach beyond the slide.
        core: (left, top, right, bottom) in the same pixels.
    """

    row: int
    column: int
    square: tuple[int, int, int]
    core: tuple[int, int, int, int]

    def owns(self, x: float, y: float) -> bool:
        left, top, right, bottom = self.core
        return left <= x < right and top <= y < bottom


def make_tiles(region: tuple[float, float, float, float], side: int, margin: int, multiple: int) -> list[Tile]:
    """
    Tiles whose cores cover a region, row by row.

    Args:
        region: (left, top, right, bottom) in pixels at the network's scale.
        side: of a tile; a smaller region gets smaller tiles.
        margin: pixels around the core that a tile shows besides.
        multiple: of which the sides must be.

    Raises:
        DataError: when the margins leave no core.
    """
    left, top = (math.floor(value) for value in region[:2])
    right, bottom = (math.ceil(value) for value in region[2:])
    longest = max(right - left, bottom - top)
    side = min(side, -(-(longest + 2 * margin) // multiple) * multiple)
    step = side - 2 * margin
    if step < min(margin, longest):  # one tile may be as small as its region
        raise DataError(
            "margin_um", f"{margin} pixels on either side leave too little of a tile of {side}", "Raise tile_size"
        )
    return [
        Tile(row, column, (x - margin, y - margin, side), (x, y, min(x + step, right), min(y + step, bottom)))
        for row, y in enumerate(range(top, bottom, step))
        for column, x in enumerate(range(left, right, step))
    ]


def parse_region(region: str | Iterable[float] | None, slide: Slide) -> tuple[int, int, int, int]:
    """
    ``x,y,width,height`` in level-0 pixels as (left, top, right, bottom), cut to the slide; None is the whole slide.

    Raises:
        DataError: when it is something else or lies outside of the slide.
    """
    if region is None:
        return 0, 0, slide.width, slide.height
    try:
        parts = region.split(",") if isinstance(region, str) else region
        x, y, width, height = (int(part) for part in parts)
    except (TypeError, ValueError):
        raise DataError("region", f"{region!r} is not x,y,width,height", "Give four whole level-0 pixels") from None
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + width, slide.width), min(y + height, slide.height)
    if width <= 0 or height <= 0 or right <= left or bottom <= top:
        size = f"{slide.width}x{slide.height}"
        raise DataError("region", f"{x},{y},{width},{height} is outside of {slide.path} ({size})", "Choose one inside")
    return left, top, right, bottom


class TissueMap:
    """
    Where a slide has tissue, seen at low power: coloured pixels, and what lies close to them.

    Glass and grey shades have no colour, stained tissue has; where the glass itself is tinted, its tint is taken off,
    and of a slide without any colour what is darker than the glass counts. What cannot be read counts as tissue, so
    that its tiles are tried and listed. ``thumbnail`` (H, W, 3) is what was looked at.

    Args:
        slide: the slide.
        region: (left, top, right, bottom) in level-0 pixels.
        mpp: micrometres per level-0 pixel.
        threshold: difference of the strongest and weakest colour channel, in [0, 1], from which a pixel is tissue;
            0 counts everything as tissue.
    """

    def __init__(self, slide: Slide, region: tuple[int, int, int, int], mpp: float, threshold: float = 0.06) -> None:
        left, top, right, bottom = region
        coarsest, finest = (max(right - left, bottom - top) / side for side in TISSUE_SIDES)
        self.scale = max(min(TISSUE_MPP / mpp, coarsest), finest, 1.0)
        self.left, self.top = int(left / self.scale), int(top / self.scale)
        self.thumbnail, unread = slide.thumbnail(left, top, right - left, bottom - top, self.scale)
        if threshold <= 0:
            self.mask = np.ones(self.thumbnail.shape[:2], bool)
        else:
            # of one pixel alone it may be noise
            self.mask = ndimage.uniform_filter(_stain(self.thumbnail), 3) > threshold
        for (x, y, width, height), _ in unread:
            rows, columns = (
                slice(max(int(start / self.scale) - first, 0), math.ceil((start + size) / self.scale) - first)
                for start, size, first in ((y, height, self.top), (x, width, self.left))
            )
            self.mask[rows, columns] = True
        self.area_mm2 = float(self.mask.sum()) * (self.scale * mpp / 1000) ** 2
        border = math.ceil(TISSUE_BORDER / (self.scale * mpp))
        self._near = ndimage.maximum_filter(self.mask, 2 * border + 1)

    def touches(self, left: float, top: float, right: float, bottom: float) -> bool:
        """Whether a box of level 0 holds tissue or lies close to it."""
        return bool(self._near[self._place(left, top, right, bottom)].any())

    def share(self, left: float, top: float, right: float, bottom: float) -> float:
        """Share of a box of level 0, as far as it lies in the region, that is tissue, in [0, 1]."""
        inside = self.mask[self._place(left, top, right, bottom)]
        return float(inside.mean()) if inside.size else 0.0

    def _place(self, left: float, top: float, right: float, bottom: float) -> tuple[slice, slice]:
        """Rows and columns of the masks that a box of level 0 touches."""
        x0, y0 = (int(value / self.scale) - start for value, start in ((left, self.left), (top, self.top)))
        x1, y1 = math.ceil(right / self.scale) - self.left, math.ceil(bottom / self.scale) - self.top
        return slice(max(y0, 0), max(y1, y0 + 1, 0)), slice(max(x0, 0), max(x1, x0 + 1, 0))


def _stain(pixels: np.ndarray) -> np.ndarray:
    """(H, W) in [0, 1]: how much colour each pixel has beside the glass, or, of a grey slide, how dark it is."""
    values = pixels.astype(np.float32)
    glass = _glass(pixels)
    if np.ptp(pixels, axis=-1).max() <= GREY:
        return np.zeros(pixels.shape[:2], np.float32) if glass is None else 1 - values.mean(-1) / glass.mean()
    if glass is not None:
        values = np.minimum(values * (255 / glass), 255)
    return np.ptp(values, axis=-1) / 255


def _glass(pixels: np.ndarray) -> np.ndarray | None:
    """Colour (3,) of the glass: bright, of little colour, and the same in many pixels; None where there is no such."""
    low = pixels.min(-1)
    bright = pixels[(low >= GLASS_LOW) & (np.ptp(pixels, axis=-1) <= GLASS_TINT)]
    if len(bright) < GLASS_SHARE * low.size:
        return None
    bins = (bright // 4).astype(np.int64) @ (1, 64, 4096)
    common = bright[bins == np.bincount(bins).argmax()]
    middle = common.mean(0, dtype=np.float64)
    off = np.abs(bright - middle).max(-1)
    near = bright[off <= 3]
    # pale tissue has such colours too, but shades of them; glass is flat
    flat = len(near) >= GLASS_SHARE * low.size and len(near) >= GLASS_FLAT * (off <= 9).sum()
    return near.mean(0, dtype=np.float64).astype(np.float32) if flat else None
