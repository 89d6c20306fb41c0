from __future__ import annotations

import os
from types import ModuleType

from scripts.errors import DataError

__all__ = ["zarr_library"]


def zarr_library(path: str | os.PathLike) -> ModuleType:
    """The library zarr, which is not installed with the bundle; DataError naming the store and what to do if not."""
    try:
        import zarr
    except ImportError as error:
        hint = "Install it: pip install 'zarr>=3.1'"
        raise DataError(path, f"OME-Zarr needs zarr, which is not installed ({error})", hint) from None
    return zarr
