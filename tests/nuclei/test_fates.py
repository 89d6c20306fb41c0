"""What became of each nucleus, on maps where it can be seen, and what must hold on any."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts.nuclei.fates import DETECTION_FATES, TRUE_FATES, contrast, fates, touching
from scripts.nuclei.metrics import instance_scores
from scripts.nuclei.overlays import FATE_COLOURS, fate_overlay


def boxes(*places: tuple[int, int, int, int], side: int = 40) -> np.ndarray:
    """An instance map with a nucleus 1, 2, ... in each (top, bottom, left, right)."""
    label = np.zeros((side, side), np.int32)
    for index, (top, bottom, left, right) in enumerate(places, start=1):
        label[top:bottom, left:right] = index
    return label


def told(pred: np.ndarray, true: np.ndarray) -> tuple[list[str], list[str]]:
    found = fates(pred, true)
    return [TRUE_FATES[fate] for fate in found.true], [DETECTION_FATES[fate] for fate in found.detections]


CASES = {
    "the same": ([(0, 9, 0, 9)], [(0, 9, 0, 9)], ["matched"], ["matched"]),
    "nothing": ([], [], [], []),
    "not found": ([(0, 9, 0, 9)], [], ["missed"], []),
    "elsewhere": ([(0, 9, 0, 9)], [(20, 29, 0, 9)], ["missed"], ["false"]),
    "a corner only": ([(0, 10, 0, 10)], [(6, 16, 6, 16)], ["mostly missed"], ["mostly false"]),
    "two as one": ([(0, 9, 0, 9), (0, 9, 9, 18)], [(0, 9, 0, 18)], ["merged"] * 2, ["merge"]),
    "one as two": ([(0, 9, 0, 18)], [(0, 9, 0, 9), (0, 9, 9, 18)], ["split"], ["fragment"] * 2),
    "a small one swallowed": (
        [(0, 9, 0, 9), (0, 9, 9, 12)],
        [(0, 9, 0, 12)],
        ["matched", "merged"],
        ["matched"],
    ),
    "drawn far too wide": ([(5, 10, 5, 10)], [(0, 20, 0, 20)], ["wrong outline"], ["false"]),
    "drawn too wide": ([(0, 10, 0, 11)], [(0, 15, 0, 15)], ["wrong outline"], ["mostly false"]),
    "half of it, and a neighbour's edge": (
        [(0, 10, 0, 10), (10, 14, 0, 10)],
        [(4, 10, 0, 5), (10, 16, 0, 10)],
        ["mostly missed", "matched"],
        ["wrong outline", "matched"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_fate_is_what_one_sees(case):
    true, pred, of_true, of_detections = CASES[case]
    assert told(boxes(*pred), boxes(*true)) == (of_true, of_detections)


@st.composite
def maps(draw) -> tuple[np.ndarray, np.ndarray]:
    """Two random maps of blocks that overlap each other in all ways, with ids that have gaps."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    both = []
    for _ in range(2):
        label = np.zeros((24, 24), np.int32)
        for index in range(draw(st.integers(0, 8))):
            y, x, height, width = rng.integers((0, 0, 1, 1), (23, 23, 14, 14))
            label[y : y + height, x : x + width] = 3 * index + 2
        both.append(label)
    return both[0], both[1]


@given(maps())
@settings(max_examples=200, deadline=None)
def test_exchanging_the_maps_exchanges_the_fates(pair):
    pred, true = pair
    one, other = fates(pred, true), fates(true, pred)
    assert one.true.tolist() == other.detections.tolist()
    assert one.detections.tolist() == other.true.tolist()
    assert one.true_ids.tolist() == np.unique(true[true > 0]).tolist()
    assert one.detection_ids.tolist() == np.unique(pred[pred > 0]).tolist()


@given(maps())
@settings(max_examples=100, deadline=None)
def test_matches_are_those_of_panoptic_quality(pair):
    pred, true = pair
    of_true, of_detections = told(pred, true)
    scores = instance_scores(pred, true)
    assert of_true.count("matched") == of_detections.count("matched")
    if of_true or of_detections:
        assert 2 * of_true.count("matched") / (len(of_true) + len(of_detections)) == pytest.approx(scores["f1_50"])
    assert set(told(true, true)[0]) <= {"matched"}


@given(maps(), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_ids_and_direction_do_not_matter(pair, seed):
    pred, true = pair
    names = np.random.default_rng(seed).permutation(np.arange(1, 40))
    renamed = np.where(true > 0, names[true], 0)
    one, other = fates(pred, true), fates(pred.T, renamed.T)
    of_renamed = dict(zip(other.true_ids, other.true))
    assert [of_renamed[names[index]] for index in one.true_ids] == one.true.tolist()
    assert one.detections.tolist() == other.detections.tolist()
    assert touching(true).tolist() == touching(true[::-1].T).tolist()


def test_maps_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        fates(np.zeros((3, 4), int), np.zeros((4, 3), int))


def test_nuclei_touch_with_and_without_a_line_between_them():
    assert touching(boxes((0, 5, 0, 5), (0, 5, 5, 9), (20, 25, 0, 5))).tolist() == [True, True, False]
    assert touching(boxes((0, 5, 0, 5), (6, 9, 6, 9))).tolist() == [True, True], "one pixel of background, slanting"
    assert touching(boxes((0, 5, 0, 5), (0, 5, 7, 9))).tolist() == [False, False]
    assert touching(boxes()).tolist() == []


def test_contrast_is_against_the_background_nearby():
    label = boxes((5, 10, 5, 10), (5, 10, 10, 14), (30, 35, 30, 35))
    image = np.full((3, 40, 40), 200.0)
    image[:, 20:] = 100
    image[:, label == 1], image[:, label == 2], image[:, label == 3] = 50, 180, 130
    assert contrast(image, label) == pytest.approx([150, 20, 30]), "neither the neighbour nor far background counts"
    assert np.isnan(contrast(image, np.ones((40, 40), int))).all()
    assert contrast(image, np.zeros((40, 40), int)).tolist() == []


def test_overlay_has_each_nucleus_in_the_colour_of_its_fate_and_a_legend():
    true = boxes((2, 9, 2, 9), (2, 9, 9, 16), (20, 30, 20, 30))
    pred = boxes((2, 9, 2, 16), (32, 38, 2, 8))
    drawn = fate_overlay(np.full((3, 40, 40), 90.0), pred[None], true[None], "a.png")
    assert drawn.dtype == np.uint8 and drawn.shape[1] == 80
    picture = drawn[-80:]
    assert tuple(picture[4, 4]) == tuple(picture[4, 30]) == FATE_COLOURS["merged"]
    assert tuple(picture[40, 40]) == FATE_COLOURS["missed"] and tuple(picture[64, 4]) == FATE_COLOURS["false"]
    assert tuple(picture[12, 8]) == (90, 90, 90), "the inside stays visible"
    legend = {tuple(colour) for colour in drawn[24:-80].reshape(-1, 3).tolist()}
    assert set(FATE_COLOURS.values()) <= legend
