"""Whether nuclei have the size that the model knows, or an image is of another magnification."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

__all__ = ["enlarging_factor", "fitting_factor", "likely_factor"]

ENOUGH_NUCLEI = 20  # of fewer the median says little
# times the area that the model knows. Of 30 unseen MoNuSeg tiles at the right scale 2 lie outside, of the same tiles
# at half the scale three of four: see docs/instances.md
USUAL_AREA = (0.5, 2.0)
# below this share of that area an image is segmented better when enlarged, by at most so much: see docs/experiments.md
SMALL_AREA, LARGEST_FACTOR = 0.8, 2.0


def fitting_factor(instances: np.ndarray, known_area: Mapping[str, float] | None) -> float | None:
    """
    By how much an image would have to be enlarged for its nuclei to have the size of those the model was trained on.

    Args:
        instances: (H, W) ids of the nuclei, in the pixels that the network saw.
        known_area: median area of a nucleus in pixels, by training domain; None if the model does not say.

    Returns:
        the factor of each side, 2 for a 20x image where the model knows 40x; None where the median area is usual, or
        there are too few nuclei to tell.
    """
    ratio = _median_area(instances, known_area)
    return None if ratio is None or USUAL_AREA[0] <= ratio <= USUAL_AREA[1] else 1 / math.sqrt(ratio)


def enlarging_factor(instances: np.ndarray, known_area: Mapping[str, float] | None) -> float | None:
    """
    By how much to enlarge an image of unknown pixel size before it is segmented.

    Unlike :func:`fitting_factor`, which tells that something is unusual, this is acted on: nuclei that look large are
    left alone, and the factor is bounded.

    Args:
        instances, known_area: as there.

    Returns:
        the factor of each side, above 1; None where nuclei are large enough, or too few to tell.
    """
    ratio = _median_area(instances, known_area)
    return None if ratio is None or ratio >= SMALL_AREA else min(1 / math.sqrt(ratio), LARGEST_FACTOR)


def likely_factor(instances: np.ndarray, known_area: Mapping[str, float] | None) -> float | None:
    """The factor that :func:`fitting_factor` would give, also where nuclei are of a usual size."""
    ratio = _median_area(instances, known_area)
    return None if ratio is None else 1 / math.sqrt(ratio)


def _median_area(instances: np.ndarray, known_area: Mapping[str, float] | None) -> float | None:
    """Median area of nuclei, in units of what the model knows; None where that or the nuclei are too few to tell."""
    areas = np.bincount(instances.ravel())[1:]
    areas = areas[areas > 0]
    if not known_area or len(areas) < ENOUGH_NUCLEI:
        return None
    known = math.exp(float(np.mean(np.log(list(known_area.values())))))
    return float(np.median(areas)) / known
