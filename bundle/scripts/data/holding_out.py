from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from monai.transforms import MapTransform
from scripts.data.domains import is_labelled, load_items
from scripts.errors import DataError

__all__ = ["CutSpan", "training_span", "validation_items"]


logger = logging.getLogger(__name__)


def training_span(items: Sequence[Mapping[str, Any]], held_out: float) -> list[dict]:
    """
    Leave a part of each labelled image of the primary out of training, so that few images can still be judged by.

    Args:
        items: of ``load_items``.
        held_out: share of the longer side of each image, from its end, in [0, 1); 0 leaves the items as they are.

    Returns:
        the items, those of the primary with the ``span`` that :class:`CutSpan` keeps.

    Raises:
        ValueError: when the share is not in [0, 1).
    """
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out must be at least 0 and below 1, got {held_out}")
    if held_out == 0:
        return [dict(item) for item in items]
    return [{**item, "span": (0.0, 1 - held_out)} if item["domain"] == 0 else dict(item) for item in items]


def validation_items(domains: Sequence[dict], held_out: float = 0.0) -> list[dict]:
    """
    What a training is judged by: the validation part of the first domain, or with ``held_out`` what
    :func:`training_span` leaves of its training part. An unlabelled first domain can judge nothing, which is told.

    Raises:
        DataError: when a part of its images, which have no labels, is to be held out.
    """
    if domains and not is_labelled(domains[0]):
        name = domains[0]["name"]
        if held_out:
            hint = "Leave held_out out, or label some of its images and make them a domain of their own."
            raise DataError("held_out", f"the primary '{name}' has no labels to validate by", hint)
        told = "the primary '%s' has no labels: its Dice cannot be known in training, and the last weights are kept"
        logger.warning(told, name)
        return []
    if held_out == 0:
        return load_items(domains[:1], "validation")
    return [{**item, "span": (1 - held_out, 1.0)} for item in load_items(domains[:1], "training")]


class CutSpan(MapTransform):
    """
    Cut images (C, H, W) and labels (1, H, W) to the item's ``span`` of their longer side, (from, to) in [0, 1].

    Items without a span stay whole.
    """

    version = 1

    def __init__(self, keys: Sequence[str] | str = ("image", "label")) -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, object]) -> dict:
        item = dict(data)
        if "span" in item:
            for key in self.keys:
                height, width = item[key].shape[1:]
                start, stop = (round(float(end) * max(height, width)) for end in item["span"])
                item[key] = item[key][:, start:stop] if height > width else item[key][:, :, start:stop]
        return item
