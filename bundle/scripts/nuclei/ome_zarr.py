from __future__ import annotations

import os
from typing import Any

from scripts.nuclei.label_pyramid import TILE, LabelPyramid
from scripts.zarr_library import zarr_library

__all__ = ["LABELS", "write_ome_zarr"]

VERSION = "0.4"  # of NGFF: the newest that Bio-Formats, and so QuPath and OMERO, read
LABELS = "labels/nuclei"  # where the map lies in the store
CHUNK = 2 * TILE  # each is a file


def write_ome_zarr(folder: str | os.PathLike, pyramid: LabelPyramid, name: str) -> None:
    """
    Write a label map as OME-Zarr, chunk by chunk; those without nuclei are left out, as zarr has it.

    It is NGFF's group ``labels/nuclei``, to be copied into an image's store or read where it is: the store's root
    names the same arrays as an image.

    Args:
        folder: of the store; what is there is written over.
        pyramid: the label map.
        name: of the image.

    Raises:
        DataError: when zarr is not installed.
    """
    zarr = zarr_library(folder)
    from numcodecs import Zlib  # zarr's own

    root = zarr.open_group(zarr.storage.LocalStore(os.fspath(folder)), mode="w", zarr_format=2)
    for level, shape in enumerate(pyramid.levels):
        array = root.create_array(
            f"{LABELS}/{level}",
            shape=shape,
            chunks=(CHUNK, CHUNK),
            dtype=pyramid.dtype,
            compressors=Zlib(1),
            fill_value=0,
            chunk_key_encoding={"name": "v2", "separator": "/"},
        )
        for top, left, ids in pyramid.tiles(level, CHUNK):
            array[top : top + ids.shape[0], left : left + ids.shape[1]] = ids
    about = _multiscales(pyramid, name)
    image_label = {"version": VERSION, "source": {"image": "../../"}}
    root[LABELS].attrs.update({"multiscales": [about], "image-label": image_label})
    root["labels"].attrs.update({"labels": [LABELS.partition("/")[2]]})
    datasets = [{**one, "path": f"{LABELS}/{one['path']}"} for one in about["datasets"]]
    root.attrs.update({"multiscales": [{**about, "datasets": datasets}]})


def _multiscales(pyramid: LabelPyramid, name: str) -> dict[str, Any]:
    unit = {} if pyramid.mpp is None else {"unit": "micrometer"}
    sides = [(pyramid.mpp or 1.0) * 2**level for level in range(len(pyramid.levels))]
    return {
        "version": VERSION,
        "name": name,
        "axes": [{"name": axis, "type": "space", **unit} for axis in "yx"],
        "datasets": [
            {"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": [side, side]}]}
            for level, side in enumerate(sides)
        ],
        "type": "every other pixel",
    }
