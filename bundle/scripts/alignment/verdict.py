from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scripts.alignment.probe import Accuracy

__all__ = ["Verdict", "judge", "short", "undetermined"]

# more than this share of what the frozen features tell above chance is left: hardly aligned
HARDLY = 0.8
# surely less than this share is left: aligned, whether or not the interval reaches chance
NEARLY = 0.25


@dataclass(frozen=True)
class Verdict:
    """
    ``outcome`` is one of aligned, partly_aligned, hardly_aligned, not_aligned, nothing_to_align and undetermined;
    ``sentence`` says it in words, with the figures.
    """

    outcome: str
    sentence: str


def judge(frozen: Accuracy, aligned: Accuracy, chance: float) -> Verdict:
    """
    Were the domains aligned? Decided by intervals, never by means alone.

    1. Frozen features whose interval reaches chance leave nothing to align, or, if it also reaches beyond the middle
       between chance and 1, nothing to conclude.
    2. If the paired difference frozen - aligned is above 0, the domains were aligned: wholly if the interval of the
       aligned features reaches chance and ends before the middle between chance and the frozen features, or ends
       before a quarter of that way; else hardly or in part, by the share of the accuracy above chance that is left.
    3. Otherwise they were not, if that difference is surely less than half of what there was to lose; else the
       groups are too few or too different to tell.

    Args:
        frozen, aligned: balanced accuracies of fresh probes on the same samples, with paired bootstrap draws.
        chance: 1 / K.
    """
    low, high = np.percentile(frozen.draws - aligned.draws, [2.5, 97.5])
    excess = frozen.mean - chance
    figures = (
        f"balanced accuracy {short(aligned.mean)} [{short(aligned.low)}, {short(aligned.high)}] against "
        f"{short(frozen.mean)} [{short(frozen.low)}, {short(frozen.high)}], chance {short(chance)}"
    )
    if frozen.low <= chance:
        if frozen.high <= (1 + chance) / 2:
            told = f"Already the frozen features do not tell the domains apart ({figures}): there is nothing to align."
            return Verdict("nothing_to_align", told)
        return _cannot_tell(figures)
    if low > 0:
        if aligned.low <= chance and aligned.high <= chance + excess / 2:
            told = f"Aligned features no longer tell the domains apart, frozen ones do ({figures}): they were aligned."
            return Verdict("aligned", told)
        if aligned.high <= chance + NEARLY * excess:
            told = f"Aligned features barely tell the domains apart, frozen ones do ({figures}): they were aligned."
            return Verdict("aligned", told)
        if aligned.low <= chance:
            return _cannot_tell(figures, "by how much ")
        left = (aligned.mean - chance) / excess
        how = "hardly aligned" if left > HARDLY else "aligned in part"
        told = (
            f"Aligned features are harder to tell apart than the frozen ones, but remain above chance ({figures}; "
            f"{100 * left:.0f} % of what was above chance is left): the domains were {how}."
        )
        return Verdict("hardly_aligned" if left > HARDLY else "partly_aligned", told)
    if high < excess / 2:
        than = "even easier to tell apart than" if high < 0 else "as easy to tell apart as"
        told = f"Aligned features are {than} the frozen ones ({figures}): the domains were not aligned."
        return Verdict("not_aligned", told)
    return _cannot_tell(figures)


def undetermined(reasons: str) -> Verdict:
    """Nothing was measured, for these reasons."""
    return Verdict("undetermined", f"Too little data to tell whether the domains were aligned: {reasons}.")


def _cannot_tell(figures: str, what: str = "whether ") -> Verdict:
    told = f"Too few patients or fields to tell {what}the domains were aligned: the intervals are too wide ({figures})."
    return Verdict("undetermined", told)


def short(value: float) -> str:
    """A fraction with two digits and no leading zero: .97, 1.00."""
    text = f"{value:.2f}"
    return text[1:] if text.startswith("0.") else text
