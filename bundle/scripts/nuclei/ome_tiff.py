from __future__ import annotations

import os
from collections.abc import Iterator

import imagecodecs
import numpy as np
import tifffile
from scripts.files import atomic_path
from scripts.nuclei.label_pyramid import TILE, LabelPyramid

__all__ = ["write_ome_tiff"]

COMPRESSION_LEVEL = 1  # the default one takes several times as long for a little less


def write_ome_tiff(path: str | os.PathLike, pyramid: LabelPyramid, name: str) -> None:
    """
    Write a label map as pyramidal, tiled OME-TIFF with the pixel size in µm, tile by tile, whole or not at all.

    Args:
        path: the file.
        pyramid: the label map.
        name: of the image, for OME.
    """
    sizes = pyramid.levels
    about = {"axes": "YX", "Name": name, "Channel": {"Name": ["nuclei"]}}
    density = {}
    if pyramid.mpp is not None:
        for axis in "XY":
            about |= {f"PhysicalSize{axis}": pyramid.mpp, f"PhysicalSize{axis}Unit": "µm"}
        density = {"resolution": (1e4 / pyramid.mpp,) * 2, "resolutionunit": "CENTIMETER"}
    kind = {"dtype": pyramid.dtype, "tile": (TILE, TILE), "compression": "zlib", "photometric": "minisblack"}
    big = pyramid.shape[0] * pyramid.shape[1] * pyramid.dtype.itemsize > 2**32  # before it is compressed
    with atomic_path(path) as partial, tifffile.TiffWriter(partial, ome=True, bigtiff=big) as tiff:
        extra = {"subifds": len(sizes) - 1, "metadata": about, **density}
        for level, size in enumerate(sizes):
            tiff.write(_encoded(pyramid, level), shape=size, **kind, **extra)
            extra = {"subfiletype": 1, "metadata": None}


def _encoded(pyramid: LabelPyramid, level: int) -> Iterator[bytes]:
    """Compressed tiles of a level, all of full size; most of a slide is empty, which is compressed once."""
    full = np.zeros((TILE, TILE), pyramid.dtype)
    empty = imagecodecs.zlib_encode(full.tobytes(), COMPRESSION_LEVEL)
    for _, _, ids in pyramid.tiles(level):
        if not ids.any():
            yield empty
            continue
        full[:] = 0
        full[: ids.shape[0], : ids.shape[1]] = ids
        yield imagecodecs.zlib_encode(full.tobytes(), COMPRESSION_LEVEL)
