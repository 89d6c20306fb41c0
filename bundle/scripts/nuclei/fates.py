"""What became of each true nucleus and each detection."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from skimage.segmentation import expand_labels

__all__ = ["DETECTION_FATES", "TRUE_FATES", "Fates", "contrast", "fates", "touching"]

# what became of a true nucleus, and of a detection; the two lists are mirror images of each other
TRUE_FATES = ("matched", "merged", "split", "missed", "mostly missed", "wrong outline")
DETECTION_FATES = ("matched", "fragment", "merge", "false", "mostly false", "wrong outline")

MATCH = 0.5  # IoU above which a nucleus and a detection are one
MOST = 0.5  # share of an area above which it lies "mostly" somewhere
TRACE = 0.1  # share of an area up to which it lies nowhere

NEAR = 2  # pixels; nuclei with at most one pixel between them touch
RING = 6  # pixels around a nucleus that its contrast is measured against


class Fates:
    """
    What became of the nuclei of one image.

    Args:
        true_ids: (N,) ids of the true nuclei, ascending.
        true: (N,) index into :data:`TRUE_FATES`.
        detection_ids: (M,) ids of the detections, ascending.
        detections: (M,) index into :data:`DETECTION_FATES`.
    """

    def __init__(
        self, true_ids: np.ndarray, true: np.ndarray, detection_ids: np.ndarray, detections: np.ndarray
    ) -> None:
        self.true_ids, self.true = true_ids, true
        self.detection_ids, self.detections = detection_ids, detections


def fates(pred: np.ndarray, true: np.ndarray) -> Fates:
    """
    What became of each true nucleus, and what each detection is. The first of these that holds:

    ===============  =======================================================  ================
    true nucleus                                                              detection
    ===============  =======================================================  ================
    matched          IoU above .5 with one of the others                      matched
    missed           at most .1 of its area lies in any of the others         false
    mostly missed    at most .5 of it does                                    mostly false
    merged           more than .5 of it lies in one of the others, in which   fragment
                     more than .5 of a further one of its own kind lies, too
    split            more than .5 of each of two or more others lies in it    merge
    wrong outline    else: one other covers it and differs in extent          wrong outline
    ===============  =======================================================  ================

    "Others" are detections for a true nucleus and true nuclei for a detection; with the two maps exchanged the fates
    are exchanged. A detection may match one nucleus and still hold a smaller one, which is then merged.

    From one sparse contingency table: work grows with pixels and nuclei.

    Args:
        pred: (H, W) integer map of detections, 0 is background; ids need not be consecutive.
        true: (H, W) integer map of true nuclei.

    Raises:
        ValueError: when the maps differ in shape.
    """
    if pred.shape != true.shape:
        raise ValueError(f"the maps must have one shape, got {pred.shape} and {true.shape}")
    true_ids, t, true_area = _numbered(true)
    pred_ids, p, pred_area = _numbered(pred)
    both = (t > 0) & (p > 0)
    # true nuclei are rows, detections columns
    overlap = sparse.coo_array(
        (np.ones(both.sum(), np.int64), (t[both] - 1, p[both] - 1)), shape=(len(true_ids), len(pred_ids))
    )
    overlap.sum_duplicates()
    return Fates(
        true_ids, _one_side(overlap, true_area, pred_area), pred_ids, _one_side(overlap.T, pred_area, true_area)
    )


def touching(instances: np.ndarray, near: int = NEAR) -> np.ndarray:
    """
    (N,) bool, for the ids of an (H, W) instance map in ascending order: whether a pixel of another nucleus lies within
    ``near`` rows and columns. 1 asks for a shared border; 2 lets one pixel of background lie between, so that nuclei
    touch both in annotations that let them share a border and in those that draw a line.
    """
    ids, index, _ = _numbered(instances)
    index = index.reshape(instances.shape)
    result = np.zeros(len(ids) + 1, bool)
    shifts = [(y, x) for y in range(near + 1) for x in range(-near, near + 1) if y > 0 or x > 0]
    height, width = index.shape
    for y, x in shifts:
        one = index[y:, max(x, 0) : width + min(x, 0)]
        other = index[: height - y, max(-x, 0) : width + min(-x, 0)]
        differ = (one != other) & (one > 0) & (other > 0)
        result[one[differ]] = result[other[differ]] = True
    return result[1:]


def contrast(image: np.ndarray, instances: np.ndarray) -> np.ndarray:
    """
    (N,) how much each nucleus of an (H, W) instance map, in ascending order of ids, stands out: the difference between
    its mean grey value and that of the background within 6 pixels of it, in [0, 255]. Where others leave no such
    background, all the image's counts; NaN without any.

    Args:
        image: (3, H, W) RGB in [0, 255].
        instances: the map.
    """
    ids, index, area = _numbered(instances)
    grey = image.astype(np.float64).mean(axis=0).ravel()
    inside = np.bincount(index, grey, len(ids) + 1)[1:] / area
    ring = np.where(index > 0, 0, expand_labels(index.reshape(instances.shape), RING).ravel())
    pixels = np.bincount(ring, minlength=len(ids) + 1)[1:]
    sums = np.bincount(ring, grey, len(ids) + 1)[1:]
    background = grey[index == 0]
    everywhere = background.mean() if len(background) else np.nan
    around = np.where(pixels > 0, sums / np.maximum(pixels, 1), everywhere)
    return np.abs(around - inside)


def _numbered(instances: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids (N,), each pixel's number (H * W,) in 1..N or 0 for background, and areas (N,)."""
    ids, index = np.unique(np.append(instances.ravel(), 0), return_inverse=True)
    index = index.ravel()[:-1]
    return ids[1:], index, np.bincount(index, minlength=len(ids))[1:]


def _one_side(overlap: sparse.coo_array, area: np.ndarray, other_area: np.ndarray) -> np.ndarray:
    """Fates of the rows of a table of overlaps in pixels."""
    row, column, both = *overlap.coords, overlap.data
    count = len(area)
    matched = np.zeros(count, bool)
    matched[row[both > MATCH * (area[row] + other_area[column] - both)]] = True
    covered = np.bincount(row, both, count) / area
    lies_in = both > MOST * area[row]  # at most one column for each row
    crowd = np.bincount(column[lies_in], minlength=len(other_area))
    merged = np.zeros(count, bool)
    merged[row[lies_in]] = crowd[column[lies_in]] > 1
    holds = np.bincount(row[both > MOST * other_area[column]], minlength=count)
    kinds = [matched, covered <= TRACE, covered <= MOST, merged, holds > 1]
    return np.select(kinds, [0, 3, 4, 1, 2], default=5)
