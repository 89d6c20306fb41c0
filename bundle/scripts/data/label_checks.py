from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scripts.data.domains import load_items
from scripts.data.holding_out import CutSpan, validation_items
from scripts.data.readers import read_label
from scripts.errors import DataError
from scripts.phases import PHASES
from skimage.measure import label as connected

__all__ = ["LabelCheck", "check_labels", "look_at_label"]

logger = logging.getLogger(__name__)

WHOLE = 0.8  # share of an image that no nucleus fills,
WHOLE_PIXELS = 128 * 128  # unless the image is a small crop
DENSE = 0.5  # share that nuclei seldom cover: of 273 real tiles one has more
PIECES = 1.5, 6  # pieces for each id, and pieces at all, from which ids are no nuclei


@dataclass(frozen=True)
class LabelCheck:
    """
    What a label map looks like.

    Args:
        nuclei: number of its ids.
        pieces: number of its connected parts (8 neighbours); in a map of nuclei there are few more than ids.
        wrong: what it must be instead of a map of nuclei; empty if it may be one.
        covered: share of the image that is nucleus, in [0, 1].
    """

    nuclei: int
    pieces: int
    wrong: str = ""
    covered: float = 0.0


def look_at_label(label: np.ndarray) -> LabelCheck:
    """Whether an (H, W) map can be one of nuclei: not inverted, not of classes, not an antialiased mask."""
    sizes = np.bincount(label.ravel()) if label.max(initial=0) < label.size else np.unique(label, return_counts=True)[1]
    sizes = sizes[1:] if label.size and label.min() == 0 else sizes
    nuclei = int((sizes > 0).sum())
    if not nuclei:
        return LabelCheck(0, 0)
    largest = sizes.max() / label.size
    pieces = int(connected(label, background=0, connectivity=2).max())
    wrong = ""
    if largest > WHOLE and label.size >= WHOLE_PIXELS:
        wrong = f"one nucleus fills {largest:.0%} of the image: the label is inverted, or marks a region"
    elif pieces >= PIECES[1] and pieces >= PIECES[0] * nuclei:
        wrong = f"{nuclei} ids lie in {pieces} pieces: it is a map of classes, an antialiased mask, or has too few bits"
    return LabelCheck(nuclei, pieces, wrong, float(sizes.sum() / label.size))


@PHASES.within("checking")
def check_labels(
    domains: Sequence[dict], splits: Sequence[str] = ("training", "validation"), held_out: float = 0.0
) -> None:
    """
    Before work: look at the labels of parts of the data, and tell of those without a nucleus, and those with many.

    Args:
        domains: the domain list; unlabelled ones are passed over.
        splits: the parts.
        held_out: share of each training image of the first domain by which a training is judged.

    Raises:
        DataError: naming the first label that cannot be read or is no map of nuclei, and how many there are; when
            there is no nucleus in any that is trained on, or in all that is held out.
    """
    empty, wrong, dense = [], [], []
    items = [item for split in splits for item in load_items(domains, split)]
    items = [item for item in items if "label" in item]
    judging = {item["label"]: item for item in (validation_items(domains, held_out) if held_out else ())}
    cut, judges = CutSpan(["label"]), {}
    for item in items:
        label = read_label(item["label"])
        check = look_at_label(label)
        if check.wrong:
            wrong.append((item["label"], check.wrong))
        elif not check.nuclei:
            empty.append(item["label"])
        elif check.covered > DENSE:
            dense.append((check.covered, item["label"]))
        if item["label"] in judging:
            judges[item["label"]] = cut({**judging[item["label"]], "label": label[None]})["label"].any()
    if wrong:
        path, what = wrong[0]
        more = f" (likewise {len(wrong) - 1} others)" if len(wrong) > 1 else ""
        raise DataError(path, what + more, "Save one integer per nucleus and 0 as background, as 16-bit grey PNG.")
    if empty and len(empty) == len(items) and "training" in splits:
        raise DataError(empty[0], f"none of {len(items)} labels has a nucleus", "Check that they are label maps.")
    if empty:
        logger.warning("%s: %d of %d labels have no nucleus, as this one", empty[0], len(empty), len(items))
    if dense:
        what = "%s: nuclei cover %.0f %% of it, and more than half of %d of %d labels: look whether they are inverted"
        logger.warning(what, max(dense)[1], 100 * max(dense)[0], len(dense), len(items))
    blind = [path for path, has_nuclei in judges.items() if not has_nuclei]
    if blind:
        what = "the part that is held out, at its right or lower end, has no nucleus"
        if len(blind) == len(judges):
            raise DataError(blind[0], f"{what}, so nothing can be judged by it", "Label nuclei there, or turn the tile")
        logger.warning("%s: %s, as in %d of %d labels: they judge little", blind[0], what, len(blind), len(judges))
