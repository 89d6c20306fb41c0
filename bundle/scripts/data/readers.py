from __future__ import annotations

import functools
import logging
import math
import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import nibabel
import numpy as np
import tifffile
from monai.data import MetaTensor
from monai.transforms import MapTransform
from PIL import Image, ImageOps
from scipy import ndimage
from scripts.data.itk_files import read_itk
from scripts.data.pixel_size import same_mpp, stated_mpp
from scripts.errors import DataError
from skimage.segmentation import relabel_sequential

__all__ = ["IMAGE_SUFFIXES", "LoadNucleid", "file_suffix", "read_image", "read_label", "related_files", "whole_numbers"]

logger = logging.getLogger(__name__)

PIL_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
TIFF_SUFFIXES = (".tif", ".tiff")
NIFTI_SUFFIXES = (".nii", ".nii.gz")
ITK_SUFFIXES = (".mha", ".mhd", ".nrrd")
IMAGE_SUFFIXES = PIL_SUFFIXES + TIFF_SUFFIXES + NIFTI_SUFFIXES + ITK_SUFFIXES

# PIL refuses larger files; the same bound for TIFF keeps a whole slide from being read into memory by mistake
MAX_PIXELS = 178_956_970


def read_image(path: str | os.PathLike) -> np.ndarray:
    """
    Read one microscopy image as 8-bit RGB.

    Grey becomes three equal channels and palettes their colours. A constant alpha channel is dropped; a varying one
    is composited on white, the background of a slide. Integers wider than 8 bits are scaled to [0, 255] by the
    smallest of 8, 12, 16 or all bits of their type that holds the image's maximum, with one warning per file. Floats
    must lie in [0, 1] or [0, 255]. EXIF orientation is applied.

    All formats agree on (H, W): NIfTI stores (x, y), so its first axis is the image's column and is swapped here; ITK
    formats come from ``itk`` as (y, x) already. Affines and directions of these formats are not applied. Of a TIFF
    the first series, and of a stack its first page, is read.

    Args:
        path: PNG, JPEG, BMP, TIFF, NIfTI, MetaImage or NRRD file.

    Returns:
        (H, W, 3) uint8 array.

    Raises:
        DataError: when the file is missing, empty, damaged, of another format, or not an RGB or grey image.
    """
    path = Path(path)
    pixels = _read_pixels(path, indexed=False)
    alpha = None
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    elif pixels.shape[2] == 2:
        pixels, alpha = np.repeat(pixels[..., :1], 3, axis=2), pixels[..., 1]
    elif pixels.shape[2] == 4:
        pixels, alpha = pixels[..., :3], pixels[..., 3]
    rgb = _to_uint8(pixels, path)
    if alpha is not None and alpha.min() != alpha.max():
        weight = (alpha / _full_scale(alpha))[..., None]
        rgb = np.rint(rgb * weight + 255.0 * (1.0 - weight)).astype(np.uint8)
    return np.ascontiguousarray(rgb)


def read_label(path: str | os.PathLike) -> np.ndarray:
    """
    Read one label map as nucleus instances.

    A map with a single non-zero value (0/255, 0/1) is a binary mask and becomes its connected components
    (8-neighbourhood). Of a palette image the indices are the labels. Three equal colour channels count as one. Ids
    are kept, except that ids above the number of pixels are renumbered. A map without any nucleus is all zeros.

    Args:
        path: any lossless format of :func:`read_image`, integer or integer-valued; axes as there.

    Returns:
        (H, W) int32 array, 0 is background.

    Raises:
        DataError: when the file cannot be read, is lossy (JPEG), coloured, negative or not integer-valued.
    """
    path = Path(path)
    if file_suffix(path) in (".jpg", ".jpeg"):
        raise DataError(path, "a JPEG cannot hold a label map, its compression changes the ids", "Save labels as PNG.")
    label = _read_pixels(path, indexed=True)
    if label.ndim == 3:
        colours = label[..., :3] if label.shape[2] >= 3 else label[..., :1]
        if (colours != colours[..., :1]).any():
            raise DataError(path, "the label map is coloured", "Save one integer per nucleus as 16-bit grey PNG.")
        label = colours[..., 0]
    label = whole_numbers(label, path)
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
    follow the image through network and post-processing. An item without label stays without.

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
            if item.get(key) is None:
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


def file_suffix(path: str | os.PathLike) -> str:
    """Lower-case suffix that names the format; ``.nii.gz`` counts as one."""
    name = Path(path).name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


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
    """The file, and for a header without pixels (``.mhd``) those of the same name beside it, which hold them."""
    path = Path(path)
    if file_suffix(path) != ".mhd":
        return [path]
    return sorted(file for file in path.parent.iterdir() if file.is_file() and file.name.split(".")[0] == path.stem)


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"


def _meta_tensor(array: np.ndarray, path: str, mpp: float, mpp_from: str) -> MetaTensor:
    shape = np.array(array.shape[1:])
    return MetaTensor(array, meta={"filename_or_obj": path, "spatial_shape": shape, "mpp": mpp, "mpp_from": mpp_from})


def _pixel_size(path: str, given: float | None) -> tuple[float, str]:
    given = math.nan if given is None else float(given)
    stated = stated_mpp(path)
    if given > 0:
        if stated is not None and not same_mpp(given, stated):
            _warn_once(path, f"it states pixels of {stated:.4g} um, but {given:.4g} are given and taken")
        return given, "given"
    return (math.nan, "unknown") if stated is None else (stated, "file")


def _read_pixels(path: Path, indexed: bool) -> np.ndarray:
    """Stored values as (H, W) or (H, W, 2..4); ``indexed`` keeps palette indices instead of their colours."""
    suffix = file_suffix(path)
    if suffix not in IMAGE_SUFFIXES:
        raise DataError(path, f"format '{suffix}' is not known", f"Use one of {', '.join(IMAGE_SUFFIXES)}.")
    if not path.is_file():
        raise DataError(path, "there is no such file", "Check the path in the datalist or the folder.")
    if path.stat().st_size == 0:
        raise DataError(path, "the file is empty", "Copy it again from its source.")
    try:
        if suffix in PIL_SUFFIXES:
            pixels = read_itk(path) if _is_deep_colour_png(path) else _read_pil(path, indexed)
        elif suffix in TIFF_SUFFIXES:
            pixels = _read_tiff(path, indexed)
        elif suffix in NIFTI_SUFFIXES:
            pixels = _read_nifti(path)
        else:
            pixels = read_itk(path)
    except (DataError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise DataError(path, "the image is too large to be read whole", "Use the slide verb for it.") from error
    except Exception as error:  # each library has its own errors for damaged files
        lines = str(error).strip().splitlines()
        reason = lines[0].rstrip(".") if len(lines) == 1 else type(error).__name__  # ITK writes pages
        hint = f"Check that it is an undamaged {suffix} file, or copy it again from its source."
        raise DataError(path, f"the file cannot be read ({reason})", hint) from error
    return _channels_last(pixels, path)


def _channels_last(pixels: np.ndarray, path: Path) -> np.ndarray:
    shape = pixels.shape
    if pixels.ndim == 3 and shape[2] not in (1, 2, 3, 4) and shape[0] in (1, 2, 3, 4):
        pixels = np.moveaxis(pixels, 0, 2)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.size == 0 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] > 4):
        raise DataError(path, f"shape {shape} is not a grey or RGB image", "Save one grey or RGB plane per file.")
    return pixels


def _read_pil(path: Path, indexed: bool) -> np.ndarray:
    with Image.open(path) as image:
        image = ImageOps.exif_transpose(image)
        if not indexed and "transparency" in image.info and image.mode in ("P", "L", "RGB"):
            image = image.convert("RGBA")
        plain = image.mode in ("1", "L", "LA", "RGB", "RGBA", "F") or image.mode.startswith("I")
        if not (plain or (indexed and image.mode == "P")):
            image = image.convert("RGB")
        return np.asarray(image)


def _is_deep_colour_png(path: Path) -> bool:
    # PIL drops the low byte of 16-bit colour PNGs; depth and colour type are bytes 24 and 25 of the header
    with open(path, "rb") as file:
        head = file.read(26)
    return head.startswith(b"\x89PNG") and len(head) == 26 and head[24] == 16 and head[25] != 0


def _read_tiff(path: Path, indexed: bool) -> np.ndarray:
    with tifffile.TiffFile(path) as tiff:
        series = tiff.series[0]
        page = series.keyframe
        if series.size > MAX_PIXELS * 3:
            raise Image.DecompressionBombError
        # PIL knows palettes, colour spaces and orientation; tifffile knows depths, planes and stacks
        if len(series.pages) == 1 and page.bitspersample <= 8 and page.planarconfig == tifffile.PLANARCONFIG.CONTIG:
            return _read_pil(path, indexed)
        if "Orientation" in page.tags and page.tags["Orientation"].value != 1:
            raise DataError(path, "a turned 16-bit or multi-page TIFF is not supported", "Save it upright.")
        # axes other than rows, columns and colour are stacks; three or four planes without a name are colours
        keep = "YXSC" if set("SC") & set(series.axes) or series.shape[0] not in (3, 4) else "YXSCQI"
        pixels = series.asarray()
        for axis in reversed(range(pixels.ndim)):
            if series.axes[axis] not in keep:
                if pixels.shape[axis] > 1:
                    _warn_once(str(path), f"only the first of {pixels.shape[axis]} pages is read")
                pixels = pixels.take(0, axis=axis)
        return pixels


def _read_nifti(path: Path) -> np.ndarray:
    pixels = np.asanyarray(nibabel.load(path).dataobj)
    if pixels.dtype.names:  # RGB24 and RGBA32 are structured
        pixels = np.stack([pixels[name] for name in pixels.dtype.names], axis=-1)
    pixels = pixels.squeeze(axis=tuple(i for i in range(2, pixels.ndim) if pixels.shape[i] == 1))
    return pixels.swapaxes(0, 1)


def _to_uint8(pixels: np.ndarray, path: Path) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    low, high = pixels.min(), pixels.max()
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0:
        raise DataError(path, f"intensities from {low} to {high} are no RGB", "Save the image as 8-bit RGB.")
    full = _full_scale(pixels)
    if high > full:
        raise DataError(path, f"float intensities reach {high}", "Scale them to [0, 1] or [0, 255].")
    if pixels.dtype.kind in "iu":
        _warn_once(str(path), f"{pixels.dtype} intensities up to {high} are scaled from [0, {full}] to [0, 255]")
    return np.rint(pixels * (255.0 / full)).astype(np.uint8)


def _full_scale(values: np.ndarray) -> int:
    """The value that means full intensity, by the rule of :func:`read_image`."""
    if values.dtype.kind not in "iu":
        return 1 if values.max() <= 1 else 255
    limit = int(np.iinfo(values.dtype).max)
    return next((full for full in (255, 4095, 65535) if values.max() <= full <= limit), limit)


@functools.cache
def _warn_once(path: str, message: str) -> None:
    logger.warning("%s: %s", path, message)
