"""OME-Zarr images, written by ome-zarr itself; where it is missing, tests that need one are skipped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

RED_GREEN_BLUE = {"channels": [{"color": colour} for colour in ("FF0000", "00FF00", "0000FF")]}
PER_MICROMETRE = {"micrometer": 1.0, "nanometer": 1000.0, "millimeter": 0.001}
KINDS = {"t": "time", "c": "channel"}


def save_zarr(
    path: Path,
    pixels: np.ndarray,
    mpp: float | None,
    version: str = "0.5",
    axes: str = "cyx",
    unit: str = "micrometer",
    levels: int = 1,
    omero: dict | None = None,
) -> Path:
    """
    Args:
        path: of the store.
        pixels: of the axes in ``axes``, of ``tczyx``.
        mpp: None gives axes without a unit.
        version: of NGFF.
        levels: each of every other pixel of the one before.
        omero: how channels are shown.
    """
    zarr = pytest.importorskip("zarr")
    writer, formats = pytest.importorskip("ome_zarr.writer"), pytest.importorskip("ome_zarr.format")
    form = {"0.4": formats.FormatV04, "0.5": formats.FormatV05}[version]()
    step = [slice(None, None, 2) if axis in "yx" else slice(None) for axis in axes]
    pyramid = [pixels]
    while len(pyramid) < levels:
        pyramid.append(pyramid[-1][tuple(step)])
    sides = [(mpp or 1.0) * PER_MICROMETRE[unit] * 2**level for level in range(levels)]
    scales = [[{"type": "scale", "scale": [side if axis in "yx" else 1.0 for axis in axes]}] for side in sides]
    named = [{"name": axis, "type": KINDS.get(axis, "space")} for axis in axes]
    if mpp is not None:
        named = [{**axis, **({"unit": unit} if axis["type"] == "space" else {})} for axis in named]
    group = zarr.open_group(str(path), mode="w", zarr_format=form.zarr_format)
    chunks = tuple(256 if axis in "yx" else 1 for axis in axes)
    storage = {"chunks": chunks}
    writer.write_multiscale(
        pyramid, group, fmt=form, axes=named, coordinate_transformations=scales, storage_options=storage
    )
    if omero is not None:
        edit_ngff(path, lambda about: about.update(omero=omero))
    return path


def edit_ngff(path: Path, change) -> None:
    """Change the metadata of a store's image in place."""
    import zarr

    group = zarr.open_group(str(path), mode="r+")
    attributes = dict(group.attrs)
    change(attributes.get("ome", attributes))
    group.attrs.put(attributes)
