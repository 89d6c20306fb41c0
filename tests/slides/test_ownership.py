"""To which tile a nucleus belongs, on nuclei placed by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scripts.errors import DataError
from scripts.slides.ownership import REACH, Ownership
from scripts.slides.tiles import Tile, make_tiles

MARGIN, STEP = 32, 128


@pytest.fixture
def tiles() -> list[Tile]:
    """Three by three, cores of 128 pixels."""
    return make_tiles((0, 0, 3 * STEP, 3 * STEP), STEP + 2 * MARGIN, MARGIN, 32)


def nucleus(tile: Tile, x: float, y: float, side: int = 10, width: int | None = None) -> SimpleNamespace:
    """A square, or a rectangle, of which the tile says that its centre is at (x, y) of the slide's pixels."""
    x, y, width = x - tile.square[0], y - tile.square[1], width or side
    top, left = round(y - side / 2), round(x - width / 2)
    return SimpleNamespace(x=x, y=y, box=(top, left, top + side, left + width), mask=np.ones((side, width), bool))


def given_out(tiles: list[Tile], seen: dict[tuple[int, int], list[tuple[float, ...]]]) -> dict:
    """Which of the nuclei that tiles see are given out, by tile: row, column -> places."""
    ownership, out = Ownership(tiles, MARGIN), {}
    for tile in tiles:
        places = seen.get((tile.row, tile.column), [])
        nuclei = [nucleus(tile, *place) for place in places]
        chosen = ownership.choose(tile, nuclei)
        if chosen:
            out[tile.row, tile.column] = [place for place, one in zip(places, nuclei) if one in chosen]
    return out


@pytest.mark.parametrize("sides", [(1, 1), (30, 20), (20, 3 * MARGIN)])
def test_a_region_smaller_than_the_margin_has_a_tile(sides):
    tiles = make_tiles((7, 9, 7 + sides[0], 9 + sides[1]), STEP + 2 * MARGIN, MARGIN, 32)
    assert {(tile.core[2] - tile.core[0], tile.core[3] - tile.core[1]) for tile in tiles} == {sides}


def test_margins_that_leave_no_core_are_refused():
    with pytest.raises(DataError, match="margin_um: 64 pixels on either side leave too little of a tile of 160"):
        make_tiles((0, 0, 40, 400), 160, 64, 32)


def test_a_nucleus_belongs_to_the_tile_whose_core_has_its_centre(tiles):
    """Not to the first that sees it, nor to the one that sees most of it."""
    for x, y in ((64, 64), (STEP + 10, 64), (STEP - 10, 64), (64, STEP + 12), (STEP - 20, STEP + 20)):
        seen = {
            (tile.row, tile.column): [(x, y)]
            for tile in tiles
            if abs(x - tile.square[0] - 96) < 91 and abs(y - tile.square[1] - 96) < 91
        }
        assert given_out(tiles, seen) == {(y // STEP, x // STEP): [(x, y)]}


@pytest.mark.parametrize("place", [(STEP, 64), (64, STEP), (STEP, STEP), (3 * STEP - 1, 3 * STEP - 1)])
def test_a_centre_on_a_border_is_the_later_tiles_and_the_last_pixel_is_someones(tiles, place):
    seen = {(tile.row, tile.column): [place] for tile in tiles if tile.owns(*place)}
    assert len(seen) == 1 and given_out(tiles, seen) == seen


@pytest.mark.parametrize("earlier, later", [((STEP - 1, 64), (STEP + 1, 64)), ((64, STEP - 1), (64, STEP + 1))])
def test_what_both_claim_is_the_earlier_ones(tiles, earlier, later):
    second = (0, 1) if later[0] > STEP else (1, 0)
    assert given_out(tiles, {(0, 0): [earlier], second: [later]}) == {(0, 0): [earlier]}


def test_what_neither_claims_the_later_takes_if_it_is_near(tiles):
    """Each of two tiles sees the centre on the other's side."""
    for off, taken in ((1, True), (REACH, True), (REACH + 0.5, False)):
        for row, column in ((0, 1), (0, 2), (1, 1), (2, 2)):
            x, y = column * STEP, row * STEP + 64
            seen = {(row, column - 1): [(x + 1, y)], (row, column): [(x - off, y)]}
            assert given_out(tiles, seen) == ({(row, column): [(x - off, y)]} if taken else {})
        seen = {(0, 1): [(64, STEP + 1)], (1, 0): [(64, STEP - off)]}
        assert given_out(tiles, seen) == ({(1, 0): [(64, STEP - off)]} if taken else {})


@pytest.mark.parametrize("off, taken", [(0, True), (REACH - 0.5, True), (REACH, False)])
def test_towards_the_right_a_tile_takes_from_the_row_above(tiles, off, taken):
    """Where four cores meet, the one left below is later than the one right above."""
    place = (STEP + off, STEP - 1)
    assert given_out(tiles, {(1, 0): [place]}) == ({(1, 0): [place]} if taken else {})
    assert given_out(tiles, {(0, 1): [(STEP + 1, STEP - 1)], (1, 0): [(STEP, STEP - 1)]}) == {
        (0, 1): [(STEP + 1, STEP - 1)]
    }


def test_a_tile_takes_nothing_from_a_later_one(tiles):
    assert given_out(tiles, {(0, 0): [(STEP + 1, 64), (64, STEP + 1), (STEP + 1, STEP + 1)]}) == {}
    assert given_out(tiles, {(0, 1): [(STEP + 5, STEP + 5), (STEP - 5, STEP + 5)]}) == {}, "nor from below"
    assert given_out(tiles, {(0, 0): [(-2, 64)], (2, 2): [(64, 3 * STEP + 2)]}) == {}, "nor from beyond the region"


def test_all_four_earlier_neighbours_are_asked(tiles):
    """The centre tile, and its corners left above and right above."""
    low, high, above = STEP + 1, 2 * STEP - 1, STEP - 1
    around = {(1, 0): (STEP - 1, 190), (0, 0): (STEP - 1, above), (0, 1): (190, above), (0, 2): (2 * STEP + 1, above)}
    for place, (x, y) in around.items():
        mine = (min(max(x, low), high), min(max(y, low), high))
        assert given_out(tiles, {place: [(x, y)], (1, 1): [mine]}) == {place: [(x, y)]}


def test_neighbours_that_touch_are_two_nuclei_and_half_in_common_is_not_the_same_one(tiles):
    for apart, same in ((10, False), (5, False), (4, True)):  # 10, 5 and 4 of a side of 10: 0, half and .6 in common
        seen = {(0, 0): [(STEP - 2, 64)], (0, 1): [(STEP - 2, 64 + apart)]}
        assert given_out(tiles, seen) == ({(0, 0): [(STEP - 2, 64)]} if same else seen), apart


def test_a_small_one_in_a_large_one_is_the_same(tiles):
    """The share is that of the smaller of the two, in whatever order they come."""
    small, large = (STEP - 2, 64, 8), (STEP - 2, 64, 24)
    for first, second in ((small, large), (large, small)):
        assert given_out(tiles, {(0, 0): [first], (0, 1): [second]}) == {(0, 0): [first]}


def test_only_pixels_in_common_count_not_boxes(tiles):
    ownership, (first, second) = Ownership(tiles, MARGIN), tiles[:2]
    one, other = nucleus(first, STEP - 2, 64, 20), nucleus(second, STEP - 2, 64, 20)
    one.mask, other.mask = np.tri(20, dtype=bool), ~np.tri(20, dtype=bool)
    assert ownership.choose(first, [one]) == [one] and ownership.choose(second, [other]) == [other]
    other.mask = np.tri(20, k=3, dtype=bool)
    ownership = Ownership(tiles, MARGIN)
    assert ownership.choose(first, [one]) == [one] and ownership.choose(second, [other]) == []


def test_a_run_that_goes_on_decides_as_one_that_was_not_interrupted(tiles):
    first, second, third = tiles[0], tiles[1], tiles[3]
    before = Ownership(tiles, MARGIN)
    one = nucleus(first, STEP - 1, STEP - 1, 11, 13)
    one.mask[0, 3:] = False
    assert before.choose(first, [one, nucleus(first, 64, 64)])
    record = before.record(first)
    assert len(record) == 1, "of nuclei that no neighbour sees nothing is kept"
    after = Ownership(tiles, MARGIN)
    after.recall(first, record)
    assert after.record(first) == record
    for tile, x, y in ((second, STEP + 1, STEP - 1), (third, STEP - 1, STEP + 1)):
        assert (
            after.choose(tile, [nucleus(tile, x, y, 11, 13)])
            == before.choose(tile, [nucleus(tile, x, y, 11, 13)])
            == []
        )


def test_what_reaches_a_neighbours_window_is_remembered_and_no_more(tiles):
    """A neighbour's window reaches the margin into this core."""
    tile = tiles[0]
    for left, kept in ((STEP - MARGIN - 10, 0), (STEP - MARGIN - 9, 1)):
        for x, y in ((left + 5, 64), (64, left + 5)):
            ownership = Ownership(tiles, MARGIN)
            assert ownership.choose(tile, [nucleus(tile, x, y)])
            assert len(ownership.record(tile)) == kept
    tile = tiles[4]
    for left, kept in ((STEP + MARGIN, 0), (STEP + MARGIN - 1, 1)):
        for x, y in ((left + 5, STEP + 64), (STEP + 64, left + 5)):
            ownership = Ownership(tiles, MARGIN)
            assert ownership.choose(tile, [nucleus(tile, x, y)])
            assert len(ownership.record(tile)) == kept


def test_memory_holds_two_rows():
    many = make_tiles((0, 0, STEP, 9 * STEP), STEP + 2 * MARGIN, MARGIN, 32)
    ownership = Ownership(many, MARGIN)
    for tile in many:
        ownership.choose(tile, [nucleus(tile, 64, tile.core[1] + 5)])
    assert list(ownership._given) == [(7, 0), (8, 0)]
