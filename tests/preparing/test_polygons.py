from __future__ import annotations

import numpy as np
import pytest
import skimage.draw
from archives import PLACES, octagon, octagon_ring
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts.errors import DataError
from scripts.preparing.polygons import Outline, rasterise

SQUARE = np.array([[0, 0], [4, 0], [4, 4], [0, 4]], float)


def draw(*rings, shape=(40, 50), pixel_centre=0.5, holes=()):
    return rasterise([Outline(str(n), [np.array(r, float)], holes) for n, r in enumerate(rings)], shape, pixel_centre)


def problems(instances):
    return [finding.problem for finding in instances.findings]


def test_the_two_conventions_of_where_a_pixel_is():
    corners = draw(SQUARE, pixel_centre=0.5).label > 0
    centres = draw(SQUARE, pixel_centre=0).label > 0
    assert corners.sum() == 16 and corners[:4, :4].all(), "a square of four by four pixels"
    assert centres.sum() == 25 and centres[:5, :5].all(), "vertices are pixels of the nucleus"


@pytest.mark.parametrize("place", PLACES)
def test_octagons_are_exact(place):
    label = draw(octagon_ring(*place), shape=(96, 128), pixel_centre=0).label
    np.testing.assert_array_equal(label > 0, octagon(*place))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(-6, 40), st.integers(-6, 45))
def test_moving_a_polygon_by_whole_pixels_moves_its_pixels(seed, down, right):
    ring = np.random.default_rng(seed).uniform(0, 9, (7, 2))
    there = draw(ring, shape=(10, 10)).label
    moved = draw(ring + (right, down), shape=(60, 60)).label
    assert moved.sum() == there[max(-down, 0) :, max(-right, 0) :].sum()


def test_later_polygons_lie_on_top_and_ids_are_the_order_of_the_file():
    instances = draw(SQUARE, SQUARE + 2, SQUARE + 20)
    assert instances.label[1, 1] == 1 and instances.label[3, 3] == 2 and instances.label[22, 22] == 3
    assert instances.label.dtype == np.uint16 and problems(instances) == []


def test_covered_nuclei_are_told():
    assert problems(draw(SQUARE + 1, SQUARE * 3)) == ["nucleus covered by later ones"]
    assert problems(draw(SQUARE, SQUARE + 1)) == ["nucleus mostly covered"]


def test_polygons_outside_and_across_the_border_are_told():
    instances = draw(SQUARE - 20, SQUARE + 100, SQUARE - 2, SQUARE)
    assert problems(instances) == ["polygon outside the image"] * 2 + ["polygon cut by the image border"] + [
        "nucleus covered by later ones"
    ]
    assert [finding.where for finding in instances.findings] == ["0", "1", "2", "2"]


def test_self_crossing_polygons_are_filled_and_told():
    eight = [[0, 0], [8, 8], [8, 0], [0, 8]]
    instances = draw(eight)
    assert problems(instances) == ["self-crossing polygon"]
    assert instances.label[1, 1] == instances.label[6, 6] == 1, "both lobes"
    turns = np.linspace(0, 4 * np.pi, 90)
    radius = np.where(turns < 2 * np.pi, 12, 7)
    twice = np.stack([20 + radius * np.cos(turns), 20 + radius * np.sin(turns)], axis=1)
    instances = draw(twice)
    assert "self-crossing polygon" in problems(instances)
    assert instances.label[20, 20] == 1, "what the outline goes around twice is no hole"


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1.0, 0.5, 2**-10]), st.sampled_from([0, 0.5]))
def test_an_outline_that_does_not_cross_itself_has_the_pixels_that_skimage_gives_it(seed, step, pixel_centre):
    rng = np.random.default_rng(seed)
    turns = np.sort(rng.uniform(0, 2 * np.pi, 12))
    ring = 20 + rng.uniform(3, 15, (12, 1)) * np.stack([np.cos(turns), np.sin(turns)], axis=1)
    ring = np.round(ring / step) * step
    instances = draw(ring, pixel_centre=pixel_centre)
    if "self-crossing polygon" not in problems(instances):
        x, y = (ring - pixel_centre).T
        expected = np.zeros((40, 50), bool)
        expected[skimage.draw.polygon(y, x, expected.shape)] = True
        np.testing.assert_array_equal(instances.label > 0, expected)


def test_touching_itself_is_no_crossing_and_a_hole_behind_a_bridge_stays_a_hole():
    outer, inner = SQUARE * 3, SQUARE + 4
    for turn in (1, -1):  # whichever way round the hole is drawn
        bridged = [*outer, outer[0], inner[0], *inner[1:][::turn], inner[0]]
        instances = draw(bridged)
        assert problems(instances) == [] and instances.label.sum() == 144 - 16 and instances.label[5, 5] == 0


def test_very_many_corners_at_random_are_drawn():
    """Every edge crosses thousands of others: to look at all crossings of a block of edges took 22 seconds."""
    ring = np.random.default_rng(0).uniform(5, 295, (100_000, 2))
    instances = draw(ring, shape=(300, 300))
    assert problems(instances) == ["self-crossing polygon"] and instances.label[10:290, 10:290].mean() > 0.9


@pytest.mark.parametrize("crossing", [False, True])
def test_very_many_corners_are_drawn(crossing):
    """A hundred thousand: what compares all pixels or all edges with all corners takes minutes, and gigabytes."""
    rng = np.random.default_rng(0)
    turns = np.linspace(0, 2 * np.pi, 100_000, endpoint=False)
    radius = 150 + rng.uniform(-5, 5, 100_000)
    turns[1000:1010:2] += 0.5 * crossing
    ring = 160 + radius[:, None] * np.stack([np.cos(turns), np.sin(turns)], axis=1)
    instances = draw(ring, shape=(320, 320))
    assert problems(instances) == ["self-crossing polygon"] * crossing
    assert instances.label.sum() == pytest.approx(np.pi * 150**2, rel=0.01)


@pytest.mark.parametrize(
    "ring", [[], [[3, 3]], [[3, 3], [9, 9]], [[3, 3], [9, 9], [3, 3]], [[3.1, 3.1], [3.2, 3.1], [3.1, 3.2]]]
)
def test_degenerate_polygons_are_told(ring):
    instances = draw(np.array(ring, float).reshape(-1, 2))
    assert problems(instances) == ["degenerate polygon"] and not instances.label.any()


def test_holes_and_parts():
    ring = draw(SQUARE * 3, holes=[SQUARE + 4]).label
    assert ring.sum() == 144 - 16 and ring[5, 5] == 0
    parts = rasterise([Outline("two", [SQUARE, SQUARE + 10])], (40, 50), 0.5).label
    assert parts.max() == 1 and parts.sum() == 32


def test_coordinates_that_are_none():
    with pytest.raises(DataError, match="no pixels"):
        draw([[0, 0], [np.nan, 1], [1, 1]])
    with pytest.raises(DataError, match="no nucleus"):
        draw([[0, 0], [1e6, 0], [1e6, 1e6]])
    with pytest.raises(DataError, match="16-bit"):
        rasterise([Outline("x", [])] * 65536, (4, 4), 0)
