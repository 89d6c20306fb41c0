from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from lib.infer import SegmentNuclei
from scripts.errors import DataError
from scripts.slides.slide import Slide
from scripts.slides.tiles import TissueMap

__all__ = ["next_patch"]

TISSUE = 0.5  # share of a patch that must be tissue


def next_patch(
    task: SegmentNuclei, slide: Slide, mpp: float, size: Sequence[int], known: dict[str, Any], model: str, looks: int
) -> tuple[list[int], float] | None:
    """
    The patch of a slide about which the served model disagrees most with itself, of those not offered before.

    Patches lie side by side; only so many are looked at in one call, at random places, and the others in the next ones.

    Args:
        task: knows the served model.
        slide: to choose from.
        mpp: micrometres per level-0 pixel.
        size: (width, height) of a patch in level-0 pixels.
        known: what earlier calls found, which is brought up to date: plain values, kept with the slide.
        model: tells served models apart: another one looks anew.
        looks: how many patches are looked at.

    Returns:
        box (left, top, width, height) in level-0 pixels and the disagreement; None when no patch is left.

    Raises:
        DataError: when the slide has no patch with enough tissue.
    """
    width, height = size
    if known.get("model") != model or known.get("size") != [width, height]:
        known.update(model=model, size=[width, height], scores={})
    scores, offered = known["scores"], known.setdefault("offered", [])
    boxes = _boxes(slide, mpp, width, height)
    left = [box for box in boxes if not any(_meet(box, other) for other in offered)]
    unseen = [box for box in left if _name(box) not in scores]
    random.Random(str(slide.path)).shuffle(unseen)  # nosec B311 # it guards nothing
    for box in unseen[:looks]:
        scores[_name(box)] = round(task.patch_disagreement(slide, box, mpp), 4)
    seen = [box for box in left if _name(box) in scores]
    if not seen:
        return None
    chosen = max(seen, key=lambda box: scores[_name(box)])
    offered.append(chosen)
    return chosen, scores[_name(chosen)]


def _boxes(slide: Slide, mpp: float, width: int, height: int) -> list[list[int]]:
    tissue = TissueMap(slide, (0, 0, slide.width, slide.height), mpp)
    boxes = [
        [x, y, width, height]
        for y in range(0, slide.height - height + 1, height)
        for x in range(0, slide.width - width + 1, width)
        if tissue.share(x, y, x + width, y + height) >= TISSUE
    ]
    if not boxes:
        what = f"no patch of {width}x{height} pixels has half of it tissue"
        raise DataError(slide.path.name, what, "Ask for smaller patches (patch_size).")
    return boxes


def _name(box: Sequence[int]) -> str:
    return f"{box[0]},{box[1]}"


def _meet(one: Sequence[int], other: Sequence[int]) -> bool:
    return all(one[i] < other[i] + other[i + 2] and other[i] < one[i] + one[i + 2] for i in (0, 1))
