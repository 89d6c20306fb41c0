from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scripts.files import atomic_path
from scripts.nuclei.geoparquet import outlines, read_stream
from scripts.nuclei.overlays import PREDICTION_COLOUR
from scripts.slides.nuclei_output import STREAM
from scripts.slides.slide import Slide
from scripts.slides.tiles import Tile

__all__ = ["TILE_OVERLAYS", "choose_tiles", "write_tile_overlays"]

EACH = 3  # pictures of typical tiles, and of unusual ones
TILE_OVERLAYS = tuple(f"tile_{kind}_{n}.jpg" for kind in ("typical", "unusual") for n in range(1, EACH + 1))
BESIDE = 100  # pixels around a tile's core: nuclei with their centre there may reach into it


def choose_tiles(rows: Sequence[Mapping[str, str]]) -> dict[str, int]:
    """
    Tiles worth a look: the most typical ones, next to the median, and the most unusual ones.

    They are told by the out-of-domain score, where unusual is what lies farthest from the training domains; without
    any score by the number of nuclei, of tiles that have some, where unusual is what lies farthest from the median.

    Args:
        rows: of ``tiles.csv``.

    Returns:
        number of the row by name of the picture, see ``TILE_OVERLAYS``; of few tiles fewer, none twice.
    """
    scored = [index for index, row in enumerate(rows) if row["out_of_domain"]]
    # many tiles hold but the rim of the tissue
    inhabited = [index for index, row in enumerate(rows) if int(row["nuclei"])] or list(range(len(rows)))
    measure, judged = ("out_of_domain", scored) if scored else ("nuclei", inhabited)
    if not judged:
        return {}
    values = {index: float(rows[index][measure]) for index in judged}
    median = np.median(list(values.values()))
    off = {index: abs(value - median) for index, value in values.items()}
    # of tiles alike the one that shows more
    by_typical = sorted(judged, key=lambda index: (off[index], -int(rows[index]["nuclei"])))
    far = values if scored else off
    typical = by_typical[: min(EACH, (len(by_typical) + 1) // 2)]
    others = [index for index in by_typical if index not in typical]
    unusual = sorted(others, key=lambda index: (-far[index], -int(rows[index]["nuclei"])))[:EACH]
    return {
        f"tile_{kind}_{n}.jpg": index
        for kind, chosen in (("typical", typical), ("unusual", unusual))
        for n, index in enumerate(chosen, start=1)
    }


def write_tile_overlays(folder: str | os.PathLike, slide: Slide, scale: float, tiles: Sequence[Tile]) -> list[str]:
    """
    Draw nuclei on some tiles of a finished slide, at the size that the network saw.

    Args:
        folder: with ``tiles.csv`` and the stream of nuclei; takes the pictures.
        slide: to read from.
        scale: level-0 pixels for each pixel of the network.
        tiles: those of ``tiles.csv``, in its order.

    Returns:
        names of the pictures.
    """
    folder = Path(folder)
    with (folder / "tiles.csv").open(newline="", encoding="utf-8") as file:
        chosen = choose_tiles(list(csv.DictReader(file)))
    cores = {name: tiles[index].core for name, index in chosen.items()}
    rings = _outlines(folder, cores, scale)
    for name, (left, top, right, bottom) in cores.items():
        pixels, _ = slide.read(left, top, right - left, bottom - top, scale)
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        draw = ImageDraw.Draw(picture)
        for ring in rings[name]:
            draw.polygon([tuple(point) for point in ring / scale - (left, top)], outline=PREDICTION_COLOUR)
        with atomic_path(folder / name) as path:
            picture.save(path, quality=90, subsampling=0)  # lines of one pixel need JPEG's full colour
    return list(cores)


def _outlines(folder: Path, cores: Mapping[str, tuple[int, int, int, int]], scale: float) -> dict[str, list]:
    """Outlines (N, 2) in level-0 pixels of the nuclei in and beside some tiles."""
    found: dict[str, list] = {name: [] for name in cores}
    for batch in read_stream(folder / STREAM):
        x, y = (np.asarray(batch[name]) / scale for name in ("x_px", "y_px"))
        for name, (left, top, right, bottom) in cores.items():
            near = (left - BESIDE <= x) & (x < right + BESIDE) & (top - BESIDE <= y) & (y < bottom + BESIDE)
            found[name] += outlines(batch["geometry"].filter(near))
    return found
