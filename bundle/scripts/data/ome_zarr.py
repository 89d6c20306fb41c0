"""Images in OME-Zarr stores (NGFF 0.4 and 0.5). A store is data of strangers: what its codecs may be is listed here."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scripts.data.colours import Colours
from scripts.data.pixel_size import square_mpp
from scripts.errors import DataError
from scripts.zarr_library import zarr_library

__all__ = ["OmeZarrImage", "open_ome_zarr"]

VERSIONS = ("0.4", "0.5")
HINT = "Convert it to an OME-Zarr image of NGFF 0.4 or 0.5 with the axes c, y and x and 8-bit RGB"
MICROMETRES = {
    "micrometer": 1.0,
    "nanometer": 1e-3,
    "millimeter": 1e3,
    "centimeter": 1e4,
    "meter": 1e6,
    "angstrom": 1e-4,
    "inch": 25400.0,
}
# numcodecs has one that executes what a chunk says (pickle): only those that decode bytes are taken
CODECS = {"blosc", "zlib", "gzip", "zstd", "lz4", "bz2", "lzma", "bytes", "transpose", "crc32c", "sharding_indexed"}
COLOURS = ("FF0000", "00FF00", "0000FF")
MAX_CHUNK = 2**27  # bytes; of a larger one all has to be decoded for each region


@dataclass(frozen=True)
class OmeZarrImage:
    """
    The image of a store, of which boxes are read; threads may read at the same time.

    Args:
        arrays: zarr's array of each level, the largest first.
        axes: their axes, letters of ``tczyx`` in any order.
        mpp: micrometres per pixel of level 0; None if the store does not say, or not plausibly.
        colours: what the samples mean.
    """

    arrays: list[Any]
    axes: str
    mpp: float | None
    colours: Colours

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(width, height) of each level."""
        return [tuple(array.shape[self.axes.index(axis)] for axis in "xy") for array in self.arrays]

    def read(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        """(height, width, C) uint8 of a box in a level's pixels."""
        box = {"y": slice(top, top + height), "x": slice(left, left + width), "c": slice(None)}
        values = np.asarray(self.arrays[level][tuple(box.get(axis, 0) for axis in self.axes)])
        kept = [axis for axis in self.axes if axis in box]
        if "c" not in kept:
            values, kept = values[None], ["c", *kept]
        return values.transpose([kept.index(axis) for axis in "yxc"])


def open_ome_zarr(path: str | os.PathLike) -> OmeZarrImage:
    """
    The image in a store; of several, as Bio-Formats writes them, the largest.

    Raises:
        DataError: when zarr is not installed; when the store cannot be read, is a plate or a label map, of another
            version, or no plane of 8-bit RGB or grey.
    """
    path = Path(path)
    zarr = zarr_library(path)
    try:
        root = zarr.open_group(zarr.storage.LocalStore(path, read_only=True), mode="r")
        groups = [root]
        if "bioformats2raw.layout" in _ome(root):
            groups = [group for name, group in root.groups() if name.isdecimal()]
        images = [_image(path, group) for group in groups]
    except DataError:
        raise
    except Exception as error:  # each codec, and each kind of broken metadata, has its own
        text = " ".join(str(error).split())[:200]
        raise DataError(path, f"it cannot be read as OME-Zarr ({type(error).__name__}: {text})", HINT) from error
    if not images:
        raise DataError(path, "there is no image in it", HINT)
    return max(images, key=lambda image: image.sizes[0][0] * image.sizes[0][1])


def _ome(group: Any) -> Mapping[str, Any]:
    """NGFF's metadata of a group: of 0.5 under ``ome``, of 0.4 directly."""
    attributes = dict(group.attrs)
    return attributes.get("ome", attributes)


def _image(path: Path, group: Any) -> OmeZarrImage:
    about = _ome(group)
    for key, kind in {"plate": "plate", "well": "well", "image-label": "label map"}.items():
        if key in about:
            raise DataError(path, f"it is a {kind}, no image", "Name an image in it")
    if not about.get("multiscales"):
        raise DataError(path, "there is no image (multiscales) in it", HINT)
    scales = about["multiscales"][0]
    version = str(about.get("version") or scales.get("version") or "unknown")
    if version not in VERSIONS:
        raise DataError(path, f"its NGFF version is {version}, read are {' and '.join(VERSIONS)}", HINT)
    axes = [axis["name"] for axis in scales["axes"]]
    if len(set(axes)) < len(axes) or not {"y", "x"} <= set(axes) <= set("tczyx"):
        raise DataError(path, f"its axes are {', '.join(axes)}; known are t, c, z, y and x", HINT)
    arrays = [group[dataset["path"]] for dataset in scales["datasets"]]
    for array in arrays:
        _check(path, array, axes)
    colours = Colours("rgb" if _length(arrays[0], axes, "c") == 3 else "grey")
    if colours.kind == "rgb":
        _check_colours(path, about)
    arrays.sort(key=lambda array: -array.shape[axes.index("x")])
    return OmeZarrImage(arrays, "".join(axes), _mpp(path, scales, axes), colours)


def _length(array: Any, axes: Sequence[str], axis: str) -> int:
    return array.shape[axes.index(axis)] if axis in axes else 1


def _check(path: Path, array: Any, axes: Sequence[str]) -> None:
    """DataError unless an array is one plane of 8-bit RGB or grey that can be decoded chunk by chunk."""
    if len(array.shape) != len(axes):
        raise DataError(path, f"it has {len(axes)} axes, but arrays of {len(array.shape)}", HINT)
    for axis, what in {"z": "planes in depth", "t": "points in time"}.items():
        if (length := _length(array, axes, axis)) > 1:
            raise DataError(path, f"it has {length} {what}, and one plane is segmented", "Save that plane alone")
    if (channels := _length(array, axes, "c")) not in (1, 3):
        raise DataError(path, f"it has {channels} channels, RGB has 3 and grey 1", HINT)
    if array.dtype != np.uint8:
        raise DataError(path, f"its pixels are {array.dtype}, not uint8", HINT)
    if min(array.shape) < 1 or np.prod(array.chunks, dtype=float) > MAX_CHUNK:
        shape = "x".join(map(str, array.chunks))
        raise DataError(path, f"its chunks ({shape}) are empty or too large to be read one by one", HINT)
    if unknown := sorted(set(_codecs(array.metadata.to_dict())) - CODECS):
        raise DataError(path, f"its codec {', '.join(unknown)} is not read", f"Use one of {', '.join(sorted(CODECS))}")


def _codecs(metadata: Mapping[str, Any]) -> list[str]:
    """Names of all codecs of an array, of zarr's format 2 and 3, those within shards included."""
    if metadata["zarr_format"] == 2:
        used = [metadata.get("compressor"), *(metadata.get("filters") or ())]
        return [codec["id"] for codec in used if codec is not None]
    names = []
    left = list(metadata["codecs"])
    while left:
        codec = left.pop()
        names.append(codec["name"])
        inner = codec.get("configuration") or {}
        left += [*inner.get("codecs", ()), *inner.get("index_codecs", ())]
    return names


def _check_colours(path: Path, about: Mapping[str, Any]) -> None:
    shown = [channel.get("color") for channel in (about.get("omero") or {}).get("channels", ())]
    if all(shown) and shown and tuple(str(colour).upper() for colour in shown) != COLOURS:
        what = f"its channels are shown in the colours {', '.join(map(str, shown))}, which are not red, green and blue"
        raise DataError(path, what, HINT)


def _mpp(path: Path, scales: Mapping[str, Any], axes: Sequence[str]) -> float | None:
    steps = [*scales.get("coordinateTransformations", ()), *scales["datasets"][0].get("coordinateTransformations", ())]
    sides = []
    for axis in "xy":
        index = axes.index(axis)
        unit = MICROMETRES.get(scales["axes"][index].get("unit"))
        size = float(np.prod([step["scale"][index] for step in steps if step.get("type") == "scale"]))
        sides.append(None if unit is None else size * unit)
    return square_mpp(path, *sides)
