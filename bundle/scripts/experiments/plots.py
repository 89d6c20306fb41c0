from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # not pyplot: no global state, no display needed
from scripts.experiments.results import Results
from scripts.nuclei.metric_table import metric_of

__all__ = ["plot_differences", "plot_low_data", "plot_scores"]


class _Bar(NamedTuple):
    """One row of a panel: a value and its bar, all in the unit of the metric."""

    value: float
    low: float
    high: float
    colour: str
    ticks: Sequence[float] = ()


def plot_scores(results: Results, domain: str, metrics: Sequence[str]) -> Figure:
    """Each variant's mean on a domain, a dot for each seed, and their standard deviation as bars; a row by groups."""
    lines = {}
    for groups in results.groups:
        lines[groups] = line = {}
        for i, variant in enumerate(results.variants):
            for metric in metrics:
                scores = results.scores(variant, groups, domain, metric)
                if scores is None:
                    continue
                by_seed = scores.mean(axis=1)
                mean, spread = by_seed.mean(), _spread(by_seed)
                bar = _Bar(mean, mean - spread, mean + spread, f"C{i}", by_seed.tolist())
                line.setdefault(variant, {})[metric] = bar
    return _bars(lines, metrics, "mean ± SD over seeds, a tick each")


def plot_differences(
    differences: Sequence[Mapping], domain: str, metrics: Sequence[str], confidence: float
) -> Figure | None:
    """Paired differences on a domain with their intervals, a row by groups; None when there is no pair."""
    lines: dict[str, dict[str, dict[str, _Bar]]] = {}
    for row in differences:
        if row["domain"] != domain:
            continue
        low, high = (row["difference"] if end is None else end for end in (row["low"], row["high"]))
        bar = _Bar(row["difference"], low, high, "C0" if low > 0 or high < 0 else "grey")
        line = lines.setdefault(row["limit_groups"], {})
        line.setdefault(f"{row['variant']} − {row['reference']}", {})[row["metric"]] = bar
    below = f"difference, {confidence:.0%} interval over images"
    return _bars(lines, metrics, below, reference=0.0) if lines else None


def plot_low_data(results: Results, domain: str, metrics: Sequence[str]) -> Figure | None:
    """Means against the number of training groups, bars over seeds, of the variants with two numbers; None without."""
    numbers = {
        variant: [g for g in results.groups if results.seeds(variant, g, domain)] for variant in results.variants
    }
    curves = {variant: f"C{i}" for i, variant in enumerate(results.variants) if len(numbers[variant]) > 1}
    if not curves:
        return None
    figure = Figure(figsize=(1.8 + 2.4 * len(metrics), 3.6), layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for metric, axis in zip(metrics, panels):
        for i, (variant, colour) in enumerate(curves.items()):
            found = {groups: results.scores(variant, groups, domain, metric) for groups in results.groups}
            points = [(x, found[g].mean(axis=1)) for x, g in enumerate(results.groups) if found[g] is not None]
            if not points:
                continue
            # a little apart, so that bars do not hide each other
            x = [x + 0.06 * (i - (len(curves) - 1) / 2) for x, _ in points]
            means, spread = [s.mean() for _, s in points], [_spread(s) for _, s in points]
            axis.errorbar(x, means, yerr=spread, fmt="o-", color=colour, capsize=3, label=variant)
        axis.set_xticks(range(len(results.groups)), results.groups)
        axis.set(title=metric_of(metric).arrow, xlabel="training groups of the primary")
    panels[0].set_ylabel("mean ± SD over seeds")
    panels[0].legend(fontsize="small")
    return figure


def _spread(by_seed: np.ndarray) -> float:
    return by_seed.std(ddof=1) if len(by_seed) > 1 else 0.0


def _bars(
    lines: Mapping[str, Mapping[str, Mapping[str, _Bar]]],
    metrics: Sequence[str],
    below: str,
    reference: float | None = None,
) -> Figure:
    """``lines[groups][name][metric]``: a line of panels for each number of groups, in each a row for each name."""
    heights = [1.2 + 0.3 * len(rows) for rows in lines.values()]
    figure = Figure(figsize=(1.8 + 2.4 * len(metrics), 0.8 + sum(heights)), layout="constrained")
    panels = figure.subplots(len(lines), len(metrics), squeeze=False, height_ratios=heights)
    for line, (groups, rows) in zip(panels, lines.items()):
        for metric, axis in zip(metrics, line):
            bars = {y: bars[metric] for y, bars in enumerate(rows.values()) if metric in bars}
            near = _near(list(bars.values()), reference)
            if reference is not None:
                axis.axvline(reference, color="grey", linewidth=0.8)
            for y, bar in bars.items():
                if near is not None and not near[0] <= bar.value <= near[1]:
                    _point_outside(axis, y, bar, right=bar.value > near[1])
                    continue
                axis.plot([bar.low, bar.high], [y, y], color=bar.colour)
                axis.plot(bar.value, y, "o", color=bar.colour)
                axis.plot(bar.ticks, [y] * len(bar.ticks), "|", color="black", markersize=8)
            if near is not None:
                axis.set_xlim(*near)
            axis.set_yticks(range(len(rows)), list(rows) if axis is line[0] else [""] * len(rows))
            axis.set_ylim(len(rows) - 0.5, -0.5)
            axis.locator_params(axis="x", nbins=4)
            axis.grid(axis="x", linewidth=0.3)
        if len(lines) > 1:
            line[0].set_ylabel(f"training groups: {groups}")
    for metric, axis in zip(metrics, panels[0]):
        axis.set_title(metric_of(metric).arrow)
    for axis in panels[-1]:
        axis.set_xlabel(below, fontsize="x-small")
    return figure


def _near(bars: Sequence[_Bar], reference: float | None) -> tuple[float, float] | None:
    """
    The range that shows the many when a few lie far off, which are values further from the quartiles than three times
    their distance (Tukey's far out) and than two usual bars. None where there are no such values.
    """
    if len(bars) < 5:
        return None
    values = np.array([bar.value for bar in bars])
    first, third = np.quantile(values, [0.25, 0.75])
    reach = max(3 * (third - first), 2 * np.median([bar.high - bar.low for bar in bars]))
    shown = [bar for bar in bars if first - reach <= bar.value <= third + reach]
    low, high = _range(shown, reference)
    shown = [bar for bar in bars if low <= bar.value <= high]  # some lie where the bars of others reach
    return None if len(shown) == len(bars) else _range(shown, reference)


def _range(bars: Sequence[_Bar], reference: float | None) -> tuple[float, float]:
    """From the lowest to the highest end of a bar, and a little more."""
    ends = [end for bar in bars for end in (bar.low, bar.high, *bar.ticks)]
    ends += [] if reference is None else [reference]
    margin = 0.05 * (max(ends) - min(ends)) or 1e-3
    return min(ends) - margin, max(ends) + margin


def _point_outside(axis: Axes, y: int, bar: _Bar, right: bool) -> None:
    """An arrow at the border with the value that lies beyond it."""
    value = f"{bar.value:.3g}".replace("-", "−")
    text = f"{value} ▸" if right else f"◂ {value}"
    place = {"x": 0.98, "ha": "right"} if right else {"x": 0.02, "ha": "left"}
    axis.text(y=y, s=text, va="center", color=bar.colour, transform=axis.get_yaxis_transform(), **place)
