from __future__ import annotations

import math
import os
import threading
from pathlib import Path

import numpy as np
import openslide
from PIL import Image
from scripts.data.decoding import PIL_SUFFIXES, file_suffix
from scripts.data.pixel_size import number, square_mpp
from scripts.errors import DataError
from scripts.files import is_store
from scripts.slides.slide import Slide
from scripts.slides.tiff_slide import TiffSlide
from scripts.slides.zarr_slide import ZarrSlide
from scripts.wording import command

__all__ = ["open_slide"]


def open_slide(path: str | os.PathLike) -> Slide:
    """
    Open a slide: scanners' formats with OpenSlide; plain tiled TIFF, BigTIFF and OME-TIFF with tifffile; OME-Zarr.

    OpenSlide does not see the pyramid and pixel size of OME-TIFF. MONAI's readers are not used: its one for tifffile
    reads a whole level into memory, and neither narrows down what is damaged.

    Raises:
        DataError: when the file is missing, not a slide, not 8-bit RGB or grey, or not tiled.
    """
    path = Path(path)
    if is_store(path):
        return ZarrSlide(path)
    if not path.is_file():
        raise DataError(path, "there is no such slide", "Check --slide")
    hint = "Convert it to a tiled pyramidal TIFF, e.g. with `vips tiffsave IN OUT --tile --pyramid --compression jpeg`"
    if file_suffix(path) in PIL_SUFFIXES:
        hint += f", or segment it as an image by {command('inferring')}"
    try:
        vendor = openslide.OpenSlide.detect_format(path)
        return _OpenSlide(path) if vendor not in (None, "generic-tiff") else TiffSlide(path)
    except DataError:
        raise
    except Exception as error:
        raise DataError(path, f"it cannot be read as a slide ({error})", hint) from error


class _OpenSlide(Slide):
    def __init__(self, path: Path) -> None:
        self._handles = threading.local()  # an error makes a handle refuse everything: it must be no other thread's
        slide = openslide.OpenSlide(path)
        properties = slide.properties
        sides = [properties.get(name) for name in (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)]
        sizes, (left, top) = list(slide.level_dimensions), (0, 0)
        bounds = [number(properties.get(f"openslide.bounds-{name}")) for name in ("x", "y", "width", "height")]
        if None not in bounds and min(bounds[2:]) > 0:
            # what was scanned of a larger canvas: viewers crop to it, and count pixels from its corner
            left, top, width, height = map(int, bounds)
            box = min(width, sizes[0][0] - left), min(height, sizes[0][1] - top)
            sizes = [
                (max(math.floor(box[0] / ratio), 1), max(math.floor(box[1] / ratio), 1))
                for ratio in slide.level_downsamples
            ]
            sizes[0] = box
        super().__init__(path, sizes, square_mpp(path, *map(number, sides)), (left, top))

    def read_level(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        if not hasattr(self._handles, "slide"):
            self._handles.slide = openslide.OpenSlide(self.path)
        slide = self._handles.slide
        # by OpenSlide's own idea of the ratio, else it would shift the pixels
        ratio = slide.level_downsamples[level]
        place = self.origin[0] + round(left * ratio), self.origin[1] + round(top * ratio)
        try:
            region = slide.read_region(place, level, (width, height))
        except openslide.OpenSlideError:
            del self._handles.slide
            raise
        white = Image.new("RGB", region.size, "white")
        white.paste(region, mask=region.getchannel("A"))
        return np.asarray(white)
