from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from scripts.data.ome_zarr import open_ome_zarr
from scripts.errors import DataError
from scripts.slides.slide import MAX_SLIDE, Slide

__all__ = ["ZarrSlide"]


class ZarrSlide(Slide):
    """
    A slide in an OME-Zarr store. Chunks that are not there have the store's fill value.

    Raises:
        DataError: see ``open_ome_zarr``.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        image = open_ome_zarr(path)
        width, height = image.sizes[0]
        if width * height > MAX_SLIDE:
            raise DataError(path, f"it claims {width}x{height} pixels, more than any scanner's", "Copy it again")
        super().__init__(Path(path), image.sizes, image.mpp)
        self._image = image

    def read_level(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        return self._image.colours.rgb(self._image.read(level, left, top, width, height), self.path)
