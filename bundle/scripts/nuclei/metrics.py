from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou, compute_surface_dice

__all__ = ["best_iou", "hausdorff_distance", "image_metrics", "instance_scores", "known_mpp", "mask_scores"]


def image_metrics(
    pred_mask: np.ndarray | torch.Tensor,
    true_mask: np.ndarray | torch.Tensor,
    pred_instances: np.ndarray | torch.Tensor,
    true_instances: np.ndarray | torch.Tensor,
    mpp: float | None = None,
    tolerance_px: float = 2.0,
) -> dict[str, float]:
    """
    All scores of one image. None of them is ever NaN; what an empty mask means is defined here and counted.

    Two empty masks agree: overlap scores 1, distances 0. Exactly one empty mask: overlap scores 0, distances are the
    image diagonal, and ``undefined`` is 1. The instance scores treat empty instance maps in the same way.

    Args:
        pred_mask: (H, W) or (1, H, W), foreground is > 0.
        true_mask: same shape.
        pred_instances: same shape, integer ids, 0 is background; ids need not be consecutive.
        true_instances: same shape and meaning.
        mpp: micrometres per pixel; None or NaN when unknown.
        tolerance_px: how far apart two outlines may be to count as agreeing in the surface Dice, in pixels.

    Returns:
        ``dice, iou, hd_px, hd95_px, surface_dice, undefined`` of the masks (see :func:`mask_scores`),
        ``aji, pq, dq, sq, f1_50, n_true, n_pred`` of the instances (see :func:`instance_scores`), and
        ``hd_um, hd95_um`` when ``mpp`` is known.

    Raises:
        ValueError: when the four maps differ in shape or are not one plane.
    """
    maps = {
        "pred_mask": _plane(pred_mask),
        "true_mask": _plane(true_mask),
        "pred_instances": _plane(pred_instances),
        "true_instances": _plane(true_instances),
    }
    shapes = {name: values.shape for name, values in maps.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"the maps must have one shape, got {shapes}")
    scores = mask_scores(maps["pred_mask"], maps["true_mask"], tolerance_px)
    scores |= instance_scores(maps["pred_instances"], maps["true_instances"])
    if (size := known_mpp(mpp)) is not None:
        scores |= {"hd_um": scores["hd_px"] * size, "hd95_um": scores["hd95_px"] * size}
    return scores


def known_mpp(mpp: object) -> float | None:
    """``mpp`` as a float, or None when it is unknown: None, NaN, or not positive. Takes 0-dim tensors as well."""
    value = math.nan if mpp is None else float(mpp)
    return value if math.isfinite(value) and value > 0 else None


def mask_scores(pred: np.ndarray, true: np.ndarray, tolerance_px: float = 2.0) -> dict[str, float]:
    """
    Dice, IoU, Hausdorff distance, its 95th percentile and surface Dice of two (H, W) masks, all by MONAI.

    ``hd_px`` and ``hd95_px`` are in pixels, as is the tolerance of the surface Dice.
    """
    hd, undefined = hausdorff_distance(pred, true)
    hd95, _ = hausdorff_distance(pred, true, percentile=95)
    scores = {"hd_px": hd, "hd95_px": hd95, "undefined": int(undefined)}
    p, t = _one_hot(pred), _one_hot(true)
    if not (p.any() and t.any()):
        agreement = 0.0 if undefined else 1.0
        return {"dice": agreement, "iou": agreement, "surface_dice": agreement} | scores
    with _without_monai_deprecation():
        surface = compute_surface_dice(p, t, [float(tolerance_px)], include_background=True)
    return {"dice": compute_dice(p, t).item(), "iou": compute_iou(p, t).item(), "surface_dice": surface.item()} | scores


def hausdorff_distance(
    pred: np.ndarray | torch.Tensor, true: np.ndarray | torch.Tensor, percentile: float | None = None
) -> tuple[float, bool]:
    """
    MONAI's Hausdorff distance of two masks of one plane, made total.

    MONAI gives NaN when a mask is empty, and its means drop NaN, so that a model that finds nothing scores a perfect
    0. Here the distance is 0 when both are empty, and the image diagonal when exactly one is.

    Args:
        pred: (H, W) or (1, H, W), foreground is > 0.
        true: same shape.
        percentile: None for the maximum, else e.g. 95.

    Returns:
        the distance in pixels, and whether it was undefined and replaced by the diagonal.
    """
    p, t = _one_hot(pred), _one_hot(true)
    found, wanted = bool(p.any()), bool(t.any())
    if found and wanted:
        with _without_monai_deprecation():
            return compute_hausdorff_distance(p, t, include_background=True, percentile=percentile).item(), False
    if found or wanted:
        return math.hypot(*p.shape[-2:]), True
    return 0.0, False


def instance_scores(pred: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """
    Scores of two (H, W) instance maps, from one sparse contingency table (work grows with pixels and nuclei).

    - ``aji``: aggregated Jaccard index (Kumar et al., IEEE TMI 2017). Each true nucleus takes the prediction of
      highest IoU; a prediction may be taken by several. Equal IoUs go to the pair met first in raster order, so that
      the ids never matter.
    - ``dq``, ``sq``, ``pq`` = dq * sq: panoptic quality (Kirillov et al., CVPR 2019; for nuclei Graham et al., MedIA
      2019). A pair matches when its IoU is above 0.5, which makes matches unique.
    - ``f1_50``: F1 of detection at IoU 0.5, with the same matches; it is the number that PQ calls DQ.
    - ``n_true``, ``n_pred``: numbers of nuclei.
    """
    n_pred_ids = int(pred.max(initial=0)) + 1
    touched = (true > 0) | (pred > 0)
    pairs = true[touched].astype(np.int64) * n_pred_ids + pred[touched]
    pairs, first, overlap = np.unique(pairs, return_index=True, return_counts=True)
    true_ids, t = np.unique(pairs // n_pred_ids, return_inverse=True)
    pred_ids, p = np.unique(pairs % n_pred_ids, return_inverse=True)
    true_area = np.bincount(t, weights=overlap, minlength=len(true_ids))
    pred_area = np.bincount(p, weights=overlap, minlength=len(pred_ids))
    is_pair = (true_ids[t] > 0) & (pred_ids[p] > 0)
    n_true, n_pred = int((true_ids > 0).sum()), int((pred_ids > 0).sum())
    counts = {"n_true": n_true, "n_pred": n_pred}
    if n_true == n_pred == 0:
        return dict.fromkeys(("aji", "pq", "dq", "sq", "f1_50"), 1.0) | counts

    t, p, overlap, first = t[is_pair], p[is_pair], overlap[is_pair], first[is_pair]
    union = true_area[t] + pred_area[p] - overlap
    iou = overlap / union

    order = np.lexsort((first, -iou, t))
    _, best_of_each = np.unique(t[order], return_index=True)
    best = order[best_of_each]
    missed = np.setdiff1d(np.flatnonzero(true_ids > 0), t[best])
    untaken = np.setdiff1d(np.flatnonzero(pred_ids > 0), p[best])
    aji = overlap[best].sum() / (union[best].sum() + true_area[missed].sum() + pred_area[untaken].sum())

    matches = iou[iou > 0.5]
    dq = 2 * len(matches) / (n_true + n_pred)
    sq = math.fsum(matches) / len(matches) if len(matches) else 0.0  # exact, hence the same in any order of ids
    return {"aji": float(aji), "pq": float(dq * sq), "dq": dq, "sq": sq, "f1_50": dq} | counts


def best_iou(pred: np.ndarray, true: np.ndarray) -> np.ndarray:
    """(N,) highest IoU that each predicted nucleus 1..N has with a true one, from (H, W) instance maps."""
    n_pred_ids = int(pred.max(initial=0)) + 1
    pred_area, true_area = np.bincount(pred.ravel(), minlength=1), np.bincount(true.ravel(), minlength=1)
    both = (pred > 0) & (true > 0)
    pairs, overlap = np.unique(true[both].astype(np.int64) * n_pred_ids + pred[both], return_counts=True)
    t, p = pairs // n_pred_ids, pairs % n_pred_ids
    best = np.zeros(n_pred_ids)
    np.maximum.at(best, p, overlap / (true_area[t] + pred_area[p] - overlap))
    return best[1:]


def _plane(values: np.ndarray | torch.Tensor) -> np.ndarray:
    """(H, W) or (1, H, W), numpy or any torch tensor, to a numpy (H, W)."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    plane = values[0] if values.ndim == 3 and len(values) == 1 else values
    if plane.ndim != 2:
        raise ValueError(f"expected a map of shape (H, W) or (1, H, W), got {tuple(values.shape)}")
    return plane


def _one_hot(mask: np.ndarray | torch.Tensor) -> torch.Tensor:
    """One plane to MONAI's (batch, class, H, W) with the one class foreground."""
    return torch.as_tensor(_plane(mask) > 0)[None, None]


@contextmanager
def _without_monai_deprecation() -> Iterator[None]:
    # MONAI's surface metrics pass an argument that MONAI itself has deprecated
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
        yield
