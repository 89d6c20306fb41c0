"""Settings of the C library's memory, which Python alone cannot give."""

from __future__ import annotations

import ctypes
import os

__all__ = ["keep_freed_memory"]

# parameters of mallopt, from glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_TRIM_BYTES = 2**31 - 1  # mallopt takes an int


def keep_freed_memory() -> bool:
    """
    Makes glibc's malloc keep what is freed for the next allocation instead of handing it back to the system.

    By default every large tensor is mapped anew, and the system clears it page by page at the first touch: on a CPU a
    third of the time of MobileSAM's encoder at 1024 x 1024 (``benchmarks/memory.py``). Afterwards large blocks come
    from one heap that all threads share, of which no more than 2 GiB stay unused at its end. Nothing else changes,
    results included.

    Returns:
        Whether it was done: not with another C library (macOS, Windows, musl), and not where the environment sets
        malloc itself (``MALLOC_MMAP_MAX_``, ``GLIBC_TUNABLES`` and the like).
    """
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows
        return False
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    settings = {_TRIM_THRESHOLD: _TRIM_BYTES, _MMAP_MAX: 0, _ARENA_MAX: 1}
    return all([libc.mallopt(parameter, value) == 1 for parameter, value in settings.items()])
