from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure  # not pyplot: no global state, no display needed
from scripts.experiments.results import Results
from scripts.experiments.tables import arrow

__all__ = ["plot_differences", "plot_low_data", "plot_scores"]


def plot_scores(results: Results, domain: str, metrics: Sequence[str]) -> Figure:
    """Each variant's mean on a domain, a dot for each seed, and their standard deviation as bars; a row by groups."""
    figure, panels = _panels(results.groups, metrics, rows=len(results.variants))
    for groups, row in zip(results.groups, panels):
        for metric, axis in zip(metrics, row):
            for y, variant in enumerate(results.variants):
                scores = results.scores(variant, groups, domain, metric)
                if scores is None:
                    continue
                by_seed = scores.mean(axis=1)
                spread = by_seed.std(ddof=1) if len(by_seed) > 1 else None
                axis.errorbar(by_seed.mean(), y, xerr=spread, fmt="o", color=f"C{y}", capsize=3)
                axis.plot(by_seed, [y] * len(by_seed), "|", color="black", markersize=8)
        _name_rows(row, results.variants)
    _titles(panels, metrics, results.groups, "mean ± SD over seeds, a tick each")
    return figure


def plot_differences(
    differences: Sequence[Mapping], domain: str, metrics: Sequence[str], confidence: float
) -> Figure | None:
    """Paired differences on a domain with their intervals, a row by groups; None when there is no pair."""
    rows = [row for row in differences if row["domain"] == domain]
    if not rows:
        return None
    all_groups = list(dict.fromkeys(row["limit_groups"] for row in rows))
    pairs = list(dict.fromkeys((row["variant"], row["reference"]) for row in rows))
    figure, panels = _panels(all_groups, metrics, rows=len(pairs))
    for groups, line in zip(all_groups, panels):
        for metric, axis in zip(metrics, line):
            axis.axvline(0, color="grey", linewidth=0.8)
            for row in rows:
                if (row["limit_groups"], row["metric"]) != (groups, metric):
                    continue
                low, high = (row["difference"] if end is None else end for end in (row["low"], row["high"]))
                y = pairs.index((row["variant"], row["reference"]))
                decided = low > 0 or high < 0
                axis.plot([low, high], [y, y], color="C0" if decided else "grey")
                axis.plot(row["difference"], y, "o", color="C0" if decided else "grey")
        _name_rows(line, [f"{variant} − {reference}" for variant, reference in pairs])
    _titles(panels, metrics, all_groups, f"difference, {confidence:.0%} interval over images")
    return figure


def plot_low_data(results: Results, domain: str, metrics: Sequence[str]) -> Figure | None:
    """Each variant's mean against the number of training groups, bars over seeds; None for a single number."""
    if len(results.groups) < 2:
        return None
    figure, (panels,) = _panels(["all"], metrics, rows=8)
    for metric, axis in zip(metrics, panels):
        for i, variant in enumerate(results.variants):
            found = {groups: results.scores(variant, groups, domain, metric) for groups in results.groups}
            points = [(x, found[g].mean(axis=1)) for x, g in enumerate(results.groups) if found[g] is not None]
            if not points:
                continue
            # a little apart, so that bars do not hide each other
            x = [x + 0.06 * (i - (len(results.variants) - 1) / 2) for x, _ in points]
            spread = [by_seed.std(ddof=1) if len(by_seed) > 1 else 0.0 for _, by_seed in points]
            axis.errorbar(
                x, [s.mean() for _, s in points], yerr=spread, fmt="o-", color=f"C{i}", capsize=3, label=variant
            )
        axis.set_xticks(range(len(results.groups)), results.groups)
        axis.set(title=arrow(metric), xlabel="training groups of the primary")
    panels[0].set_ylabel("mean ± SD over seeds")
    panels[0].legend(fontsize="small")
    return figure


def _panels(lines: Sequence[str], metrics: Sequence[str], rows: int):
    """A figure with a line of panels for each of ``lines``, each wide enough for a metric, high enough for ``rows``."""
    size = (1.8 + 2.4 * len(metrics), 0.8 + len(lines) * (1.2 + 0.3 * rows))
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(len(lines), len(metrics), squeeze=False, sharex="col" if len(lines) > 1 else False)


def _name_rows(line: Sequence, names: Sequence[str]) -> None:
    for i, axis in enumerate(line):
        axis.set_yticks(range(len(names)), names if i == 0 else [""] * len(names))
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.locator_params(axis="x", nbins=4)
        axis.grid(axis="x", linewidth=0.3)


def _titles(panels: Sequence[Sequence], metrics: Sequence[str], groups: Sequence[str], below: str) -> None:
    for metric, axis in zip(metrics, panels[0]):
        axis.set_title(arrow(metric))
    for line, number in zip(panels, groups):
        if len(groups) > 1:
            line[0].set_ylabel(f"training groups: {number}")
    for axis in panels[-1]:
        axis.set_xlabel(below, fontsize="x-small")
