"""The one sentence of an alignment report."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scripts.alignment.probe import Accuracy

__all__ = ["Verdict", "judge", "short", "undetermined"]

# more than this share of what the frozen features tell above chance is left: hardly aligned
HARDLY = 0.8
# surely less than this share is left: aligned, whether or not the interval reaches chance
NEARLY = 0.25
# Dice on the primary's windows below which a network does not segment: no verdict on its features
SEGMENTS = 0.5


@dataclass(frozen=True)
class Verdict:
    """
    ``outcome`` is one of aligned, partly_aligned, hardly_aligned, not_aligned, no_better_than_control,
    nothing_to_align, does_not_segment and undetermined;
    ``sentence`` says it in words, with the figures.
    """

    outcome: str
    sentence: str


def judge(
    frozen: Accuracy, aligned: Accuracy, chance: float, control: Accuracy | None = None, dice: float | None = None
) -> Verdict:
    """
    Were the domains aligned? Decided by intervals, never by means alone.

    A network that does not segment (Dice below ``SEGMENTS``) is not judged. What else is found to be aligned, in
    whole or in part, must also be surely harder to tell apart than the control's features: random layers, too, make
    domains harder to tell apart.

    1. Frozen features whose interval reaches chance leave nothing to align, or, if it also reaches beyond the middle
       between chance and 1, nothing to conclude.
    2. If the paired difference frozen - aligned is above 0, the domains were aligned: wholly if the interval of the
       aligned features reaches chance and ends before the middle between chance and the frozen features, or ends
       before a quarter of that way; else hardly or in part, by the share of the accuracy above chance that is left.
    3. Otherwise they were not, if that difference is surely less than half of what there was to lose; else the
       groups are too few or too different to tell.

    Args:
        frozen, aligned, control: balanced accuracies of fresh probes on the same samples, with paired bootstrap
            draws; the control's are of the same network before training, or of one trained without alignment.
        chance: 1 / K.
        dice: of the network's foreground on the primary's windows.
    """
    if dice is not None and dice < SEGMENTS:
        why = f"Dice {short(dice)} on the primary's windows, {short(SEGMENTS)} are asked for"
        return Verdict("does_not_segment", f"No verdict on the alignment: the network does not segment ({why}).")
    verdict = _against_frozen(frozen, aligned, chance)
    if control is None or verdict.outcome not in ("aligned", "partly_aligned", "hardly_aligned"):
        return verdict
    of_control = f"{short(control.mean)} [{short(control.low)}, {short(control.high)}]"
    if np.percentile(control.draws - aligned.draws, 2.5) > 0:
        text = f" The control's features are easier to tell apart ({of_control}), so it is training that did it."
        return Verdict(verdict.outcome, verdict.sentence + text)
    text = (
        f"Aligned features are harder to tell apart than the frozen ones ({_figures(frozen, aligned, chance)}), but "
        f"not surely harder than the control's ({of_control}): that training aligned the domains is not shown."
    )
    return Verdict("no_better_than_control", text)


def _against_frozen(frozen: Accuracy, aligned: Accuracy, chance: float) -> Verdict:
    low, high = np.percentile(frozen.draws - aligned.draws, [2.5, 97.5])
    excess = frozen.mean - chance
    figures = _figures(frozen, aligned, chance)
    if frozen.low <= chance:
        if frozen.high <= (1 + chance) / 2:
            text = f"Already the frozen features do not tell the domains apart ({figures}): there is nothing to align."
            return Verdict("nothing_to_align", text)
        return _cannot_tell(figures)
    if low > 0:
        if aligned.low <= chance and aligned.high <= chance + excess / 2:
            text = f"Aligned features no longer tell the domains apart, frozen ones do ({figures}): they were aligned."
            return Verdict("aligned", text)
        if aligned.high <= chance + NEARLY * excess:
            text = f"Aligned features barely tell the domains apart, frozen ones do ({figures}): they were aligned."
            return Verdict("aligned", text)
        if aligned.low <= chance:
            return _cannot_tell(figures, "by how much ")
        left = (aligned.mean - chance) / excess
        how = "hardly aligned" if left > HARDLY else "aligned in part"
        text = (
            f"Aligned features are harder to tell apart than the frozen ones, but remain above chance ({figures}; "
            f"{100 * left:.0f} % of what was above chance is left): the domains were {how}."
        )
        return Verdict("hardly_aligned" if left > HARDLY else "partly_aligned", text)
    if high < excess / 2:
        than = "even easier to tell apart than" if high < 0 else "as easy to tell apart as"
        text = f"Aligned features are {than} the frozen ones ({figures}): the domains were not aligned."
        return Verdict("not_aligned", text)
    return _cannot_tell(figures)


def _figures(frozen: Accuracy, aligned: Accuracy, chance: float) -> str:
    return (
        f"balanced accuracy {short(aligned.mean)} [{short(aligned.low)}, {short(aligned.high)}] against "
        f"{short(frozen.mean)} [{short(frozen.low)}, {short(frozen.high)}], chance {short(chance)}"
    )


def undetermined(reasons: str) -> Verdict:
    """Nothing was measured, for these reasons."""
    return Verdict("undetermined", f"Too little data to tell whether the domains were aligned: {reasons}.")


def _cannot_tell(figures: str, what: str = "whether ") -> Verdict:
    text = f"Too few patients or fields to tell {what}the domains were aligned: the intervals are too wide ({figures})."
    return Verdict("undetermined", text)


def short(value: float) -> str:
    """A fraction with two digits and no leading zero: .97, 1.00."""
    text = f"{value:.2f}"
    return text[1:] if text.startswith("0.") else text
