from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.data import MetaTensor
from monai.transforms import Transform
from scripts.data.readers import read_label
from scripts.errors import DataError
from scripts.nuclei.fates import touching

__all__ = ["GAPS", "CloseGaps", "close_gaps", "set_gaps"]

# what becomes of the background between nuclei that face each other
GAPS = ("keep", "close", "auto")

# "auto" closes gaps in labels where fewer nuclei than this share a border, and at least so many are one pixel apart
MOST_TOUCHING = 0.01
LEAST_FACING = 0.05


def set_gaps(items: Sequence[Mapping[str, Any]], domains: Sequence[Mapping[str, Any]], gaps: str) -> list[dict]:
    """
    Decide for each domain whether its gaps are closed.

    Some data sets are drawn with a line of background, one pixel wide, between nuclei that touch in the tissue; others
    let them share a border. Learned together, part of a batch teaches a gap that the rest teaches not to draw. With
    "auto" a domain is of the first kind when fewer than 1 % of its nuclei share a border with another, but 5 % or
    more have one pixel of background between them.

    Args:
        items: of ``load_items``, with ``label`` and ``domain_name``.
        domains: the domain list; an entry's own ``gaps`` goes before the next argument.
        gaps: "keep", "close", or "auto" to look at the labels of ``items``.

    Returns:
        the same items, copied, with ``gaps`` "keep" or "close".

    Raises:
        DataError: when the value is not known, or a label that is looked at cannot be read.
    """
    decided = {}
    stated = {domain["name"]: domain.get("gaps") for domain in domains}
    for name in dict.fromkeys(item["domain_name"] for item in items):
        decided[name] = stated.get(name) or gaps
        if decided[name] not in GAPS:
            raise DataError("gaps", f"'{decided[name]}' is not known", f"Use one of {', '.join(GAPS)}.")
        if decided[name] == "auto":
            own = [item for item in items if item["domain_name"] == name and "label" in item]
            decided[name] = _style([read_label(item["label"]) for item in own]) if own else "keep"
    return [{**item, "gaps": decided[item["domain_name"]]} for item in items]


def _style(labels: Sequence[np.ndarray]) -> str:
    touch, face = (np.concatenate([touching(label, near) for label in labels]) for near in (1, 2))
    drawn_apart = len(touch) and touch.mean() < MOST_TOUCHING and face.mean() >= LEAST_FACING
    return "close" if drawn_apart else "keep"


class CloseGaps(Transform):
    """
    Close the gaps of an item's label, see :func:`close_gaps`, if :func:`set_gaps` said so.

    It belongs before anything that resamples the label: there the lines are one pixel wide.

    Args:
        key: key of the instance map (1, H, W).
    """

    version = 1

    def __init__(self, key: str = "label") -> None:
        self.key = key

    def __call__(self, data: Mapping[Hashable, object]) -> dict:
        item = dict(data)
        if item.get("gaps") == "close":
            label = item[self.key]
            closed = close_gaps(np.asarray(label)[0])[None]
            item[self.key] = MetaTensor(closed, meta=label.meta) if isinstance(label, MetaTensor) else closed
        return item


def close_gaps(label: np.ndarray) -> np.ndarray:
    """
    Give the background pixels between two nuclei of an (H, W) instance map to one of them, so that they share a border.

    Only those that have two different nuclei among their eight neighbours: lines one pixel wide. Each goes to the
    nucleus with most of the eight, of equal ones to the lower id.
    """
    eight = np.stack([np.roll(np.pad(label, 1), (y, x), (0, 1))[1:-1, 1:-1] for y, x in _NEIGHBOURS])
    highest = eight.max(axis=0)
    lowest = np.where(eight > 0, eight, np.iinfo(label.dtype).max).min(axis=0)
    rows, columns = np.nonzero((label == 0) & (highest > 0) & (lowest < highest))
    around = np.sort(eight[:, rows, columns], axis=0)
    votes = ((around[:, None] == around) & (around > 0)).sum(axis=0)
    closed = label.copy()
    closed[rows, columns] = np.take_along_axis(around, votes.argmax(axis=0)[None], axis=0)[0]
    return closed


_NEIGHBOURS = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
