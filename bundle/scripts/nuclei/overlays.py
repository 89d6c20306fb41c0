from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from scripts.nuclei.fates import DETECTION_FATES, TRUE_FATES, fates

__all__ = ["contact_sheet", "fate_overlay", "overlay"]

# told apart by red-green colour-blind readers; both stand out on dark nuclei and on pale tissue
PREDICTION_COLOUR = (255, 225, 0)  # yellow
TRUTH_COLOUR = (0, 230, 255)  # cyan
# Okabe and Ito's, told apart by colour-blind readers; false detections are no fate of a true nucleus
FATE_COLOURS = {
    "matched": (255, 255, 255),
    "merged": (213, 94, 0),
    "split": (86, 180, 233),
    "missed": (240, 228, 66),
    "mostly missed": (0, 158, 115),
    "wrong outline": (0, 114, 178),
    "false": (0, 0, 0),
}
SMALL_SIDE = 640  # longest side in pixels up to which an image is drawn twice as large
TITLE_HEIGHT = 24


def overlay(
    image: np.ndarray | torch.Tensor,
    pred_instances: np.ndarray | torch.Tensor,
    true_instances: np.ndarray | torch.Tensor | None = None,
    title: str | None = None,
) -> np.ndarray:
    """
    Draw the outlines of nuclei on an image: predicted ones yellow, true ones cyan just outside of theirs.

    Args:
        image: (3, H, W) RGB in [0, 255].
        pred_instances: (H, W) or (1, H, W) instance map.
        true_instances: same shape, or None.
        title: text for a black strip above the image, or None for no strip.

    Returns:
        uint8 (H', W', 3). Images of at most 640 pixels a side are enlarged twice, so that the one-pixel lines do not
        hide small nuclei; the strip adds 24 rows for each line of the title.
    """
    image, pred, true = (
        values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values
        for values in (image, pred_instances, true_instances)
    )
    scale = 2 if max(image.shape[1:]) <= SMALL_SIDE else 1
    canvas = _enlarge(np.clip(image, 0, 255).astype(np.uint8).transpose(1, 2, 0), scale)
    if true is not None:
        canvas[_outline(true, scale, outside=True)] = TRUTH_COLOUR
    canvas[_outline(pred, scale, outside=False)] = PREDICTION_COLOUR
    return canvas if title is None else np.concatenate([_title_strip(title, canvas.shape[1]), canvas])


def fate_overlay(image: np.ndarray, pred_instances: np.ndarray, true_instances: np.ndarray, title: str) -> np.ndarray:
    """
    Draw the outlines of true nuclei in the colour of their fate, and those of (mostly) false detections in black.

    The fates are those of :func:`scripts.nuclei.fates.fates`. A second strip below the title is the legend, with the
    number of each.

    Args:
        image: (3, H, W) RGB in [0, 255].
        pred_instances: (H, W) or (1, H, W) instance map.
        true_instances: same shape.
        title: text for the strip above.

    Returns:
        uint8 (H', W', 3), enlarged as :func:`overlay` does.
    """
    pred, true = (values.reshape(values.shape[-2:]) for values in (pred_instances, true_instances))
    found = fates(pred, true)
    names = [*FATE_COLOURS]
    is_false = np.isin(found.detections, [DETECTION_FATES.index(fate) for fate in ("false", "mostly false")])
    drawn = [
        (true, found.true_ids, np.array([names.index(fate) for fate in TRUE_FATES])[found.true]),
        (pred, found.detection_ids[is_false], np.full(is_false.sum(), names.index("false"))),
    ]
    scale = 2 if max(image.shape[1:]) <= SMALL_SIDE else 1
    canvas = _enlarge(np.clip(image, 0, 255).astype(np.uint8).transpose(1, 2, 0), scale)
    colours = np.array([*FATE_COLOURS.values()], np.uint8)
    for instances, ids, kinds in drawn:
        kind_of = np.full(instances.max(initial=0) + 1, -1)
        kind_of[ids] = kinds
        kind = np.where(_outline(instances, scale, outside=False), kind_of[_enlarge(instances, scale)], -1)
        canvas[kind >= 0] = colours[kind[kind >= 0]]
    counts = np.bincount(np.concatenate([kinds for *_, kinds in drawn]), minlength=len(names))
    return np.concatenate([_title_strip(title, canvas.shape[1]), _legend_strip(counts, canvas.shape[1]), canvas])


def contact_sheet(pictures: Sequence[np.ndarray], columns: int, gap: int = 0) -> np.ndarray:
    """
    Pictures in rows of so many columns, on white.

    Args:
        pictures: (H, W, 3) uint8 each, at least one; of fewer than ``columns`` the sheet is as wide as they are many.
        columns: the most in a row.
        gap: white pixels beside and below each.
    """
    height, width = (max(picture.shape[axis] for picture in pictures) + gap for axis in (0, 1))
    columns = min(columns, len(pictures))
    sheet = np.full((height * -(-len(pictures) // columns), width * columns, 3), 255, np.uint8)
    for number, picture in enumerate(pictures):
        top, left = number // columns * height, number % columns * width
        sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return sheet


def _outline(instances: np.ndarray, scale: int, outside: bool) -> np.ndarray:
    """
    The outermost pixels of nuclei, or with ``outside`` those of the background around them (and between two that
    touch, both). As skimage's ``find_boundaries``, which takes longer than all else in an overlay.
    """
    instances = _enlarge(instances.reshape(instances.shape[-2:]), scale)
    marked = np.zeros(instances.shape, bool)
    for ids, marks in ((instances, marked), (instances.T, marked.T)):
        one, other = ids[1:], ids[:-1]
        differ = one != other
        marks[1:] |= differ & ((one == 0) | (other > 0) if outside else one > 0)
        marks[:-1] |= differ & ((other == 0) | (one > 0) if outside else other > 0)
    return marked


def _enlarge(plane: np.ndarray, scale: int) -> np.ndarray:
    return plane.repeat(scale, axis=0).repeat(scale, axis=1)


def _title_strip(title: str, width: int) -> np.ndarray:
    """Words in white on black; as many lines as the width asks for, so that figures are not cut off."""
    font = ImageFont.load_default(size=14)
    lines = [""]
    for word in title.split(" "):
        longer = f"{lines[-1]} {word}".lstrip()
        lines[-1:] = [longer] if not lines[-1] or font.getlength(longer) <= width - 6 else [lines[-1], word]
    strip = Image.new("RGB", (width, len(lines) * TITLE_HEIGHT))
    for number, line in enumerate(lines):
        ImageDraw.Draw(strip).text((6, 4 + number * TITLE_HEIGHT), line, fill="white", font=font)
    return np.asarray(strip)


def _legend_strip(counts: np.ndarray, width: int) -> np.ndarray:
    """The colours with their names and counts on grey; as many lines as the width asks for."""
    font = ImageFont.load_default(size=12)
    entries = [(f"{name} {count}", colour) for (name, colour), count in zip(FATE_COLOURS.items(), counts)]
    places, x, line = [], 6, 0
    for text, _ in entries:
        needed = 18 + int(font.getlength(text)) + 14
        if x > 6 and x + needed > width:
            x, line = 6, line + 1
        places.append((x, line * TITLE_HEIGHT))
        x += needed
    strip = Image.new("RGB", (width, (line + 1) * TITLE_HEIGHT), (120, 120, 120))
    draw = ImageDraw.Draw(strip)
    for (text, colour), (x, y) in zip(entries, places):
        draw.rectangle((x, y + 6, x + 12, y + 18), fill=colour)
        draw.text((x + 18, y + 4), text, fill="white", font=font)
    return np.asarray(strip)
