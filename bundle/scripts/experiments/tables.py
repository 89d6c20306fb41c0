from __future__ import annotations

from collections.abc import Mapping, Sequence

from scripts.experiments.bootstrap import Bootstrap
from scripts.experiments.left_out import left_out_markdown
from scripts.experiments.results import Results
from scripts.markdown import markdown_table
from scripts.nuclei.metric_table import metric_of

__all__ = ["comparison_markdown"]

# fewer give differences no star, whatever their interval: it is too narrow with so few
STAR_IMAGES, STAR_SEEDS = 10, 3


def comparison_markdown(
    name: str,
    split: str,
    domain: str,
    results: Results,
    scores: Sequence[Mapping],
    differences: Sequence[Mapping],
    left_out: Sequence[Mapping],
    missing: Mapping[str, str],
    bootstrap: Bootstrap,
) -> str:
    """
    The comparison for reading: scores of all domains, differences on one, and what could not be compared.

    Args:
        scores, differences: rows of ``summarise_variants`` and ``compare_pairs``.
        left_out: rows of ``summarise_left_out``.
        missing: children without a result and why.
        bootstrap: how their intervals were made.
    """
    metrics = list(dict.fromkeys(row["metric"] for row in scores))
    parts = [f"# {name}: {len(results.results)} runs on {split}"]
    if left_out:
        parts.append("## Domains left out")
        parts.append(
            "Each trained without that domain and evaluated on it; mean ± standard deviation over seeds. "
            "touching_merged: share of its nuclei that touch another; palest_missed: share of the fifth of its nuclei "
            "with the least contrast, missed or mostly missed."
        )
        parts.append(left_out_markdown(left_out))
    parts.append(
        "Mean over images and seeds ± standard deviation over seeds (of the means over images) "
        f"[{bootstrap.confidence:.0%} interval over images]."
    )
    for shown in sorted(results.images, key=lambda other: other != domain):
        parts.append(f"## {shown}, {len(results.images[shown])} images")
        parts.append(_scores_table(results, shown, [row for row in scores if row["domain"] == shown], metrics))
    parts.append(f"## Differences on {domain}")
    parts.append(
        f"First variant minus second, with {bootstrap.confidence:.0%} intervals: percentile bootstrap "
        f"({bootstrap.resamples} resamples) over images, of the paired difference of each image's mean over seeds. "
        f"* marks intervals without 0, of at least {STAR_IMAGES} images and {STAR_SEEDS} seeds, where the difference "
        "exceeds the spread over seeds of either variant. They tell how much the choice of images matters. "
        "Of many pairs some exclude 0 by chance."
    )
    parts.append(_differences_table(results, [row for row in differences if row["domain"] == domain], metrics))
    if missing:
        parts.append("## Not compared")
        parts.append("\n".join(f"- {child}: {' '.join(why.split())}" for child, why in missing.items()))
    return "\n\n".join(parts) + "\n"


def _scores_table(results: Results, shown: str, rows: Sequence[Mapping], metrics: Sequence[str]) -> str:
    lines = []
    for groups in results.groups:
        for variant in results.variants:
            cells = {
                row["metric"]: metric_of(row["metric"]).spread_text(row["mean"], row.get("std_seeds")) + _interval(row)
                for row in rows
                if (row["limit_groups"], row["variant"]) == (groups, variant)
            }
            if cells:
                seeds = ", ".join(sorted(results.seeds(variant, groups, shown)))
                lines.append([variant, groups, seeds, *(cells.get(metric, "-") for metric in metrics)])
    return markdown_table(["variant", "training groups", "seeds", *(metric_of(name).arrow for name in metrics)], lines)


def _differences_table(results: Results, rows: Sequence[Mapping], metrics: Sequence[str]) -> str:
    if not rows:
        return "There is only one variant."
    lines: dict[tuple, dict] = {}
    for row in rows:
        cells = lines.setdefault((row["variant"], row["reference"], row["limit_groups"]), {})
        metric = row["metric"]
        cells[metric] = metric_of(metric).text(row["difference"], "+") + _interval(row, "+")
        if _is_starred(row):
            cells[metric] += "*"
    return markdown_table(
        ["pair", "training groups", *(metric_of(name).arrow for name in metrics)],
        [[f"{a} − {b}", groups, *(cells.get(m, "-") for m in metrics)] for (a, b, groups), cells in lines.items()],
    )


def _is_starred(row: Mapping) -> bool:
    """Whether a difference deserves a mark: few images or seeds give none."""
    if row["low"] is None or row["images"] < STAR_IMAGES or row["seeds"] < STAR_SEEDS:
        return False
    return (row["low"] > 0 or row["high"] < 0) and abs(row["difference"]) > row["std_seeds"]


def _interval(row: Mapping, sign: str = "") -> str:
    if row["low"] is None:
        return ""
    return f" [{', '.join(metric_of(row['metric']).text(row[end], sign) for end in ('low', 'high'))}]"
