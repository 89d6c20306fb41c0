from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

__all__ = ["overlay"]

# told apart by red-green colour-blind readers; both stand out on dark nuclei and on pale tissue
PREDICTION_COLOUR = (255, 225, 0)  # yellow
TRUTH_COLOUR = (0, 230, 255)  # cyan
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
        hide small nuclei; the strip adds 24 rows.
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
    strip = Image.new("RGB", (width, TITLE_HEIGHT))
    ImageDraw.Draw(strip).text((6, 4), title, fill="white", font=ImageFont.load_default(size=14))
    return np.asarray(strip)
