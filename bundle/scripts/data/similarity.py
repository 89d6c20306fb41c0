"""Hashes of pictures by which near-duplicates are found."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import fft

__all__ = ["HASH_BITS", "MAX_DISTANCE", "near_duplicates", "perceptual_hash"]

SIDE = 64  # pixels of the image that is hashed
FREQUENCIES = 16  # along each axis
HASH_BITS = FREQUENCIES**2 - 1
# Of 257 real tiles of five domains the two most alike differ in 92 bits; copies that were compressed, re-coloured,
# halved or cut by a few pixels differ in at most 40
MAX_DISTANCE = 60


def perceptual_hash(image: np.ndarray) -> np.ndarray | None:
    """
    What an image looks like, in 255 bits that compression, stain and size hardly change.

    The signs of the low frequencies of the grey image, against their median (discrete cosine transform), for the
    eight ways to turn and mirror it: two images are alike if one of the eight of the one is near the first of the
    other.

    Args:
        image: (H, W, 3) uint8.

    Returns:
        (8, 255) bool, or None for an image of one colour, which is like every other such image.
    """
    small = np.asarray(Image.fromarray(image).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), float)
    if small.std() < 0.5:
        return None
    hashes = []
    for turns in range(4):
        for mirrored in (False, True):
            turned = np.rot90(small[:, ::-1] if mirrored else small, turns)
            low = fft.dctn(turned, norm="ortho")[:FREQUENCIES, :FREQUENCIES].ravel()[1:]  # the mean is left out
            hashes.append(low > np.median(low))
    return np.stack(hashes)


def near_duplicates(first: list[np.ndarray | None], second: list[np.ndarray | None]) -> list[tuple[int, int, int]]:
    """
    Pairs of images that look alike.

    Args:
        first, second: hashes of :func:`perceptual_hash`.

    Returns:
        (index in first, index in second, differing bits), the most alike first.
    """
    rows = [index for index, value in enumerate(first) if value is not None]
    columns = [index for index, value in enumerate(second) if value is not None]
    if not rows or not columns:
        return []
    # as +1 and -1, a product of matrices counts equal bits less differing ones
    plain = np.stack([second[index][0] for index in columns]).astype(np.float32) * 2 - 1
    pairs = []
    for row in rows:
        distance = ((HASH_BITS - (first[row].astype(np.float32) * 2 - 1) @ plain.T) / 2).min(axis=0)
        pairs += [(row, columns[i], int(distance[i])) for i in np.flatnonzero(distance <= MAX_DISTANCE)]
    return sorted(pairs, key=lambda pair: pair[2])
