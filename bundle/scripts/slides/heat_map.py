from __future__ import annotations

import os

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from scripts.files import atomic_path
from scripts.nuclei.geoparquet import read_stream
from scripts.slides.tiles import TissueMap

__all__ = ["density_map", "write_overview"]

CELL = 100.0  # micrometres: side of a square whose nuclei are counted together, unless the picture is too coarse
LONGEST = 1200  # pixels of the thumbnail's longer side
# from nothing to opaque, so that tissue without nuclei stays visible
COLOURS = LinearSegmentedColormap.from_list("density", [(1, 1, 0, 0), (1, 0.6, 0, 0.55), (0.7, 0, 0.2, 0.8)])


def density_map(stream: str | os.PathLike, origin: tuple[float, float], cells: tuple[int, int], side: float):
    """
    Nuclei in each cell of a grid, from a stream of nuclei that is read piece by piece.

    Args:
        stream: in Arrow's format, with ``x_px`` and ``y_px``.
        origin: (x, y) of the grid's corner, in the stream's pixels.
        cells: (rows, columns).
        side: of a cell, in the stream's pixels.

    Returns:
        (rows, columns) counts.
    """
    counts = np.zeros(cells, np.int64)
    for batch in read_stream(stream):
        places = ((np.stack([batch["x_px"], batch["y_px"]], 1) - origin) / side).astype(int)
        places = places.clip(0, (cells[1] - 1, cells[0] - 1))
        np.add.at(counts, (places[:, 1], places[:, 0]), 1)
    return counts


def write_overview(path: str | os.PathLike, stream: str | os.PathLike, tissue: TissueMap, mpp: float) -> None:
    """A slide's thumbnail under the density of its nuclei, in nuclei for each square millimetre, with a scale."""
    height, width = tissue.thumbnail.shape[:2]
    step = -(-max(height, width) // LONGEST)
    thumbnail = tissue.thumbnail[::step, ::step]
    side = max(CELL / mpp, 4 * tissue.scale)
    cells = tuple(max(int(np.ceil(pixels * tissue.scale / side)), 1) for pixels in (height, width))
    origin = tissue.left * tissue.scale, tissue.top * tissue.scale
    heights, widths = (
        np.minimum(side, pixels * tissue.scale - side * np.arange(count))  # the last ones are cut
        for pixels, count in zip((height, width), cells)
    )
    density = density_map(stream, origin, cells, side) / (np.outer(heights, widths) * (mpp / 1000) ** 2)

    figure = Figure(figsize=(thumbnail.shape[1] / 100 + 1.6, thumbnail.shape[0] / 100 + 0.6))
    axes = figure.add_subplot()
    extent = (origin[0], origin[0] + width * tissue.scale, origin[1] + height * tissue.scale, origin[1])
    axes.imshow(thumbnail, extent=extent)
    x1, y1 = origin[0] + cells[1] * side, origin[1] + cells[0] * side
    heat = axes.imshow(density, COLOURS, extent=(origin[0], x1, y1, origin[1]), vmin=0, vmax=max(density.max(), 1))
    axes.set(xlim=extent[:2], ylim=extent[2:], xlabel="level-0 pixels")
    axes.tick_params(labelsize=7)
    figure.colorbar(heat, ax=axes, label="nuclei per mm²", fraction=0.05, pad=0.01)
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=100, bbox_inches="tight", pil_kwargs={"quality": 88})
