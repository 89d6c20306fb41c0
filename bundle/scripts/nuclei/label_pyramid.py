from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

__all__ = ["TILE", "LabelPyramid", "id_type", "pyramid_of"]

TILE = 512  # side of the squares that a file is made of
SMALLEST = 1024  # pixels of the longer side, up to which a map has no smaller level


@dataclass(frozen=True)
class LabelPyramid:
    """
    A label map in several sizes, of which only the part that is asked for need be in memory.

    Level k has every 2^k-th pixel of level 0 in rows and columns, so that ids are never mixed.

    Args:
        shape: (H, W) of level 0.
        dtype: of the ids, see :func:`id_type`.
        mpp: micrometres per pixel of level 0; None if unknown.
        draw: ``draw(level, top, left, height, width)`` gives the ids (height, width) of a box in that level's pixels.
    """

    shape: tuple[int, int]
    dtype: np.dtype
    mpp: float | None
    draw: Callable[[int, int, int, int, int], np.ndarray]

    @property
    def levels(self) -> list[tuple[int, int]]:
        """(H, W) of each level."""
        sizes = [self.shape]
        while max(sizes[-1]) > SMALLEST:
            step = 2 ** len(sizes)
            sizes.append((-(-self.shape[0] // step), -(-self.shape[1] // step)))
        return sizes

    def tiles(self, level: int, side: int = TILE) -> Iterator[tuple[int, int, np.ndarray]]:
        """(top, left, ids) of the squares of a level, row by row; those at its far edges are cut."""
        height, width = self.levels[level]
        for top in range(0, height, side):
            for left in range(0, width, side):
                yield top, left, self.draw(level, top, left, min(side, height - top), min(side, width - left))


def id_type(nuclei: int) -> np.dtype:
    """The smallest of the two types of ids, 16 and 32 bits, that numbers so many nuclei."""
    return np.dtype(np.uint16 if nuclei <= np.iinfo(np.uint16).max else np.uint32)


def pyramid_of(instances: np.ndarray, mpp: float | None = None) -> LabelPyramid:
    """Of a map (H, W) in memory."""

    def draw(level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        return instances[:: 2**level, :: 2**level][top : top + height, left : left + width].astype(dtype)

    dtype = id_type(int(instances.max(initial=0)))
    return LabelPyramid(instances.shape, dtype, mpp, draw)
