from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.engines import SupervisedEvaluator
from monai.handlers import MeanDice, from_engine
from monai.metrics import PanopticQualityMetric
from scripts.evaluation.handlers import PenalisedHausdorff
from scripts.nuclei.metrics import best_iou, hausdorff_distance, image_metrics, instance_scores, known_mpp

OVERLAP = ("dice", "iou", "surface_dice", "aji", "pq", "dq", "sq", "f1_50")
DISTANCES = ("hd_px", "hd95_px")


def instance_maps(side: int = 9, ids: int = 4) -> st.SearchStrategy[np.ndarray]:
    return arrays(np.int32, (side, side), elements=st.integers(0, ids), fill=st.just(0))


def of_instances(pred: np.ndarray, true: np.ndarray, **kwargs) -> dict[str, float]:
    return image_metrics(pred > 0, true > 0, pred, true, **kwargs)


def random_nuclei(seed: int, side: int = 96, count: int = 25) -> np.ndarray:
    """Discs that may touch and overlap, ids with gaps."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    label = np.zeros((side, side), np.int32)
    for index in range(count):
        row, column, radius = rng.integers(0, side), rng.integers(0, side), rng.integers(3, 10)
        label[(rows - row) ** 2 + (columns - column) ** 2 <= radius**2] = 3 * index + 2
    return label


def brute_force_aji(pred: np.ndarray, true: np.ndarray) -> float:
    """Kumar et al. 2017, algorithm 1, word by word."""
    pred_ids, used = [i for i in np.unique(pred) if i], set()
    intersections = unions = 0
    for true_id in (i for i in np.unique(true) if i):
        nucleus = true == true_id
        best_iou, best = 0.0, None
        for pred_id in pred_ids:
            found = pred == pred_id
            iou = (nucleus & found).sum() / (nucleus | found).sum()
            if iou > best_iou:
                best_iou, best = iou, pred_id
        if best is None:
            unions += nucleus.sum()
        else:
            intersections += (nucleus & (pred == best)).sum()
            unions += (nucleus | (pred == best)).sum()
            used.add(best)
    return intersections / (unions + sum((pred == i).sum() for i in pred_ids if i not in used))


@pytest.mark.parametrize("seed", range(5))
def test_aji_is_that_of_kumar(seed):
    true, pred = random_nuclei(seed), np.roll(random_nuclei(seed), seed + 1, axis=1)
    pred[pred == 5] = 0
    assert instance_scores(pred, true)["aji"] == pytest.approx(brute_force_aji(pred, true), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_panoptic_quality_is_monais(seed):
    true, pred = random_nuclei(seed), np.roll(random_nuclei(seed), 1 + seed % 3, axis=0)
    pred[pred == 8] = 0
    maps = [torch.as_tensor(np.stack([ids, ids > 0]))[None] for ids in (pred, true)]
    metric = PanopticQualityMetric(num_classes=1, metric_name=("pq", "sq", "rq"), smooth_numerator=1e-12)
    metric(*maps)
    pq, sq, rq = (value.item() for value in metric.aggregate())
    scores = instance_scores(pred, true)
    assert 0 < scores["dq"] < 1, "the case must have matches and misses, or it compares nothing"
    assert scores["pq"] == pytest.approx(pq, abs=1e-6)
    assert scores["sq"] == pytest.approx(sq, abs=1e-6)
    assert scores["dq"] == scores["f1_50"] == pytest.approx(rq, abs=1e-6)


def test_known_numbers():
    """Two 4x4 squares; one found half, one missed, one invented: every score can be counted by hand."""
    true, pred = np.zeros((20, 20), np.int32), np.zeros((20, 20), np.int32)
    true[2:6, 2:6], true[12:16, 2:6] = 1, 2
    pred[2:6, 3:6], pred[12:16, 12:16] = 7, 9
    scores = of_instances(pred, true, mpp=0.5)
    assert scores["dice"] == pytest.approx(2 * 12 / (28 + 32))
    assert scores["iou"] == pytest.approx(12 / 48)
    assert scores["aji"] == pytest.approx(12 / (16 + 16 + 16))
    assert (scores["dq"], scores["sq"]) == (0.5, 0.75)
    assert scores["pq"] == 0.375
    assert (scores["n_true"], scores["n_pred"]) == (2, 2)
    # the far corner of the invented square, (12, 15), lies 10 columns from the missed square's edge (12, 5)
    assert scores["hd_px"] == pytest.approx(10)
    assert scores["hd_um"] == pytest.approx(5)
    assert scores["hd95_um"] == pytest.approx(scores["hd95_px"] / 2)


@pytest.mark.parametrize("mpp", [None, math.nan, torch.tensor(math.nan)])
def test_micrometres_only_when_mpp_is_known(mpp):
    true = random_nuclei(0)
    assert not [key for key in of_instances(true, true, mpp=mpp) if key.endswith("_um")]
    assert "hd_um" in of_instances(true, true, mpp=torch.tensor(0.25))
    assert [known_mpp(mpp) for mpp in (0, -0.1, math.inf, "0.5", 1e-9)] == [None, None, None, 0.5, 1e-9]


def test_tolerance_is_in_the_name():
    true = random_nuclei(0)
    pred = np.roll(true, 3, axis=1)
    tight, loose = of_instances(pred, true, tolerance_px=1), of_instances(pred, true, tolerance_px=4)
    assert tight["surface_dice"] < loose["surface_dice"]
    assert of_instances(pred, true) == of_instances(pred, true, tolerance_px=2)


@pytest.mark.parametrize("shape", [(30, 40), (1, 30, 40)])
def test_empty_masks_are_defined(shape):
    empty, full = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    full[..., 3:9, 3:9] = 1
    agree = of_instances(empty, empty)
    assert all(agree[key] == 1 for key in OVERLAP) and all(agree[key] == 0 for key in DISTANCES)
    assert agree["undefined"] == 0
    for pred, true in ((empty, full), (full, empty)):
        scores = of_instances(pred, true)
        assert all(scores[key] == 0 for key in OVERLAP)
        assert all(scores[key] == 50 for key in DISTANCES), "the diagonal of 30 x 40"
        assert scores["undefined"] == 1


@settings(max_examples=40, deadline=None)
@given(instance_maps(), instance_maps())
def test_scores_are_bounded_and_finite(pred, true):
    scores = of_instances(pred, true)
    assert all(math.isfinite(value) for value in scores.values())
    assert all(0 <= scores[key] <= 1 + 1e-6 for key in OVERLAP)
    assert scores["pq"] <= min(scores["dq"], scores["sq"])
    assert all(0 <= scores[key] <= math.hypot(9, 9) for key in DISTANCES)
    swapped = of_instances(true, pred)
    for key in ("dice", "iou", "hd_px", "hd95_px", "pq"):
        assert scores[key] == pytest.approx(swapped[key], abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(instance_maps())
def test_a_perfect_prediction_scores_one(true):
    scores = of_instances(true, true)
    assert all(scores[key] == pytest.approx(1) for key in OVERLAP)
    assert all(scores[key] == 0 for key in DISTANCES)


@settings(max_examples=40, deadline=None)
@given(instance_maps(), instance_maps(), st.permutations([1, 2, 3, 40_000]), st.permutations([1, 2, 3, 2_000_000_000]))
def test_ids_do_not_matter(pred, true, new_pred, new_true):
    # small maps are full of equal IoUs, where a choice by id would show
    renamed_pred, renamed_true = (
        np.array([0, *ids], np.int32)[old] for ids, old in ((new_pred, pred), (new_true, true))
    )
    assert of_instances(renamed_pred, renamed_true) == of_instances(pred, true)


@pytest.mark.parametrize("first, second", [(1, 2), (2, 1)])
def test_a_tie_goes_to_the_first_in_raster_order_whatever_its_id(first, second):
    """The middle nucleus overlaps both predictions alike; with the second one chosen AJI would be 4 / 10."""
    true = np.array([[5, 5, 6, 6, 6, 6, 0, 0]])
    pred = np.array([[first] * 4 + [second] * 4])
    assert instance_scores(pred, true)["aji"] == pytest.approx(4 / 14)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_matches_of_nuclei_are_those_of_panoptic_quality(seed):
    rng = np.random.default_rng(seed)
    true = np.kron(rng.permutation(9).reshape(3, 3), np.ones((6, 6), int))
    pred = np.roll(true, rng.integers(0, 4, 2), (0, 1))
    scores, best = instance_scores(pred, true), best_iou(pred, true)
    assert len(best) == 8 and ((best >= 0) & (best <= 1)).all()
    assert 2 * (best > 0.5).sum() / (scores["n_true"] + scores["n_pred"]) == pytest.approx(scores["f1_50"])
    assert best_iou(true, true).tolist() == [1] * 8
    assert best_iou(np.zeros((4, 4), int), true[:4, :4]).tolist() == []
    rows = np.repeat([[1, 1, 2, 2, 2, 0, 0, 0]], 3, 0), np.repeat([[1, 1, 1, 1, 2, 2, 2, 2]], 3, 0)
    assert best_iou(*rows).tolist() == [2 / 4, 2 / 5], "of the second nucleus 2 with one of 4, and 1 with one of 4"


def test_maps_of_different_size_are_refused():
    with pytest.raises(ValueError, match="true_mask.*5, 5"):
        image_metrics(np.ones((4, 4)), np.ones((5, 5)), np.ones((4, 4), int), np.ones((4, 4), int))


def test_user_sees_no_deprecation_warnings():
    true = random_nuclei(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        of_instances(np.roll(true, 2), true)
        of_instances(np.zeros_like(true), true)


def evaluate(pairs, **kwargs):
    """Run a MONAI evaluator whose network hands out given masks; returns its state."""
    data = [
        {"image": torch.as_tensor(pred)[None].float(), "label": torch.as_tensor(true)[None]} for pred, true in pairs
    ]
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=torch.utils.data.DataLoader(data, batch_size=2),
        network=torch.nn.Identity(),
        key_val_metric={"val_dice": MeanDice(output_transform=from_engine(["pred", "label"]))},
        additional_metrics={
            "val_hd95": PenalisedHausdorff(95, output_transform=from_engine(["pred", "label"]), **kwargs)
        },
    )
    evaluator.run()
    return evaluator.state


def test_a_model_that_finds_nothing_is_penalised_in_validation():
    """MONAI's own handler drops such images and gives 0.0, the best of all scores."""
    true = (random_nuclei(2) > 0).astype(np.uint8)
    empty, shifted = np.zeros_like(true), np.roll(true, 2, axis=0)
    diagonal = math.hypot(*true.shape)
    state = evaluate([(empty, true), (shifted, true), (empty, empty)])
    expected = (diagonal + hausdorff_distance(shifted, true, 95)[0] + 0) / 3
    assert state.metrics["val_hd95"] == pytest.approx(expected, rel=1e-5)
    assert state.metrics["val_hd95_undefined"] == 1
    assert state.metric_details["val_hd95"].shape == (3, 2)
    assert evaluate([(empty, true)]).metrics["val_hd95"] == pytest.approx(diagonal)
    assert evaluate([(true, true)], save_details=False).metrics == {
        "val_dice": 1.0,
        "val_hd95": 0.0,
        "val_hd95_undefined": 0,
    }
