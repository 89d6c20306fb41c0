from __future__ import annotations

import math
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["MAX_SLIDE", "READ_SIDE", "Slide"]

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


def _downsample(base: tuple[int, int], size: tuple[int, int]) -> float:
    """How much smaller a level is. Its size is rounded, its pixels are not: 10003 / 2500 is 4, not 4.0012."""
    ratio = base[0] / size[0]
    whole = round(ratio)
    fits = all(abs(big - whole * small) < whole for big, small in zip(base, size))
    return float(whole) if fits else (base[0] / size[0] + base[1] / size[1]) / 2
