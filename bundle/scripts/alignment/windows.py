from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from monai.transforms import Transform
from scripts.data.domains import check_domains, in_turn, is_labelled, load_items
from scripts.errors import DataError

__all__ = ["IMAGE_STATISTICS", "SIZE_MULTIPLE", "CutWindows", "image_statistics", "window_items"]

logger = logging.getLogger(__name__)

# what tells images apart without any texture: scale and density first, then colour
IMAGE_STATISTICS = ("nuclei_per_megapixel", "nucleus_area_px", "foreground_fraction", "red", "green", "blue")
SIZE_MULTIPLE = 32  # of the sides of an image, for whatever encoder
# a region smaller than this share of its window gives an average of too few feature points
SMALLEST_REGION = 0.01


def window_items(
    domains: Sequence[dict], splits: str | Sequence[str], windows_per_domain: int, strict: bool = True
) -> list[dict]:
    """
    List the images that windows are cut from, as many groups as can be, and how many windows to cut of each.

    A domain without any image in these splits gives its training images instead; ``split`` tells. An unlabelled one,
    whose nuclei are not known, is left out, which is told.

    Args:
        domains: the domain list, see ``scripts.data.domains``.
        splits: parts of the data, one or several of training, validation and testing.
        windows_per_domain: at most this many windows of each domain.
        strict: False leaves out, with a warning, a domain whose files cannot be listed.

    Returns:
        the items of ``load_items``, each with ``split`` and ``windows``, the number of windows to cut.

    Raises:
        DataError: when files of a domain are missing, unless not strict.
    """
    if windows_per_domain < 1:
        raise ValueError(f"windows_per_domain must be at least 1, got {windows_per_domain}")
    splits = [splits] if isinstance(splits, str) else list(splits)
    items: list[dict] = []
    for index, domain in enumerate(check_domains(domains)):
        if not is_labelled(domain):
            logger.info("left out of the alignment report: '%s' has no labels", domain["name"])
            continue
        try:
            found = _domain_items(domain, splits) or _domain_items(domain, ["training"])
        except DataError as error:
            if strict:
                raise
            logger.warning("left out of the alignment report: %s", error)
            continue
        chosen = in_turn(found)[:windows_per_domain]
        each, more = divmod(windows_per_domain, max(len(chosen), 1))
        items += [{**item, "domain": index, "windows": each + (n < more)} for n, item in enumerate(chosen)]
    return items


def _domain_items(domain: dict, splits: Sequence[str]) -> list[dict]:
    alone = [{**domain, "role": "primary"}]
    return [{**item, "split": split} for split in splits for item in load_items(alone, split)]


class CutWindows(Transform):
    """
    Square windows of an image, none overlapping, spread evenly over those that hold nuclei and background.

    An image gives as many as ``item["windows"]`` asks for and as fit. All windows have the same side, but an image
    smaller than it gives one as large as it can (a multiple of ``size_multiple``; mirrored where even that is larger).
    An image without a usable window gives its middle one, marked so.

    Reads ``image`` (3, H, W) RGB in [0, 255], ``label`` (1, H, W) instance map, ``mpp`` and what ``window_items``
    gives. Returns a list of dicts with ``image`` and ``label``, float32, ``statistics`` (see
    :func:`image_statistics`), ``usable``, ``domain``, ``group``, ``split``, ``mpp`` and ``file``.

    Args:
        window_size: side in pixels, a multiple of ``size_multiple``.
        size_multiple: the network takes sides that are multiples of this.
    """

    def __init__(self, window_size: int, size_multiple: int = SIZE_MULTIPLE) -> None:
        if window_size < 1 or window_size % size_multiple:
            raise ValueError(f"window_size must be a positive multiple of {size_multiple}, got {window_size}")
        self.window_size, self.size_multiple = window_size, size_multiple

    def __call__(self, data: Mapping[Hashable, object]) -> list[dict]:
        image, label = (np.asarray(data[key]) for key in ("image", "label"))
        sides = [max(min(self.window_size, s - s % self.size_multiple), self.size_multiple) for s in image.shape[1:]]
        missing = [max(side - s, 0) for side, s in zip(sides, image.shape[1:])]
        margins = [(0, 0), *((m // 2, m - m // 2) for m in missing)]
        image, label = (np.pad(x, margins, mode="reflect") for x in (image, label))

        corners = [
            ((height % sides[0]) // 2 + row * sides[0], (width % sides[1]) // 2 + column * sides[1])
            for height, width in [image.shape[1:]]
            for row in range(height // sides[0])
            for column in range(width // sides[1])
        ]
        windows = [tuple(slice(start, start + side) for start, side in zip(corner, sides)) for corner in corners]
        shares = [float((label[:, y, x] > 0).mean()) for y, x in windows]
        usable = [n for n, share in enumerate(shares) if SMALLEST_REGION <= share <= 1 - SMALLEST_REGION]
        chosen = _spread(usable, int(data["windows"])) or [len(windows) // 2]
        shared = {key: data[key] for key in ("domain", "group", "split", "mpp")}
        return [
            {
                **shared,
                "file": str(data["image"].meta["filename_or_obj"]),
                "image": torch.tensor(image[:, y, x], dtype=torch.float32),
                "label": torch.tensor(label[:, y, x].astype(np.float32)),
                "statistics": torch.from_numpy(image_statistics(image[:, y, x], label[0, y, x])),
                "usable": n in usable,
            }
            for n in chosen
            for y, x in [windows[n]]
        ]


def _spread(values: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of the values, evenly spaced."""
    if count >= len(values):
        return list(values)
    return [values[int((n + 0.5) * len(values) / count)] for n in range(count)]


def image_statistics(image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """
    The figures of :data:`IMAGE_STATISTICS` for one window.

    Nuclei are counted by their ids, those cut by the border too; their mean area is that of what lies in the window.

    Args:
        image: (3, H, W) RGB in [0, 255].
        label: (H, W) instance map, 0 is background.

    Returns:
        (6,) float64; areas in pixels of the window, colours in [0, 255].
    """
    count = len(np.unique(label[label > 0]))
    foreground = int((label > 0).sum())
    density = 1e6 * count / label.size
    return np.array([density, foreground / max(count, 1), foreground / label.size, *image.mean(axis=(1, 2))], float)
