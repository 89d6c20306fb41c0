from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scripts.data.readers import read_image, read_label
from scripts.files import atomic_path
from scripts.nuclei.overlays import overlay

__all__ = ["write_contact_sheet"]

SIDE = 256  # pixels of an image that are shown, doubled by the overlay
COLUMNS = 4
GAP = 4  # white pixels between pictures


def write_contact_sheet(folder: Path, entries: Sequence[dict], path: Path, tiles: int = 12) -> None:
    """
    One picture of some images of a domain, the middle of each enlarged, with the outlines of its nuclei.

    Args:
        folder: the domain.
        entries: ``{"image", "label"}``, relative to the folder, and ``"title"``; evenly spaced ones are shown.
        path: the PNG file.
        tiles: how many at most.
    """
    chosen = [
        entries[i] for i in sorted({round(i) for i in np.linspace(0, len(entries) - 1, min(tiles, len(entries)))})
    ]
    pictures = []
    for entry in chosen:
        image, label = read_image(folder / entry["image"]), read_label(folder / entry["label"])
        window = tuple(slice(max((size - SIDE) // 2, 0), max((size - SIDE) // 2, 0) + SIDE) for size in label.shape)
        pictures.append(overlay(image[window].transpose(2, 0, 1), label[window], title=entry["title"]))
    height, width = (max(picture.shape[axis] for picture in pictures) + GAP for axis in (0, 1))
    columns = min(COLUMNS, len(pictures))
    sheet = np.full((height * -(-len(pictures) // columns), width * columns, 3), 255, np.uint8)
    for number, picture in enumerate(pictures):
        top, left = number // columns * height, number % columns * width
        sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    with atomic_path(path) as partial:
        Image.fromarray(sheet).save(partial)
