"""Drawn label maps whose nuclei are known."""

from __future__ import annotations

import numpy as np


def discs(*circles: tuple[int, int, int], side: int = 100) -> np.ndarray:
    """(row, column, radius) of each to an instance map."""
    rows, columns = np.mgrid[:side, :side]
    label = np.zeros((side, side), np.int32)
    for index, (row, column, radius) in enumerate(circles, start=1):
        label[(rows - row) ** 2 + (columns - column) ** 2 <= radius**2] = index
    return label
