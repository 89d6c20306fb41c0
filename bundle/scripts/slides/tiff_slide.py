from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
from scripts.data.pixel_size import tiff_mpp
from scripts.data.tiff_files import main_picture
from scripts.data.warn_once import warn_once
from scripts.errors import DataError
from scripts.slides.slide import MAX_SLIDE, READ_SIDE, Slide

__all__ = ["TiffSlide"]

MAX_SEGMENT = 2**24  # pixels; a larger strip or tile would have to be decoded whole for every region


class TiffSlide(Slide):
    """Plain tiled TIFF, BigTIFF and OME-TIFF, with tifffile."""

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
