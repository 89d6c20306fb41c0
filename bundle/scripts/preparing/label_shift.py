from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

__all__ = ["common_shift", "label_shift"]

REACH = 5  # pixels that labels are moved each way
MIN_BOUNDARY = 400  # boundary pixels, about ten nuclei; with fewer a shift is chance


def label_shift(image: np.ndarray, label: np.ndarray) -> tuple[float, float] | None:
    """
    How far labels would have to be moved (down, right) for their boundaries to lie where the image changes most.

    The boundary contrast, the mean step of grey from nucleus to background across the labels' boundary, is computed
    for the labels moved by up to five pixels each way; the place of its maximum is refined by a parabola. Outlines
    drawn too large or too small do not matter, because opposite sides cancel.

    Args:
        image: (H, W, 3) uint8.
        label: (H, W), 0 is background.

    Returns:
        pixels, to about 0.3 for an image with many nuclei; None if there is too little boundary, or no contrast.
    """
    grey = ndimage.gaussian_filter(image.astype(np.float32).mean(axis=2), 1.0)
    inside = label > 0
    if min(label.shape) <= 4 * REACH or not inside.any() or inside.all():
        return None
    steps, signs, places = [], [], []
    for axis in (0, 1):
        step = np.diff(grey, axis=axis)
        change = np.diff(inside.astype(np.int8), axis=axis)
        margin = (slice(REACH, -REACH),) * 2
        rows, columns = np.nonzero(change[margin])
        steps.append(step)
        signs.append(-change[margin][rows, columns])
        places.append((rows + REACH, columns + REACH))
    count = sum(len(sign) for sign in signs)
    if count < MIN_BOUNDARY:
        return None
    moves = range(-REACH, REACH + 1)
    contrast = np.array([[_sum(steps, signs, places, down, right) for right in moves] for down in moves]) / count
    contrast = contrast if contrast[REACH, REACH] >= 0 else -contrast  # bright nuclei on dark ground
    row, column = np.unravel_index(contrast.argmax(), contrast.shape)
    if contrast[row, column] < 1.0:  # grey levels; noise
        return None
    return _refine(contrast[:, column], row) - REACH, _refine(contrast[row], column) - REACH


def common_shift(shifts: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """The median shift of at least three images, which tells to a tenth of a pixel; None of fewer."""
    if len(shifts) < 3:
        return None
    down, right = np.median(np.array(shifts), axis=0)
    return float(down), float(right)


def _sum(steps, signs, places, down: int, right: int) -> float:
    return float(
        sum(
            (step[rows + down, columns + right] * sign).sum()
            for step, sign, (rows, columns) in zip(steps, signs, places)
        )
    )


def _refine(values: np.ndarray, peak: int) -> float:
    """Place of the maximum of a parabola through the highest value and its neighbours."""
    if not 0 < peak < len(values) - 1:
        return float(peak)
    before, top, after = values[peak - 1 : peak + 2]
    bend = before - 2 * top + after
    return peak + (0.5 * (before - after) / bend if bend else 0.0)
