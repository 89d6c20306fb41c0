"""Which tile gives out a nucleus that several tiles see."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scripts.nuclei.measures import Nucleus
from scripts.slides.tiles import Tile

__all__ = ["Ownership"]

REACH = 8  # pixels by which two tiles may differ about where the centre of one nucleus is
SAME = 0.5  # share of the smaller of two nuclei that they have in common if they are the same one


@dataclass(frozen=True)
class _Claim:
    """A nucleus that was given out, where neighbours see it too: box (left, top, right, bottom) and its pixels."""

    box: tuple[int, int, int, int]
    mask: np.ndarray

    def pack(self) -> list:
        return [*self.box, base64.b85encode(np.packbits(self.mask).tobytes()).decode()]

    @classmethod
    def unpack(cls, values: list) -> _Claim:
        left, top, right, bottom, text = values
        bits = np.frombuffer(base64.b85decode(text), np.uint8)
        shape = bottom - top, right - left
        return cls((left, top, right, bottom), np.unpackbits(bits, count=shape[0] * shape[1]).reshape(shape) > 0)

    def overlap(self, other: _Claim) -> float:
        """Pixels in common with one whose box meets this one's, as a share of the smaller one's."""
        left, top = max(self.box[0], other.box[0]), max(self.box[1], other.box[1])
        right, bottom = min(self.box[2], other.box[2]), min(self.box[3], other.box[3])
        mine, theirs = (
            claim.mask[top - claim.box[1] : bottom - claim.box[1], left - claim.box[0] : right - claim.box[0]]
            for claim in (self, other)
        )
        return float((mine & theirs).sum() / min(self.mask.sum(), other.mask.sum()))


class Ownership:
    """
    Gives every nucleus to exactly one of the overlapping tiles that see it.

    It belongs to the tile whose core holds its centre. A network answers a little differently for each tile, so
    near the border of two cores both tiles, or neither, may find the centre on their side. The later tile mends that:
    it leaves what an earlier one has given out already, and takes what an earlier one should have owned and has not.
    Tiles must come in the order of the list; memory holds the nuclei at the borders of two rows.

    Args:
        tiles: all tiles that will come.
        margin: by how much a tile is larger than its core on each side.
    """

    def __init__(self, tiles: Sequence[Tile], margin: int) -> None:
        self._order = {(tile.row, tile.column): index for index, tile in enumerate(tiles)}
        self._margin = margin
        self._given: dict[tuple[int, int], list[_Claim]] = {}

    def choose(self, tile: Tile, nuclei: Sequence[Nucleus]) -> list[Nucleus]:
        """The nuclei, found in the tile, that it gives out."""
        left, top, _ = tile.square
        inner = (tile.core[0] + self._margin, tile.core[1] + self._margin)
        inner += (tile.core[2] - self._margin, tile.core[3] - self._margin)
        seen = [claim for place in self._earlier(tile) for claim in self._given.get(place, [])]
        boxes = np.array([claim.box for claim in seen]).reshape(-1, 4)
        chosen, given = [], []
        for nucleus in nuclei:
            x, y = nucleus.x + left, nucleus.y + top
            if not (tile.owns(x, y) or self._should_be_earlier(tile, x, y)):
                continue
            y0, x0, y1, x1 = nucleus.box
            box = x0 + left, y0 + top, x1 + left, y1 + top
            inside = box[0] >= inner[0] and box[1] >= inner[1] and box[2] <= inner[2] and box[3] <= inner[3]
            if not inside:
                claim = _Claim(box, nucleus.mask)
                meet = (boxes[:, :2] < box[2:]).all(1) & (boxes[:, 2:] > box[:2]).all(1)
                if any(claim.overlap(seen[other]) > SAME for other in np.flatnonzero(meet)):
                    continue
                given.append(claim)
            chosen.append(nucleus)
        self._remember(tile, given)
        return chosen

    def record(self, tile: Tile) -> list:
        """What :meth:`recall` needs of a tile just chosen from, as plain values."""
        return [claim.pack() for claim in self._given[tile.row, tile.column]]

    def recall(self, tile: Tile, record: list) -> None:
        """Go on after a tile that an earlier run finished."""
        self._remember(tile, [_Claim.unpack(values) for values in record])

    def _remember(self, tile: Tile, given: list[_Claim]) -> None:
        self._given = {place: claims for place, claims in self._given.items() if place[0] >= tile.row - 1}
        self._given[tile.row, tile.column] = given

    def _earlier(self, tile: Tile) -> list[tuple[int, int]]:
        row, column = tile.row, tile.column
        return [(row, column - 1), (row - 1, column - 1), (row - 1, column), (row - 1, column + 1)]

    def _should_be_earlier(self, tile: Tile, x: float, y: float) -> bool:
        """Whether a centre lies just outside of the tile's core, in that of an earlier tile."""
        left, top, right, bottom = tile.core
        if not (left - REACH <= x < right + REACH and top - REACH <= y < bottom + REACH):
            return False
        column = tile.column + (x >= right) - (x < left)
        row = tile.row + (y >= bottom) - (y < top)
        return self._order.get((row, column), len(self._order)) < self._order[tile.row, tile.column]
