"""Ways in which channels of the network keep touching nuclei apart; ``targets`` has what they are taught."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from monai.apps.pathology.transforms.post.array import Watershed
from scipy import ndimage
from skimage.measure import label as connected_components
from skimage.morphology import h_maxima

__all__ = ["SEPARATIONS", "separate"]

SMOOTHING = 2.0  # pixels; standard deviation of the Gaussian that takes the ripples off the distance map
SMALLEST_MARKER = 10  # pixels

STEPS = 12  # of a pixel towards the middle of its nucleus,
STRIDE = 4.0  # pixels at most; less, the nearer it is
CROWD = 1.0  # pixels; standard deviation of the Gaussian within which arrivals are counted together


def separate(components: np.ndarray, maps: np.ndarray, targets: str, depth: float) -> np.ndarray:
    """
    Cut components of the foreground into nuclei, by what the network says beside the foreground.

    - ``distance``: markers are the h-maxima of the smoothed distance map, peaks that rise by ``depth`` above the
      saddle to a higher one; a watershed follows its valleys. A peak counts relative to its surroundings, and not
      above a fixed value, because a network's distances are lower than the true ones for small and for doubtful nuclei.
    - ``border``: markers are what contacts leave of the foreground, those of at least 10 pixels; a contact is where its
      probability is above half of ``depth``, low because contacts are few and a network's claims of them cautious.
    - ``hv``: each pixel walks to the middle of its nucleus, as the places say. Where pixels arrive in crowds are
      markers, which each pixel takes that arrives there. A crowd has 100 ``depth`` pixels or more.

    Foreground without a marker stays one nucleus. Work grows with pixels, never with nuclei times pixels.

    Args:
        components: (H, W) integer, the connected components of the foreground.
        maps: (C - 1, H, W) float in [0, 1], the channels behind the foreground.
        targets: what they mean, a key of :data:`SEPARATIONS`.
        depth: in (0, 1]; smaller values separate more touching nuclei and split more single ones.

    Returns:
        (H, W) integer, nuclei above 0 wherever components are.
    """
    return SEPARATIONS[targets](components, maps, depth)


def _by_distance(components: np.ndarray, maps: np.ndarray, depth: float) -> np.ndarray:
    smooth = ndimage.gaussian_filter(maps[0], SMOOTHING)
    # whole levels: peaks of exactly the wanted depth must not be lost to rounding. Every second row and column is
    # enough for peaks of a map this smooth, and h_maxima is what takes the time
    levels = np.rint(smooth[::2, ::2] * 255).astype(np.uint8)
    peaks = h_maxima(levels, max(round(depth * 255), 1))
    markers = np.zeros_like(components)
    markers[::2, ::2] = connected_components(peaks, connectivity=2)
    markers[components == 0] = 0
    return _flood(components, markers, -smooth)


def _by_contact(components: np.ndarray, maps: np.ndarray, depth: float) -> np.ndarray:
    contact = maps[0]
    markers = connected_components((components > 0) & (contact <= depth / 2), connectivity=1)
    markers[np.bincount(markers.ravel())[markers] < SMALLEST_MARKER] = 0
    return _flood(components, markers, contact)


def _by_place(components: np.ndarray, maps: np.ndarray, depth: float) -> np.ndarray:
    height, width = components.shape
    rows, columns = np.nonzero(components)
    # how far from the middle, in halves of the nucleus, along columns and along rows
    right, down = (2 * place.astype(np.float32) - 1 for place in maps)
    y, x = rows.astype(np.float32), columns.astype(np.float32)
    for _ in range(STEPS):
        here = np.rint(y).astype(int), np.rint(x).astype(int)
        y = np.clip(y - STRIDE * down[here], 0, height - 1)
        x = np.clip(x - STRIDE * right[here], 0, width - 1)
    here = np.rint(y).astype(int), np.rint(x).astype(int)
    arrived = np.bincount(here[0] * width + here[1], minlength=height * width).reshape(height, width)
    crowd = 2 * np.pi * CROWD**2 * ndimage.gaussian_filter(arrived.astype(np.float32), CROWD)
    peaks = connected_components(crowd >= 100 * depth, connectivity=2)
    markers = np.zeros_like(components)
    markers[rows, columns] = peaks[here]
    return _flood(components, markers, np.zeros(components.shape))


def _flood(components: np.ndarray, markers: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Watershed of the foreground from markers that lie in it; a component without a marker stays one nucleus."""
    has_marker = np.zeros(components.max(initial=0) + 1, bool)
    has_marker[components[markers > 0]] = True
    bare = (components > 0) & ~has_marker[components]
    markers[bare] = components[bare] + markers.max(initial=0)
    return Watershed(connectivity=2)(heights, mask=components > 0, markers=markers)


SEPARATIONS: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "distance": _by_distance,
    "border": _by_contact,
    "hv": _by_place,
}
