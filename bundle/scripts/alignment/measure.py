"""All figures of an alignment report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from scripts.alignment.features import REGIONS
from scripts.alignment.mmd import group_discrepancy
from scripts.alignment.probe import Accuracy, a_distance, balanced_accuracy, probe
from scripts.alignment.verdict import judge, undetermined
from scripts.alignment.windows import IMAGE_STATISTICS
from threadpoolctl import threadpool_limits

__all__ = ["WindowSamples", "describe", "measure"]

# each part of the image statistics that a probe is asked to tell domains apart by
SHORTCUTS = {"scale_and_density": slice(0, 3), "colour": slice(3, 6), "all": slice(0, 6)}


@dataclass(frozen=True)
class WindowSamples:
    """
    What is measured of N windows; see ``features.RegionFeatures`` and ``windows.image_statistics``.

    ``frozen`` (N, R, C) and ``aligned`` (N, R, C') features by region, ``statistics`` (N, 6), ``domain`` (N,) indices
    and ``group`` (N,) names; if known, ``control`` (N, R, C'') features and the network's ``dice`` (N,).
    """

    frozen: np.ndarray
    aligned: np.ndarray
    statistics: np.ndarray
    domain: np.ndarray
    group: np.ndarray
    control: np.ndarray | None = None
    dice: np.ndarray | None = None

    def of(self, domains: Sequence[int]) -> WindowSamples:
        """The samples of some domains."""
        kept = np.isin(self.domain, domains)
        values = (getattr(self, field.name) for field in fields(self))
        return WindowSamples(*(None if value is None else value[kept] for value in values))


# hundreds of tiny fits, each far quicker than threads take to start
@threadpool_limits.wrap(limits=1)
def measure(samples: WindowSamples, names: Sequence[str], min_groups: int = 3, seed: int = 0) -> dict[str, Any]:
    """
    All figures of the alignment report, as plain values.

    Args:
        samples: of all domains; domains with too few groups are left out.
        names: of the domains by index, the primary first.
        min_groups: a domain with fewer patients or fields is left out.
        seed: of folds, bootstrap and permutations.

    Returns:
        ``verdict`` (outcome, sentence), ``left_out`` (reason by domain) and, if the primary and another domain are
        left, ``chance``, ``overall`` (probes of all domains: frozen, aligned and image statistics) and ``pairs`` (by
        auxiliary domain: chance, and for frozen and aligned features accuracy, proxy A-distance and MMD); and
        ``primary_dice`` where the network's Dice is known.
    """
    groups = [len(np.unique(samples.group[samples.domain == d])) for d in range(len(names))]
    measured = [d for d, count in enumerate(groups) if count >= min_groups]
    left_out = {
        name: f"{groups[d]} patients or fields with nuclei, of {min_groups} needed"
        for d, name in enumerate(names)
        if d not in measured
    }
    reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
    if 0 not in measured or len(measured) < 2:
        verdict = undetermined(reasons)
        return {"verdict": {"outcome": verdict.outcome, "sentence": verdict.sentence}, "left_out": left_out}

    everything = samples.of(measured)
    accuracies, overall = _probes(everything, seed)
    pairs = {names[d]: _pair(samples.of([0, d]), seed) for d in measured[1:]}
    for kind in ("frozen", "aligned"):
        overall[kind]["a_distance"] = float(np.mean([pair[kind]["a_distance"] for pair in pairs.values()]))
    chance = 1 / len(measured)
    dice = None if samples.dice is None else float(samples.dice[samples.domain == 0].mean())
    verdict = judge(accuracies["frozen"], accuracies["aligned"], chance, accuracies.get("control"), dice)
    sentence = verdict.sentence + (f" Left out: {reasons}." if reasons else "")
    return {
        "verdict": {"outcome": verdict.outcome, "sentence": sentence},
        "left_out": left_out,
        "chance": chance,
        "overall": overall,
        "pairs": pairs,
        **({} if dice is None else {"primary_dice": dice}),
    }


def _probes(samples: WindowSamples, seed: int) -> tuple[dict[str, Accuracy], dict[str, Any]]:
    """Accuracies by kind of feature, and the same as plain values with those of regions and image statistics."""
    accuracies, plain = {}, {}
    for kind in ("frozen", "aligned"):
        right, by_region = probe(getattr(samples, kind), samples.domain, samples.group, seed)
        accuracies[kind] = _accuracy(right, samples, seed)
        plain[kind] = _plain(accuracies[kind])
        for region, name in enumerate(REGIONS):
            plain[kind][name] = _plain(_accuracy(by_region[:, region], samples, seed))
    if samples.control is not None:
        right, _ = probe(samples.control, samples.domain, samples.group, seed)
        accuracies["control"] = _accuracy(right, samples, seed)
        plain["control"] = _plain(accuracies["control"])
    for name, columns in SHORTCUTS.items():
        right, _ = probe(samples.statistics[:, None, columns], samples.domain, samples.group, seed)
        plain.setdefault("image_statistics", {})[name] = _plain(_accuracy(right, samples, seed))
    return accuracies, plain


def _pair(samples: WindowSamples, seed: int) -> dict[str, Any]:
    _, plain = _probes(samples, seed)
    for kind in ("frozen", "aligned"):
        found = group_discrepancy(getattr(samples, kind), samples.domain > 0, samples.group, seed)
        plain[kind]["a_distance"] = a_distance(plain[kind]["accuracy"])
        plain[kind]["mmd2"] = found.mmd2
        plain[kind]["mmd_p"] = found.p
        plain[kind]["mmd_smallest_p"] = found.smallest_p
    return {"chance": 0.5, **plain}


def _accuracy(right: np.ndarray, samples: WindowSamples, seed: int) -> Accuracy:
    return balanced_accuracy(right, samples.domain, samples.group, seed)


def _plain(accuracy: Accuracy) -> dict[str, float]:
    return {"accuracy": accuracy.mean, "low": accuracy.low, "high": accuracy.high}


def describe(samples: WindowSamples, index: int) -> dict[str, Any]:
    """Counts and mean image statistics of a domain; without windows only the counts."""
    part = samples.of([index])
    counts = {"windows": len(part.domain), "groups": len(np.unique(part.group))}
    means = part.statistics.mean(axis=0) if len(part.domain) else ()
    return {**counts, **{name: float(value) for name, value in zip(IMAGE_STATISTICS, means)}}
