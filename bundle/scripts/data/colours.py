"""Pixels of any file, of whatever samples and depth, as RGB."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scripts.data.warn_once import warn_once
from scripts.errors import DataError

__all__ = ["Colours"]

CHANNELS = {"grey": 1, "white is zero": 1, "palette": 1, "rgb": 3, "cmyk": 4}
OVERSHOOT = 0.05  # by this share resampled floats may leave [0, 1] or [0, 255]
DARK = 99  # per cent of floats at most 1 while others are far above: neither range can be meant


@dataclass(frozen=True)
class Colours:
    """
    What the samples of a pixel mean, as the file says it. Images, masks and slides are read by this one rule.

    Args:
        kind: "grey", "white is zero" (grey, 0 being white), "palette", "rgb" or "cmyk".
        alpha: which sample is the transparency; None if the file says of none that it is. Other samples beyond the
            colours are left out.
        multiplied: whether colours are already multiplied with it.
        palette: (N, 3) or, with transparency, (N, 4) uint8.
        bits: of a sample, where they are fewer than its type has.
    """

    kind: str
    alpha: int | None = None
    multiplied: bool = False
    palette: np.ndarray | None = None
    bits: int | None = None

    @property
    def channels(self) -> int:
        """How many samples are colours."""
        return CHANNELS[self.kind]

    @property
    def white(self) -> int:
        """The 8-bit sample of what is empty."""
        if self.kind == "palette":
            return int(np.abs(self.palette[:, :3].astype(int) - 255).sum(axis=1).argmin())
        return 0 if self.kind in ("white is zero", "cmyk") else 255

    def of_parts(self, highest: int) -> Colours:
        """
        For an image of unsigned 16-bit samples that is read in parts: the same full intensity for all of them, by the
        rule for whole images.

        Args:
            highest: sample of any colour anywhere.
        """
        if self.bits or self.kind == "palette":
            return self
        full = 65535 if self.kind == "white is zero" else self._full(np.array([highest], np.uint16))
        return replace(self, bits=full.bit_length())

    def rgb(self, values: np.ndarray, path: Path, blend: bool | None = None) -> np.ndarray:
        """
        Args:
            values: (H, W, C) samples as stored.
            path: the file, for messages.
            blend: whether transparency is laid on white, the background of a slide; None does so where it varies.

        Returns:
            (H, W, 3) uint8.

        Raises:
            DataError: when the samples are no intensities.
        """
        if values.dtype.kind not in "buif":
            raise DataError(path, f"pixels are {values.dtype}, which is no colour", "Save the image as 8-bit RGB")
        if self.kind == "palette":
            if values.dtype.kind not in "bui" or int(values[..., 0].max()) >= len(self.palette):
                raise DataError(path, "pixels are not in its palette", "Save the image as 8-bit RGB")
            colours = self.palette[values[..., 0].astype(np.intp)]
            alpha = colours[..., 3] if colours.shape[2] == 4 else None
            colours = colours[..., :3]
        else:
            alpha = None if self.alpha is None else values[..., self.alpha]
            colours = self._scaled(values[..., : self.channels], path)
        if self.kind == "cmyk":
            ink = 255 - colours.astype(np.uint16)
            colours = (ink[..., :3] * ink[..., 3:] // 255).astype(np.uint8)
        if colours.shape[2] == 1:
            colours = np.repeat(colours, 3, axis=2)
        if alpha is not None and (alpha.min() != alpha.max() if blend is None else blend):
            weight = (alpha / self._full(alpha))[..., None]
            shown = colours if self.multiplied else colours * weight
            colours = np.rint(np.minimum(shown + 255.0 * (1.0 - weight), 255)).astype(np.uint8)
        return np.ascontiguousarray(colours)

    def _scaled(self, values: np.ndarray, path: Path) -> np.ndarray:
        """Samples as uint8, white being 255."""
        white_is_zero = self.kind == "white is zero"
        if values.dtype == np.uint8 and self.bits in (None, 8):
            return 255 - values if white_is_zero else values
        if values.dtype.kind == "b":
            return np.where(values != white_is_zero, np.uint8(255), np.uint8(0))
        low, high = values.min(), values.max()
        if not (np.isfinite(low) and np.isfinite(high)) or low < (-OVERSHOOT if values.dtype.kind == "f" else 0):
            raise DataError(path, f"intensities from {low} to {high} are no RGB", "Save the image as 8-bit RGB.")
        if white_is_zero:
            if values.dtype.kind == "f":
                raise DataError(path, "of float intensities it says that 0 is white", "Save the image as 8-bit RGB.")
            values = (2**self.bits - 1 if self.bits else np.iinfo(values.dtype).max) - values
            high = values.max()
        full = self._full(values)
        if values.dtype.kind == "f":
            values = values.astype(np.float64)
            if high > full * (1 + OVERSHOOT):
                raise DataError(path, f"float intensities reach {high}", "Scale them to [0, 1] or [0, 255].")
            if full == 255 and (values <= 1).mean() * 100 >= DARK:
                what = f"float intensities reach {high:.4g}, but {DARK} % of them are at most 1"
                raise DataError(path, what, "Scale all to [0, 1] or all to [0, 255].")
        elif values.dtype != np.uint8:
            message = f"{values.dtype} intensities up to {high} are scaled from [0, {full}] to [0, 255]"
            warn_once(str(path), message)
        return np.rint(np.clip(values * (255.0 / full), 0, 255)).astype(np.uint8)

    def _full(self, values: np.ndarray) -> int:
        """
        The value that means full intensity: of floats 1 or 255; of integers what the file's bits hold, else the
        smallest of 8, 12, 16 or all bits of their type that holds the largest value.
        """
        high = values.max()
        if values.dtype.kind == "b":
            return 1
        if values.dtype.kind == "f":
            return 1 if high <= 1 + OVERSHOOT else 255
        if self.bits:
            return 2**self.bits - 1
        limit = int(np.iinfo(values.dtype).max)
        return next((full for full in (255, 4095, 65535) if high <= full <= limit), limit)
