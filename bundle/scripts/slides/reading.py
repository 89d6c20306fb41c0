from __future__ import annotations

import logging
import math
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openslide
import tifffile
from PIL import Image
from scripts.data.pixel_size import number, square_mpp, tiff_mpp
from scripts.data.tiff_files import main_picture
from scripts.data.warn_once import warn_once
from scripts.errors import DataError
from scripts.files import is_store

__all__ = ["Slide", "open_slide"]

logger = logging.getLogger(__name__)

MAX_SEGMENT = 2**24  # pixels; a larger strip or tile would have to be decoded whole for every region
READ_SIDE = 2048  # pixels of a level that a thumbnail reads at once
MAX_SLIDE = 2**38  # pixels; scanners' largest have some 2**35
SMALLEST_BAD = 64  # pixels of a level to which a damaged area is narrowed down


class Slide(ABC):
    """
    A pyramidal image of which regions are read at any scale, without ever holding more than the region.

    Threads may read at the same time.

    Args:
        path: the file.
        sizes: (width, height) of each level, level 0 first.
        mpp: micrometres per pixel of level 0, or None if the file does not say.
        origin: (x, y) in the file's own canvas of the corner from which pixels are counted.
    """

    def __init__(
        self, path: Path, sizes: list[tuple[int, int]], mpp: float | None, origin: tuple[int, int] = (0, 0)
    ) -> None:
        self.path, self.sizes, self.mpp, self.origin = path, sizes, mpp, origin
        self.width, self.height = sizes[0]
        self.downsamples = [_downsample(sizes[0], size) for size in sizes]

    def level_of(self, scale: float) -> int:
        """The coarsest level that is fine enough for so many level-0 pixels for each output pixel."""
        return max(i for i, ratio in enumerate(self.downsamples) if i == 0 or ratio <= scale * 1.01)

    @abstractmethod
    def read_level(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        """
        Pixels of a box.

        Args:
            level: index in ``sizes``, 0 is the finest.
            left, top, width, height: in that level's pixels; the box lies inside of it.

        Returns:
            (height, width, 3) uint8 RGB.

        Raises:
            Exception: whatever the codec raises, where the file is damaged there.
        """

    def read(
        self, left: int, top: int, width: int, height: int, scale: float
    ) -> tuple[np.ndarray, list[tuple[list[int], str]]]:
        """
        A region at any scale, from the coarsest level that is fine enough, resampled bilinearly with anti-aliasing.

        Regions of one scale lie on one grid: where two overlap, they show the same pixels.

        Args:
            left, top, width, height: in output pixels; what lies outside of the slide is white.
            scale: level-0 pixels for each output pixel.

        Returns:
            (height, width, 3) uint8, and what could not be read and is white: ([x, y, width, height] in level-0
            pixels, problem).
        """
        level = self.level_of(scale)
        ratio = scale / self.downsamples[level]
        whole = abs(ratio - 1) < 1e-9
        box = np.array([left, top, left + width, top + height]) * (1.0 if whole else ratio)
        reach = 0 if whole else math.ceil(max(ratio, 1)) + 1  # the filter looks beyond the region
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
                size = min(side, x1 - x), min(side, y1 - y)
                part, unread = self.read(x, y, *size, scale)
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
    Open a slide: scanners' formats with OpenSlide; plain tiled TIFF, BigTIFF and OME-TIFF with tifffile; OME-Zarr.

    OpenSlide does not see the pyramid and pixel size of OME-TIFF. MONAI's readers are not used: its one for tifffile
    reads a whole level into memory, and neither narrows down what is damaged.

    Raises:
        DataError: when the file is missing, not a slide, not 8-bit RGB or grey, or not tiled.
    """
    path = Path(path)
    if is_store(path):
        from scripts.slides.zarr_slide import ZarrSlide  # it is a Slide of this module

        return ZarrSlide(path)
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


class _TiffSlide(Slide):
    def __init__(self, path: Path) -> None:
        self._tiff = tifffile.TiffFile(path)
        self._tiff.filehandle.set_lock(True)  # else its lock is none, and threads read at each other's places
        picture = main_picture(path, self._tiff)
        self._levels, self._colours, self._blend = picture.levels, picture.colours, None
        hint = "Save it as 8-bit RGB in a tiled pyramidal TIFF"
        if picture.orientation != 1:
            raise DataError(path, "it says that it is to be turned to be upright", hint)
        if picture.left_out:
            warn_once(str(path), f"only the first of {picture.left_out + 1} planes is read")
        for pages in self._levels:
            self._check(path, pages, hint)
        sizes = [(pages[0].keyframe.imagewidth, pages[0].keyframe.imagelength) for pages in self._levels]
        super().__init__(path, sizes, tiff_mpp(path, self._tiff))
        if self._levels[0][0].keyframe.dtype == np.uint16:
            highest = [int(values[..., : self._colours.channels].max()) for values in self._overview()]
            self._colours = self._colours.of_parts(max(highest, default=0))
        self._blend = self._is_transparent()

    def _check(self, path: Path, pages: list[tifffile.TiffPage], hint: str) -> None:
        page = pages[0].keyframe
        if page.dtype not in (np.uint8, np.uint16) or (self._colours.bits or 8) < 8:
            what = f"pixels are {page.dtype}, {page.bitspersample} bits; read tile by tile, they must be 8 to 16 bits"
            raise DataError(path, what, hint)
        if _segment_size(page)[0] * _segment_size(page)[1] > MAX_SEGMENT:
            raise DataError(path, "it is not tiled", hint)
        width, height = _segment_size(page)
        needed = -(-page.imagewidth // width) * -(-page.imagelength // height) * _planes(page)
        size = f"{page.imagewidth}x{page.imagelength}"
        if page.imagewidth * page.imagelength > MAX_SLIDE:
            raise DataError(path, f"its header claims {size} pixels, more than any scanner's", "Copy it again")
        if any(len(one.dataoffsets) < needed for one in pages):
            raise DataError(path, f"its header claims {size} pixels, but it has fewer tiles", "Copy it again")
        page.decode  # noqa: B018 - tifffile asks to make it before threads use it

    def _is_transparent(self) -> bool:
        """Whether its transparency, if it has one, differs anywhere: looked at in the coarsest level."""
        if self._colours.alpha is None:
            return False
        seen = set()
        for values in self._overview():
            alpha = values[..., self._colours.alpha]
            seen |= {int(alpha.min()), int(alpha.max())}
            if len(seen) > 1:
                return True
        return False

    def _overview(self) -> Iterator[np.ndarray]:
        """The coarsest level as stored, in parts; what cannot be read of it is left out."""
        level = len(self.sizes) - 1
        width, height = self.sizes[level]
        for top in range(0, height, READ_SIDE):
            for left in range(0, width, READ_SIDE):
                box = left, top, min(READ_SIDE, width - left), min(READ_SIDE, height - top)
                try:
                    yield self._values(level, *box)
                except Exception:  # nosec B112 # it is told tile by tile
                    continue

    def read_level(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        return self._colours.rgb(self._values(level, left, top, width, height), self.path, self._blend)

    def _values(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        """(height, width, samples) as stored; what was never written is white."""
        pages = self._levels[level]
        page = pages[0].keyframe
        samples = page.samplesperpixel * len(pages)
        full = 2 ** (self._colours.bits or 8) - 1
        values = np.full((height, width, samples), full, page.dtype)
        values[..., : self._colours.channels] = full if self._colours.white == 255 else self._colours.white
        segment_width, segment_height = _segment_size(page)
        across, down = -(-page.imagewidth // segment_width), -(-page.imagelength // segment_height)
        planes = _planes(page)
        for nth, one in enumerate(pages):
            for plane in range(planes):
                for row in range(top // segment_height, -(-(top + height) // segment_height)):
                    for column in range(left // segment_width, -(-(left + width) // segment_width)):
                        segment = self._segment(one, (plane * down + row) * across + column)
                        if segment is None:  # never written: empty
                            continue
                        y, x = row * segment_height - top, column * segment_width - left
                        part = segment[max(-y, 0) : height - y, max(-x, 0) : width - x]
                        target = values[max(y, 0) :, max(x, 0) :][: part.shape[0], : part.shape[1]]
                        if planes > 1 or len(pages) > 1:
                            target[..., plane + nth] = part[..., 0]
                        else:
                            target[:] = part
        return values

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
        keyframe = page.keyframe  # further pages of a series know only where their tiles are
        decoded = keyframe.decode(data, index, jpegtables=page.jpegtables)[0]
        return None if decoded is None else decoded[0]


def _segment_size(page: tifffile.TiffPage) -> tuple[int, int]:
    return (page.tilewidth, page.tilelength) if page.is_tiled else (page.imagewidth, page.rowsperstrip)


def _planes(page: tifffile.TiffPage) -> int:
    """How many segments hold the samples of one place."""
    return page.samplesperpixel if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE else 1


def _downsample(base: tuple[int, int], size: tuple[int, int]) -> float:
    """How much smaller a level is. Its size is rounded, its pixels are not: 10003 / 2500 is 4, not 4.0012."""
    ratio = base[0] / size[0]
    whole = round(ratio)
    fits = all(abs(big - whole * small) < whole for big, small in zip(base, size))
    return float(whole) if fits else (base[0] / size[0] + base[1] / size[1]) / 2
