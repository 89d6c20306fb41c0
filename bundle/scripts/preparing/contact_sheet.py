from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scripts.data.readers import read_image, read_label
from scripts.files import atomic_path
from scripts.nuclei.overlays import contact_sheet, overlay

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
        middle = tuple(slice(max((size - SIDE) // 2, 0), max((size - SIDE) // 2, 0) + SIDE) for size in label.shape)
        pictures.append(overlay(image[middle].transpose(2, 0, 1), label[middle], title=entry["title"]))
    with atomic_path(path) as partial:
        Image.fromarray(contact_sheet(pictures, COLUMNS, GAP)).save(partial)
