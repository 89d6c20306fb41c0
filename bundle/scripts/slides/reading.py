from __future__ import annotations

import logging
import math
import os
import threading
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import openslide
import tifffile
from PIL import Image
from scripts.data.pixel_size import number, square_mpp, tiff_mpp
from scripts.errors import DataError

__all__ = ["Slide", "open_slide"]

logger = logging.getLogger(__name__)

MAX_SEGMENT = 2**24  # pixels; a larger strip or tile would have to be decoded whole for every window
READ_SIDE = 2048  # pixels of a level that a thumbnail reads at once
SMALLEST_BAD = 64  # pixels of a level to which a damaged area is narrowed down


class Slide(ABC):
    """
    A pyramidal image of which windows are read at any scale, without ever holding more than the window.

    Threads may read at the same time.

    Args:
        path: the file.
        sizes: (width, height) of each level, level 0 first.
        mpp: micrometres per pixel of level 0, or None if the file does not say.
    """

    def __init__(self, path: Path, sizes: list[tuple[int, int]], mpp: float | None) -> None:
        self.path, self.sizes, self.mpp = path, sizes, mpp
        self.width, self.height = sizes[0]
        self.downsamples = [_downsample(sizes[0], size) for size in sizes]

    @abstractmethod
    def read_level(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        """(height, width, 3) uint8 of a box inside of a level, in its pixels; any exception if it is damaged."""

    def read(
        self, left: int, top: int, width: int, height: int, scale: float
    ) -> tuple[np.ndarray, list[tuple[list[int], str]]]:
        """
        A window at any scale, from the coarsest level that is fine enough, resampled bilinearly with anti-aliasing.

        Windows of one scale lie on one grid: where two overlap, they show the same pixels.

        Args:
            left, top, width, height: in output pixels; what lies outside of the slide is white.
            scale: level-0 pixels for each output pixel.

        Returns:
            (height, width, 3) uint8, and what could not be read and is white: ([x, y, width, height] in level-0
            pixels, problem).
        """
        level = max(i for i, ratio in enumerate(self.downsamples) if i == 0 or ratio <= scale * 1.01)
        ratio = scale / self.downsamples[level]
        whole = abs(ratio - 1) < 1e-9
        box = np.array([left, top, left + width, top + height]) * (1.0 if whole else ratio)
        reach = 0 if whole else math.ceil(max(ratio, 1)) + 1  # the filter looks beyond the window
        start, stop = np.floor(box[:2]).astype(int) - reach, np.ceil(box[2:]).astype(int) + reach
        pixels = np.full((*(stop - start)[::-1], 3), 255, np.uint8)
        (x0, y0), (x1, y1) = np.maximum(start, 0), np.minimum(stop, self.sizes[level])
        bad: list[tuple[list[int], str]] = []
        if x1 > x0 and y1 > y0:
            inside = pixels[y0 - start[1] : y1 - start[1], x0 - start[0] : x1 - start[0]]
            self._fill(inside, level, int(x0), int(y0), bad)
        if whole:
            return pixels, bad
        image = Image.fromarray(pixels)
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, tuple(box - [*start, *start]))), bad

    def thumbnail(
        self, left: float, top: float, width: float, height: float, scale: float
    ) -> tuple[np.ndarray, list[tuple[list[int], str]]]:
        """As :meth:`read` for a box given in level-0 pixels, but read in pieces, since all of a level may not fit."""
        x0, y0 = int(left / scale), int(top / scale)
        x1, y1 = max(math.ceil((left + width) / scale), x0 + 1), max(math.ceil((top + height) / scale), y0 + 1)
        result = np.empty((y1 - y0, x1 - x0, 3), np.uint8)
        finest = max(ratio for ratio in self.downsamples if ratio <= scale * 1.01 or ratio == 1)
        side = max(int(READ_SIDE * finest / scale), 1)
        bad = []
        for y in range(y0, y1, side):
            for x in range(x0, x1, side):
                window = min(side, x1 - x), min(side, y1 - y)
                part, unread = self.read(x, y, *window, scale)
                result[y - y0 : y - y0 + side, x - x0 : x - x0 + side] = part
                bad += unread
        return result, bad

    def _fill(self, pixels: np.ndarray, level: int, left: int, top: int, bad: list) -> None:
        """Read into ``pixels``; if that fails read its quarters, down to those that are damaged, which stay white."""
        height, width = pixels.shape[:2]
        try:
            pixels[:] = self.read_level(level, left, top, width, height)
        except (OSError, MemoryError):  # disk, network or memory are at fault, not the slide's content
            raise
        except Exception as error:  # each codec has its own errors
            if max(width, height) <= SMALLEST_BAD:
                ratio = self.downsamples[level]
                problem = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                bad.append(([round(side * ratio) for side in (left, top, width, height)], problem))
                return
            half_y, half_x = -(-height // 2), -(-width // 2)
            for y in (0, half_y):
                for x in (0, half_x):
                    part = pixels[y : y + half_y if y == 0 else None, x : x + half_x if x == 0 else None]
                    if part.size:
                        self._fill(part, level, left + x, top + y, bad)


def open_slide(path: str | os.PathLike) -> Slide:
    """
    Open a slide: scanners' formats with OpenSlide; plain tiled TIFF, BigTIFF and OME-TIFF with tifffile.

    OpenSlide does not see the pyramid and pixel size of OME-TIFF. MONAI's readers are not used: its one for tifffile
    reads a whole level into memory, and neither narrows down what is damaged.

    Raises:
        DataError: when the file is missing, not a slide, not 8-bit RGB or grey, or not tiled.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(path, "there is no such slide", "Check --slide")
    hint = "Convert it to a tiled pyramidal TIFF, e.g. with `vips tiffsave IN OUT --tile --pyramid --compression jpeg`"
    try:
        vendor = openslide.OpenSlide.detect_format(path)
        return _OpenSlide(path) if vendor not in (None, "generic-tiff") else _TiffSlide(path)
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
        super().__init__(path, list(slide.level_dimensions), square_mpp(path, *map(number, sides)))

    def read_level(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        if not hasattr(self._handles, "slide"):
            self._handles.slide = openslide.OpenSlide(self.path)
        slide = self._handles.slide
        # by OpenSlide's own idea of the ratio, else it would shift the pixels
        ratio = slide.level_downsamples[level]
        try:
            region = slide.read_region((round(left * ratio), round(top * ratio)), level, (width, height))
        except openslide.OpenSlideError:
            del self._handles.slide
            raise
        white = Image.new("RGB", region.size, "white")
        white.paste(region, mask=region.getchannel("A"))
        return np.asarray(white)


class _TiffSlide(Slide):
    def __init__(self, path: Path) -> None:
        self._tiff = tifffile.TiffFile(path)
        self._tiff.filehandle.set_lock(True)  # else its lock is none, and threads read at each other's places
        series = self._tiff.series[0]
        # one page of colours, or one page for each colour
        self._levels = [list(level.pages)[:3] if "C" in level.axes else [level.keyframe] for level in series.levels]
        for pages in self._levels:
            self._check(path, pages[0])
        sizes = [(pages[0].imagewidth, pages[0].imagelength) for pages in self._levels]
        super().__init__(path, sizes, tiff_mpp(path, self._tiff))

    @staticmethod
    def _check(path: Path, page: tifffile.TiffPage) -> None:
        hint = "Save it as 8-bit RGB in a tiled pyramidal TIFF"
        if page.dtype != np.uint8:
            raise DataError(path, f"pixels are {page.dtype}", hint)
        if _segment_size(page)[0] * _segment_size(page)[1] > MAX_SEGMENT:
            raise DataError(path, "it is not tiled", hint)
        page.decode  # noqa: B018 - tifffile asks to make it before threads use it

    def read_level(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        pixels = np.full((height, width, 3), 255, np.uint8)
        pages = self._levels[level]
        for colour, page in enumerate(pages):
            segment_width, segment_height = _segment_size(page)
            across, down = -(-page.imagewidth // segment_width), -(-page.imagelength // segment_height)
            planes = page.samplesperpixel if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE else 1
            for plane in range(min(planes, 3)):
                for row in range(top // segment_height, -(-(top + height) // segment_height)):
                    for column in range(left // segment_width, -(-(left + width) // segment_width)):
                        segment = self._segment(page, (plane * down + row) * across + column)
                        if segment is None:  # never written: empty
                            continue
                        y, x = row * segment_height - top, column * segment_width - left
                        part = segment[max(-y, 0) : height - y, max(-x, 0) : width - x]
                        target = pixels[max(y, 0) :, max(x, 0) :][: part.shape[0], : part.shape[1]]
                        if planes > 1 or len(pages) > 1:
                            target[..., plane + colour] = part[..., 0]
                        else:
                            target[:] = part[..., :3] if part.shape[2] >= 3 else part[..., :1]
        return pixels

    def _segment(self, page: tifffile.TiffPage, index: int) -> np.ndarray | None:
        """(height, width, samples) of one tile or strip."""
        offset, count = page.dataoffsets[index], page.databytecounts[index]
        if not count:
            return None
        handle = self._tiff.filehandle
        with handle.lock:
            handle.seek(offset)
            data = handle.read(count)
        if len(data) < count:
            raise ValueError("the file ends early")
        decoded = page.decode(data, index, jpegtables=page.jpegtables)[0]
        return None if decoded is None else decoded[0]


def _segment_size(page: tifffile.TiffPage) -> tuple[int, int]:
    return (page.tilewidth, page.tilelength) if page.is_tiled else (page.imagewidth, page.rowsperstrip)


def _downsample(base: tuple[int, int], size: tuple[int, int]) -> float:
    """How much smaller a level is. Its size is rounded, its pixels are not: 10003 / 2500 is 4, not 4.0012."""
    ratio = base[0] / size[0]
    whole = round(ratio)
    fits = all(abs(big - whole * small) < whole for big, small in zip(base, size))
    return float(whole) if fits else (base[0] / size[0] + base[1] / size[1]) / 2
