"""Synthetic slides with known nuclei, drawn piece by piece, and the slide config with a network that knows them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
import torch
from fakes import open_verb

TILE = 256
GLASS, TISSUE, NUCLEUS = (245, 244, 246), (230, 180, 210), (70, 40, 120)


@dataclass(frozen=True)
class Drawing:
    """A slide's content: discs of tissue (N, 3) of x, y, radius; ellipses (M, 5) of x, y, two radii, angle."""

    width: int
    height: int
    tissue: np.ndarray
    nuclei: np.ndarray

    def draw(self, left: float, top: float, width: int, height: int, ratio: float) -> np.ndarray:
        """(height, width, 3) uint8 from a place in level-0 pixels on, ``ratio`` of them for each pixel."""
        x = left + (np.arange(width) + 0.5) * ratio
        y = top + (np.arange(height)[:, None] + 0.5) * ratio
        pixels = np.full((height, width, 3), GLASS, np.uint8)
        for cx, cy, radius in self._near(self.tissue, x, y, self.tissue[:, 2]):
            pixels[(x - cx) ** 2 + (y - cy) ** 2 < radius**2] = TISSUE
        for cx, cy, long, short, angle in self._near(self.nuclei, x, y, self.nuclei[:, 2]):
            u = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
            v = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
            pixels[(u / long) ** 2 + (v / short) ** 2 < 1] = NUCLEUS
        return pixels

    @staticmethod
    def _near(shapes, x, y, reach):
        across = (shapes[:, 0] > x[0] - reach) & (shapes[:, 0] < x[-1] + reach)
        return shapes[across & (shapes[:, 1] > y[0, 0] - reach) & (shapes[:, 1] < y[-1, 0] + reach)]


def make_drawing(width: int, height: int, seed: int = 0, spacing: int = 80, blobs: int = 3) -> Drawing:
    """Round pieces of tissue on glass, with nuclei of 7 to 20 pixels' radius at least some pixels apart."""
    rng = np.random.default_rng(seed)
    side = min(width, height)
    radius = rng.uniform(0.12, 0.2, blobs) * side
    tissue = np.stack([rng.uniform(0.2, 0.8, blobs) * width, rng.uniform(0.2, 0.8, blobs) * height, radius], axis=1)
    x, y = (a.ravel() for a in np.meshgrid(np.arange(spacing, width, spacing), np.arange(spacing, height, spacing)))
    jitter = spacing / 2 - 22
    x, y = (values + rng.uniform(-jitter, jitter, values.shape) for values in (x, y))
    inside = np.zeros(x.shape, bool)
    for cx, cy, r in tissue:
        inside |= (x - cx) ** 2 + (y - cy) ** 2 < (r - 30) ** 2
    count = int(inside.sum())
    sizes = rng.uniform(7, 20, (count, 2))
    sizes.sort(axis=1)
    nuclei = np.stack([x[inside], y[inside], sizes[:, 1], sizes[:, 0], rng.uniform(0, np.pi, count)], axis=1)
    return Drawing(width, height, tissue, nuclei)


def save_slide(path: Path, drawing: Drawing, mpp: float | None, kind: str = "tiff", levels=(1, 4, 16)) -> Path:
    """Write a pyramid as plain TIFF, OME-TIFF (``ome``) or, for OpenSlide, as Aperio SVS does it (``svs``)."""

    def tiles(ratio: int) -> Iterator[np.ndarray]:
        height, width = drawing.height // ratio, drawing.width // ratio
        for top in range(0, height, TILE):
            for left in range(0, width, TILE):
                yield drawing.draw(left * ratio, top * ratio, TILE, TILE, ratio)

    with tifffile.TiffWriter(path, bigtiff=kind == "ome", ome=kind == "ome") as tiff:
        for level, ratio in enumerate(levels):
            options = {"tile": (TILE, TILE), "photometric": "rgb", "compression": "jpeg" if kind == "svs" else "zlib"}
            options["compressionargs"] = {"level": 95 if kind == "svs" else 1}
            if kind == "svs":
                about = f"Aperio Image Library v1\n{drawing.width}x{drawing.height}|AppMag = 20|MPP = {mpp}"
                options |= {"description": about, "metadata": None, "subfiletype": int(level > 0)}
            elif kind == "ome" and level == 0:
                size = {"PhysicalSizeX": mpp * 1000, "PhysicalSizeXUnit": "nm"}
                size |= {"PhysicalSizeY": mpp * 1000, "PhysicalSizeYUnit": "nm"}
                options |= {"metadata": {"axes": "YXS", **size}, "subifds": len(levels) - 1}
            elif level > 0:
                options["subfiletype"] = 1
            if kind == "tiff":
                options |= {"metadata": None} | ({"subifds": len(levels) - 1} if level == 0 else {})
                if mpp is not None:
                    density = 1e4 / (mpp * ratio)
                    options |= {"resolution": (density, density), "resolutionunit": "CENTIMETER"}
            shape = (drawing.height // ratio, drawing.width // ratio, 3)
            tiff.write(tiles(ratio), shape=shape, dtype=np.uint8, **options)
    return path


class Darkness(torch.nn.Module):
    """Stands for the network: what is dark is nucleus. ``AMA_SAM_TEST_PAUSE`` slows it, to be killed in the middle."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(float(os.environ.get("AMA_SAM_TEST_PAUSE", 0)))
        return (140 - x.mean(1, keepdim=True)) / 10


class Deadly(torch.nn.Module):
    """Kills the process it runs in, as the system does when memory is full."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGKILL)


class Moody(torch.nn.Module):
    """Sees every nucleus a little larger or smaller, and shifted, by where its window lies: as real networks do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mood = int(x.sum().item()) % 3 - 1
        moved = torch.roll(x, (mood, -mood), (2, 3))
        return (140 + 25 * mood - moved.mean(1, keepdim=True)) / 10


def segment_slide(
    bundle_root: Path, slide: Path, output_dir: Path, network: str | dict = "Darkness", **overrides
) -> Path:
    """Run the real config with another network; the folder of a single slide's results."""
    network = {"_target_": f"slides.{network}"} if isinstance(network, str) else network
    options = {"tile_size": 512, "network": network, "device": "cpu"}
    if "ckpt_path" not in overrides:
        options |= {"ckpt_path": "none", "model": {"_target_": "scripts.networks.model_info.ModelInfo"}}
    options |= {"slide": str(slide), "output_dir": str(output_dir), **overrides}
    open_verb(bundle_root, "wsi", "inference", **options).run()
    return output_dir / Path(slide).stem
