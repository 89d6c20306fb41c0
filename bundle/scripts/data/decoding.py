from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from PIL import Image, ImageOps
from scripts.data.colours import Colours
from scripts.data.itk_files import read_itk
from scripts.data.ome_zarr import open_ome_zarr
from scripts.data.size_limits import check_size
from scripts.data.tiff_files import main_picture, stored_values, upright
from scripts.errors import DataError
from scripts.files import is_store

__all__ = ["IMAGE_SUFFIXES", "PIL_SUFFIXES", "Stored", "decode", "file_suffix"]

PIL_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
TIFF_SUFFIXES = (".tif", ".tiff")
NIFTI_SUFFIXES = (".nii", ".nii.gz")
DOUBLE_SUFFIXES = (".nii.gz", ".ome.zarr")
ITK_SUFFIXES = (".mha", ".mhd", ".nrrd")
IMAGE_SUFFIXES = PIL_SUFFIXES + TIFF_SUFFIXES + NIFTI_SUFFIXES + ITK_SUFFIXES
# by number of samples: what they are, and which is the transparency
PIL_KINDS = {1: ("grey", None), 2: ("grey", 1), 3: ("rgb", None), 4: ("rgb", 3)}
BY_PIL = (tifffile.PHOTOMETRIC.CIELAB,)  # colour spaces that only PIL converts


@dataclass(frozen=True)
class Stored:
    """
    What a file holds, before anything is made of it.

    Args:
        values: (H, W, C) samples.
        colours: what they mean.
        left_out: how many further planes its stack has.
        no_label: why it can hold no label map; empty if it can.
    """

    values: np.ndarray
    colours: Colours
    left_out: int = 0
    no_label: str = ""


def file_suffix(path: str | os.PathLike) -> str:
    """Lower-case suffix that names the format; ``.nii.gz`` and ``.ome.zarr`` count as one."""
    name = Path(path).name.lower()
    return next((suffix for suffix in DOUBLE_SUFFIXES if name.endswith(suffix)), Path(name).suffix)


def decode(path: Path) -> Stored:
    """
    The samples of a file of any known format, and what they mean.

    All formats agree on (H, W): NIfTI stores (x, y), so its first axis is the image's column and is swapped here; ITK
    formats come from ``itk`` as (y, x) already. Affines and directions of these formats are not applied.

    Raises:
        DataError: when the file is missing, empty, damaged, of another format, too large, or holds no picture.
    """
    suffix = file_suffix(path)
    if is_store(path):
        return _decode_zarr(path)
    if suffix not in IMAGE_SUFFIXES:
        raise DataError(path, f"format '{suffix}' is not known", f"Use one of {', '.join(IMAGE_SUFFIXES)}.")
    if not path.is_file():
        raise DataError(path, "there is no such file", "Check the path in the datalist or the folder.")
    if path.stat().st_size == 0:
        raise DataError(path, "the file is empty", "Copy it again from its source.")
    try:
        if suffix in PIL_SUFFIXES:
            stored = _decode_deep_png(path) if _is_deep_colour_png(path) else _decode_pil(path)
        elif suffix in TIFF_SUFFIXES:
            stored = _decode_tiff(path)
        elif suffix in NIFTI_SUFFIXES:
            stored = _decode_nifti(path)
        else:
            stored = _as_stored(path, *read_itk(path))
    except (DataError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise DataError(path, "the image is too large to be read whole", "Use the slide verb for it.") from error
    except Exception as error:  # each library has its own errors for damaged files
        lines = str(error).strip().splitlines()
        reason = lines[0].rstrip(".") if len(lines) == 1 else type(error).__name__  # ITK writes pages
        hint = f"Check that it is an undamaged {suffix} file, or copy it again from its source."
        raise DataError(path, f"the file cannot be read ({reason})", hint) from error
    return stored


def _decode_zarr(path: Path) -> Stored:
    image = open_ome_zarr(path)
    width, height = image.sizes[0]
    check_size(path, (height, width), image.colours.channels, np.dtype(np.uint8))
    try:
        values = image.read(0, 0, 0, width, height)
    except MemoryError:
        raise
    except Exception as error:  # each codec has its own errors
        raise DataError(path, f"it is damaged ({type(error).__name__}: {error})", "Copy it again.") from error
    return Stored(values, image.colours, no_label="an OME-Zarr image is no label map here")


def _decode_pil(path: Path) -> Stored:
    with Image.open(path) as image:
        jpeg = image.format in ("JPEG", "MPO")
        no_label = "a JPEG cannot hold a label map, its compression changes the ids" if jpeg else ""
        image = ImageOps.exif_transpose(image)
        clear = image.info.get("transparency")
        if image.mode == "P":
            return Stored(
                np.asarray(image)[..., None], Colours("palette", palette=_palette(image, clear)), no_label=no_label
            )
        if clear is not None and image.mode in ("L", "RGB"):
            image = image.convert("RGBA")
        if image.mode not in ("1", "L", "LA", "RGB", "RGBA", "F") and not image.mode.startswith("I"):
            image = image.convert("RGB")
        values = np.asarray(image)
        values = values[..., None] if values.ndim == 2 else values
        kind, alpha = PIL_KINDS[values.shape[2]]
        return Stored(values, Colours(kind, alpha), no_label=no_label)


def _palette(image: Image.Image, clear: bytes | int | None) -> np.ndarray:
    """(256, 4) RGBA of each index."""
    ramp = Image.frombytes("P", (256, 1), bytes(range(256)))
    ramp.putpalette(image.getpalette())
    if clear is not None:
        ramp.info["transparency"] = clear
    return np.asarray(ramp.convert("RGBA"))[0]


def _is_deep_colour_png(path: Path) -> bool:
    # PIL drops the low byte of 16-bit colour PNGs; depth and colour type are bytes 24 and 25 of the header
    with open(path, "rb") as file:
        head = file.read(26)
    return head.startswith(b"\x89PNG") and len(head) == 26 and head[24] == 16 and head[25] != 0


def _decode_deep_png(path: Path) -> Stored:
    with Image.open(path) as image:  # its size is checked, and its orientation read, without its pixels
        orientation = image.getexif().get(274, 1)
    values = imagecodecs.png_decode(path.read_bytes())
    kind, alpha = PIL_KINDS[values.shape[2]]
    return Stored(upright(values, orientation), Colours(kind, alpha))


def _decode_tiff(path: Path) -> Stored:
    with tifffile.TiffFile(path) as tiff:
        if tiff.pages.first.photometric in BY_PIL:
            return _decode_pil(path)
        picture = main_picture(path, tiff)
        first = picture.levels[0][0].keyframe
        samples = first.samplesperpixel * len(picture.levels[0])
        check_size(path, (first.imagelength, first.imagewidth), samples, first.dtype or np.dtype(np.uint8))
        return Stored(stored_values(picture), picture.colours, picture.left_out, picture.no_label)


def _decode_nifti(path: Path) -> Stored:
    import nibabel  # slow to import, and seldom needed

    image = nibabel.load(path)
    check_size(path, image.shape, 1, image.get_data_dtype())
    pixels = np.asanyarray(image.dataobj)
    alpha = None
    if pixels.dtype.names:  # RGB24 and RGBA32 are structured
        alpha = 3 if "A" in pixels.dtype.names else None
        pixels = np.stack([pixels[name] for name in pixels.dtype.names], axis=-1)
    pixels = pixels.squeeze(axis=tuple(i for i in range(2, pixels.ndim) if pixels.shape[i] == 1))
    return _as_stored(path, pixels.swapaxes(0, 1), alpha)


def _as_stored(path: Path, pixels: np.ndarray, alpha: int | None) -> Stored:
    """Of formats that have channels, but do not say which are colours: one is grey, three are RGB."""
    shape = pixels.shape
    if pixels.ndim == 3 and shape[2] not in (1, 2, 3, 4) and shape[0] in (1, 2, 3, 4):
        pixels = np.moveaxis(pixels, 0, 2)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.size == 0 or pixels.ndim != 3 or pixels.shape[2] > 4:
        raise DataError(path, f"shape {shape} is not a grey or RGB image", "Save one grey or RGB plane per file.")
    colours = pixels.shape[2] - (alpha is not None)
    if colours not in (1, 3):
        what = f"it has {colours} channels, and does not say that they are colours"
        raise DataError(path, what, "Save it as RGB or grey; of fluorescence choose the channels")
    return Stored(pixels, Colours("grey" if colours == 1 else "rgb", alpha))
