"""Which staining an image has, for sets that mix several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.cluster.hierarchy import DisjointSet

__all__ = ["STAINS", "group_by_borders", "stain_of"]

STAINS = ("fluo", "grey", "white", "purple")  # what stain_of tells
MAX_SATURATION = 5.0  # grey levels between the channels of a picture without colour
BRIGHT = 172  # darkest channel of the brighter part of a slide's empty background
MATCH = 1.8  # border difference over that of neighbouring lines; measured: at most 1.3 in one field, 2.7 in two
MIN_TEXTURE = 3.0  # grey levels along a border; less is empty ground, which matches everything


def stain_of(image: np.ndarray) -> str:
    """
    The kind of staining, by colour and background.

    Args:
        image: (H, W, 3) uint8.

    Returns:
        ``fluo`` (grey on black), ``grey`` (dark on bright, without colour), ``white`` (stained, bright background)
        or ``purple`` (stained all over).
    """
    pixels = image.astype(np.int16)
    if (pixels.max(axis=2) - pixels.min(axis=2)).mean() < MAX_SATURATION:
        return "fluo" if np.median(pixels) < 128 else "grey"
    return "white" if np.percentile(pixels.min(axis=2), 80) > BRIGHT else "purple"


def group_by_borders(images: Sequence[np.ndarray]) -> list[int]:
    """
    Which tiles were cut from one field of view: those whose border lines continue each other.

    The last column (row) of a tile and the first of its neighbour differ no more than two neighbouring lines within
    a tile do. Tiles of different size are of different fields.

    Args:
        images: (H, W, 3) uint8 arrays.

    Returns:
        for each the number of its field, in order of first appearance.
    """
    fields = DisjointSet(range(len(images)))
    shapes = [image.shape for image in images]
    for shape in dict.fromkeys(shapes):
        members = [index for index, other in enumerate(shapes) if other == shape]
        for axis in (0, 1):
            first, last, before = (
                np.stack([images[index].take(line, axis=axis).astype(np.float32) for index in members])
                for line in (0, -1, -2)
            )
            usual = np.maximum(np.abs(last - before).mean(axis=(1, 2)), 0.3)
            textured = last.mean(axis=2).std(axis=1) > MIN_TEXTURE
            for row, index in enumerate(members):
                if textured[row]:
                    apart = np.abs(last[row] - first).mean(axis=(1, 2)) / usual[row]
                    for column in np.flatnonzero(apart < MATCH):
                        fields.merge(index, members[column])
    numbers: dict[int, int] = {}
    return [numbers.setdefault(fields[index], len(numbers)) for index in range(len(images))]
