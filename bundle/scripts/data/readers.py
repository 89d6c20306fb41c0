from __future__ import annotations

import math
import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scipy import ndimage
from scripts.data.decoding import IMAGE_SUFFIXES, Stored, decode, file_suffix
from scripts.data.ome_zarr import open_ome_zarr
from scripts.data.pixel_size import same_mpp, stated_mpp
from scripts.data.warn_once import warn_once
from scripts.errors import DataError
from scripts.files import is_store
from skimage.segmentation import relabel_sequential

__all__ = [
    "IMAGE_SUFFIXES",
    "LoadNucleid",
    "file_suffix",
    "image_mpp",
    "read_image",
    "read_label",
    "read_mask",
    "related_files",
    "whole_numbers",
]


def read_image(path: str | os.PathLike) -> np.ndarray:
    """
    Read one microscopy image as 8-bit RGB.

    What samples mean is what the file says, see ``Colours``: grey becomes three equal channels, white may be zero,
    palettes and CMYK become their colours. Transparency that varies is laid on white, the background of a slide; a
    constant one, and channels that are not said to be colours or transparency, are left out. Integers wider than 8 bits
    are scaled to [0, 255], with one warning per file; floats must lie in [0, 1] or [0, 255]. EXIF's orientation is
    applied. Of a TIFF the largest picture is read, and of a stack its first plane.

    Args:
        path: PNG, JPEG, BMP, TIFF, NIfTI, MetaImage or NRRD file, or an OME-Zarr store.

    Returns:
        (H, W, 3) uint8 array.

    Raises:
        DataError: when the file is missing, empty, damaged, of another format, or not an RGB or grey image.
    """
    path = Path(path)
    stored = decode(path)
    if stored.left_out:
        warn_once(str(path), f"only the first of {stored.left_out + 1} planes is read")
    return stored.colours.rgb(stored.values, path)


def read_mask(path: str | os.PathLike) -> np.ndarray:
    """
    (H, W) bool of a mask: what is stored as above 0 in any colour channel, whatever colours it is shown in.

    Raises:
        DataError: as :func:`read_label`.
    """
    path = Path(path)
    stored = decode(path)
    _refuse_no_label(stored, path)
    return (_labelled(stored, path) != 0).any(axis=2)


def read_label(path: str | os.PathLike) -> np.ndarray:
    """
    Read one label map as nucleus instances.

    What counts is what is stored, not how it is shown: of a palette image the indices are the labels, and numbers are
    not turned where 0 is shown white. A map with a single non-zero value (0/255, 0/1) is a binary mask and becomes its
    connected components (8-neighbourhood). Three equal colour channels count as one. Ids are kept, except that ids
    above the number of pixels are renumbered. A map without any nucleus is all zeros.

    Args:
        path: any lossless format of :func:`read_image`, integer or integer-valued; axes as there.

    Returns:
        (H, W) int32 array, 0 is background.

    Raises:
        DataError: when the file cannot be read, is lossy (JPEG), a stack, coloured, negative or not integer-valued.
    """
    path = Path(path)
    stored = decode(path)
    _refuse_no_label(stored, path)
    colours = _labelled(stored, path)
    if (colours != colours[..., :1]).any():
        raise DataError(path, "the label map is coloured", "Save one integer per nucleus as 16-bit grey PNG.")
    label = whole_numbers(colours[..., 0], path)
    top = int(label.max())
    if top and not ((label != 0) & (label != top)).any():
        label, _ = ndimage.label(label, structure=np.ones((3, 3)))
    elif top > label.size:
        label, _, _ = relabel_sequential(label.astype(np.int64))
    return np.ascontiguousarray(label, dtype=np.int32)


class LoadNucleid(MapTransform):
    """
    Replace the file paths of an item by its image and, if it has one, its label map.

    The image becomes a (3, H, W) float32 ``MetaTensor`` in [0, 255], the label a (1, H, W) int32 one; both carry
    ``filename_or_obj``, ``spatial_shape`` (H, W), ``mpp`` (nan if unknown) and ``mpp_from`` in their meta data, which
    follow the image through network and post-processing. An item without label stays without; one that is
    ``unlabelled`` gets an empty one, so that it goes the way of the others.

    The pixel size ``mpp`` is the item's (``mpp_from`` is ``given``), else what the file states (``file``), else unknown
    (``unknown``); it is also put into the item. A file that states another than is given is warned of once.

    Args:
        keys: key of the image, then optionally key of the label.

    Raises:
        DataError: as :func:`read_image` and :func:`read_label`, or when image and label differ in size.
    """

    version = 1

    def __init__(self, keys: Sequence[str] | str = ("image", "label")) -> None:
        super().__init__(keys)
        if len(self.keys) > 2:
            raise ValueError(f"keys must be an image key and at most one label key, got {self.keys}.")

    def __call__(self, data: Mapping[Hashable, object]) -> dict:
        item = dict(data)
        image_key, *label_keys = self.keys
        image_path = os.fspath(item[image_key])
        image = read_image(image_path)
        mpp, source = _pixel_size(image_path, item.get("mpp"))
        if source == "file":
            item["mpp"] = mpp
        pixels = image.transpose(2, 0, 1).astype(np.float32, order="C")
        item[image_key] = _meta_tensor(pixels, image_path, mpp, source)
        for key in label_keys:
            if item.get("unlabelled"):
                empty = np.zeros((1, *image.shape[:2]), np.int32)
                item[key] = _meta_tensor(empty, image_path, mpp, source)
            if item.get(key) is None or item.get("unlabelled"):
                continue
            path = os.fspath(item[key])
            label = read_label(path)
            if label.shape != image.shape[:2]:
                raise DataError(
                    path,
                    f"the label map has {_size(label)} pixels but its image {image_path} has {_size(image)}",
                    "Pair the image with the label map that was drawn on it.",
                )
            item[key] = _meta_tensor(label[None], path, mpp, source)
        return item


def whole_numbers(label: np.ndarray, path: str | os.PathLike) -> np.ndarray:
    """The label map as integers; DataError naming ``path`` where values are fractional or negative."""
    if label.dtype.kind == "f":
        if not np.isfinite(label).all() or (label != np.rint(label)).any():
            raise DataError(path, "the label map has fractional values", "Save one integer per nucleus.")
        label = label.astype(np.int64)
    if label.size and label.min() < 0:
        raise DataError(path, f"the label map has negative values (down to {label.min()})", "Use 0 as background.")
    return label


def related_files(path: str | os.PathLike) -> list[Path]:
    """
    The file; of a header without pixels (``.mhd``) also those of the same name beside it, which hold them; of a store
    of zarr what is in it.
    """
    path = Path(path)
    if is_store(path):
        return sorted(file for file in path.rglob("*") if file.is_file())
    if file_suffix(path) != ".mhd":
        return [path]
    return sorted(file for file in path.parent.iterdir() if file.is_file() and file.name.split(".")[0] == path.stem)


def image_mpp(path: str | os.PathLike) -> float | None:
    """As :func:`scripts.data.pixel_size.stated_mpp`, of an OME-Zarr store too."""
    return open_ome_zarr(path).mpp if is_store(path) else stated_mpp(path)


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"


def _meta_tensor(array: np.ndarray, path: str, mpp: float, mpp_from: str) -> MetaTensor:
    shape = np.array(array.shape[1:])
    return MetaTensor(array, meta={"filename_or_obj": path, "spatial_shape": shape, "mpp": mpp, "mpp_from": mpp_from})


def _pixel_size(path: str, given: float | None) -> tuple[float, str]:
    given = math.nan if given is None else float(given)
    stated = image_mpp(path)
    if given > 0:
        if stated is not None and not same_mpp(given, stated):
            warn_once(path, f"it states pixels of {stated:.4g} um, but {given:.4g} are given and taken")
        return given, "given"
    return (math.nan, "unknown") if stated is None else (stated, "file")


def _refuse_no_label(stored: Stored, path: Path) -> None:
    if stored.no_label:
        raise DataError(path, stored.no_label, "Save labels as PNG with 0 as background.")
    if stored.left_out:
        what = f"it is a stack of {stored.left_out + 1} planes, and one is a label map"
        raise DataError(path, what, "Save one integer per nucleus as 16-bit grey PNG.")
    if stored.values.dtype.kind not in "buif":
        raise DataError(path, f"the label map has {stored.values.dtype} values", "Save one integer per nucleus.")


def _labelled(stored: Stored, path: Path) -> np.ndarray:
    """Channels that may hold ids: not the transparency."""
    alpha = stored.colours.alpha
    if alpha is None:
        return stored.values
    others = np.delete(stored.values, alpha, axis=2)
    if not others.any() and (clear := stored.values[..., alpha]).min() != clear.max():
        raise DataError(
            path, "nuclei are marked in its transparency alone", "Save one integer per nucleus as grey PNG."
        )
    return others
