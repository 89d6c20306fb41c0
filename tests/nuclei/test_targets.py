"""What a network is taught, and that nuclei come back from it."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
import torch
from drawings import discs
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logit
from scripts.errors import DataError
from scripts.nuclei.instances import logits_to_instances
from scripts.nuclei.metrics import instance_scores
from scripts.nuclei.targets import CHANNELS, channel_count, make_targets
from scripts.training.losses import SegmentationLoss

SEPARATING = [targets for targets in CHANNELS if channel_count(targets) > 1]


def perfect_logits(label: np.ndarray, targets: str) -> np.ndarray:
    return logit(np.clip(make_targets(label, targets), 1e-3, 1 - 1e-3)).astype(np.float32)


TOUCHING = discs((50, 35, 16), (50, 63, 13), (72, 48, 12), (20, 80, 9))


@pytest.mark.parametrize("targets", SEPARATING)
def test_touching_nuclei_come_back_from_perfect_logits(targets):
    _, instances = logits_to_instances(perfect_logits(TOUCHING, targets), targets=targets)
    scores = instance_scores(instances[0], TOUCHING)
    assert scores["f1_50"] == 1 and scores["aji"] > 0.97


@pytest.mark.parametrize("targets", CHANNELS)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_targets_are_logits_to_be_and_turn_with_the_image(targets, seed):
    rng = np.random.default_rng(seed)
    label = np.kron(rng.integers(0, 5, (6, 7)), np.ones((5, 4), np.int32)) * 3
    target = make_targets(label, targets)
    assert target.shape == (channel_count(targets), *label.shape) and target.dtype == np.float32
    assert target.min() >= 0 and target.max() <= 1 and (target[0] == (label > 0)).all()
    mirrored = make_targets(label[:, ::-1], targets)
    if targets == "hv":
        mirrored[1] = 1 - mirrored[1]
    np.testing.assert_allclose(mirrored[..., ::-1], target, atol=1e-5)


def test_places_run_from_side_to_side():
    label = discs((50, 35, 16))
    _, right, down = make_targets(label, "hv")
    assert (right[50, 19], right[50, 35], right[50, 51]) == pytest.approx((0, 0.5, 1))
    assert (down[34, 35], down[50, 35], down[66, 35]) == pytest.approx((0, 0.5, 1))
    assert right[0, 0] == down[0, 0] == 0.5


def test_memory_goes_by_pixels_not_by_the_highest_id():
    """A crop of a large map has ids of the whole."""
    label = discs((20, 20, 12), (70, 70, 12))
    wanted = make_targets(label, "hv")
    tracemalloc.start()
    try:
        np.testing.assert_array_equal(make_targets(label * 10_000_000, "hv"), wanted)
        assert tracemalloc.get_traced_memory()[1] < 100 * label.nbytes  # a number for each id would be 4,000
    finally:
        tracemalloc.stop()


def test_contacts_are_where_nuclei_touch_and_not_where_they_end():
    _, contact = make_targets(TOUCHING, "border")
    assert contact[50, 51] == 1 and contact[50, 20] == contact[20, 80] == 0
    assert not make_targets(discs((50, 35, 16)), "border")[1].any()
    line = np.zeros((9, 9), np.int32)
    line[:, :4], line[:, 5:] = 1, 2
    assert (make_targets(line, "border")[1][:, 3:6] == 1).all(), "a line of background between them is a contact too"


@pytest.mark.parametrize("targets", SEPARATING)
def test_the_loss_of_each_sample_is_least_where_the_targets_are(targets):
    empty = np.zeros_like(TOUCHING)
    target = torch.as_tensor(np.stack([make_targets(label, targets) for label in (TOUCHING, empty)]))
    perfect = torch.as_tensor(np.stack([perfect_logits(label, targets) for label in (TOUCHING, empty)]))
    loss = SegmentationLoss(targets)
    best = loss(perfect, target)
    assert best.shape == (2,) and torch.isfinite(best).all()
    for channel in range(len(CHANNELS[targets])):
        worse = perfect.clone()
        worse[:, channel] = -worse[:, channel] + 1
        assert loss(worse, target)[0] > best[0] + 0.01, channel
    logits = torch.zeros_like(target, requires_grad=True)
    loss(logits, target)[0].backward()
    assert logits.grad[0].abs().sum(dim=(1, 2)).min() > 0, "every channel learns"
    assert not logits.grad[1].any(), "samples stay apart"


@pytest.mark.parametrize("targets", SEPARATING)
def test_time_grows_with_pixels_not_with_nuclei_times_pixels(targets):
    tile = np.kron(np.arange(1, 17).reshape(4, 4), np.ones((9, 9), np.int32))

    def seconds(repeat: int) -> float:
        shift = 16 * np.kron(np.arange(repeat**2).reshape(repeat, repeat), np.ones((36, 36), np.int32))
        logits = perfect_logits(np.tile(tile, (repeat, repeat)) + shift, targets)
        times = []
        for _ in range(3):
            begun = time.process_time()
            logits_to_instances(logits, targets=targets)
            times.append(time.process_time() - begun)
        return min(times)

    assert seconds(20) < 16 * 4 * seconds(5), "sixteen times the pixels and nuclei"


def test_unknown_targets_are_refused():
    with pytest.raises(ValueError, match="targets must be one of foreground, distance, border, hv, got 'flow'"):
        SegmentationLoss("flow")
    with pytest.raises(ValueError, match=r"logits must be \(3, H, W\) or \(1, H, W\), got \(2, 8, 8\)"):
        logits_to_instances(np.zeros((2, 8, 8), np.float32), targets="hv")


def test_a_number_of_channels_that_does_not_fit_is_refused():
    assert channel_count("hv") == channel_count("hv", 3) == 3
    with pytest.raises(DataError, match="out_channels: it is 1, but --targets distance has 2.*--targets foreground"):
        channel_count("distance", 1)
