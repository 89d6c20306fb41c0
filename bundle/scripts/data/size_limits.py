"""Images larger than this machine can decode are refused before."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scripts.errors import DataError

__all__ = ["check_size"]

# PIL refuses larger files; the same bound for other formats keeps a whole slide from being read into memory by mistake
MAX_PIXELS = 178_956_970
MEMORY_SHARE = 0.5  # of this machine's memory that one file may take


def check_size(path: Path, shape: Sequence[int], samples: int, dtype: np.dtype) -> None:
    """
    Before pixels are read: DataError where a file's header says that they are more than one image can have, or more
    than fits into memory. A header of a hundred bytes may claim anything.
    """
    pixels = math.prod(int(side) for side in shape)
    size = pixels * samples * dtype.itemsize
    if pixels > MAX_PIXELS * 4 or pixels // max(shape[2:] or (1,)) > MAX_PIXELS or size > MEMORY_SHARE * _memory():
        sides = "x".join(str(side) for side in shape)
        what = f"the image is too large to be read whole ({sides} pixels, {size / 2**30:.1f} GiB)"
        raise DataError(path, what, "Use the slide verb for it.")


def _memory() -> float:
    """Bytes of this machine's memory; infinite where it does not tell."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return math.inf
