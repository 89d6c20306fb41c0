"""How good recipes are on domains that no training saw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd
from scripts.experiments.results import Result, Results
from scripts.markdown import markdown_table
from scripts.nuclei.metric_table import metric_of

__all__ = ["MEAN", "left_out_markdown", "summarise_left_out"]

MEAN = "mean over all"  # stands in the column of domains for the mean over them
_FIGURES = ["dice", "aji", "pq", "touching_merged", "palest_missed"]


def summarise_left_out(results: Results) -> list[dict]:
    """
    How good each variant is on domains that it was not trained on; empty where no domain was left out.

    One row for each number of groups, domain left out, variant and figure: ``mean`` and sample standard deviation
    ``std_seeds`` over seeds, absent where there is one. Dice, AJI and PQ of a run are means over images, the two others
    shares of all nuclei of the domain (those that touch another; the fifth with the least contrast). The domain
    :data:`MEAN` is the mean over all of them (that have such nuclei), of those seeds that have all.
    """
    runs = [result for result in results.results if result.left_out is not None]
    if not runs:
        return []
    run = ["limit_groups", "variant", "seed"]
    named = [dict(zip([*run, "left_out"], (r.groups, r.variant, r.seed, r.left_out))) for r in runs]
    table = pd.DataFrame([name | _figures(result) for name, result in zip(named, runs)])
    whole = table.groupby(run).filter(lambda seed: len(seed) == table["left_out"].nunique())
    means = whole.groupby(run)[_FIGURES].mean().reset_index().assign(left_out=MEAN)
    long = pd.concat([table, means]).melt([*run, "left_out"], _FIGURES, "metric").dropna(subset="value")
    order = {
        "limit_groups": results.groups,
        "left_out": [*results.images, MEAN],
        "variant": results.variants,
        "metric": _FIGURES,
    }
    for column, names in order.items():
        long[column] = pd.Categorical(long[column], names)
    summary = long.groupby(list(order), observed=True)["value"].agg(mean="mean", std_seeds="std", seeds="count")
    rows = summary.reset_index().to_dict("records")
    return [{key: value for key, value in row.items() if not pd.isna(value)} for row in rows]


def left_out_markdown(rows: Sequence[Mapping]) -> str:
    """The table of :func:`summarise_left_out`."""
    lines: dict[tuple, dict[str, str]] = {}
    for row in rows:
        metric = metric_of(row["metric"])
        line = lines.setdefault((row["left_out"], row["variant"], row["limit_groups"]), {"seeds": str(row["seeds"])})
        line[row["metric"]] = metric.spread_text(row["mean"], row.get("std_seeds"))
    return markdown_table(
        ["left out", "variant", "training groups", "seeds", *(metric_of(name).arrow for name in _FIGURES)],
        [[*about, *(line.get(key, "-") for key in ["seeds", *_FIGURES])] for about, line in lines.items()],
    )


def _figures(result: Result) -> dict[str, float]:
    """Of one run, on the domain left out; NaN where there are no such nuclei."""
    found = {name: sum(float(row[name]) for row in result.rows) / len(result.rows) for name in ("dice", "aji", "pq")}
    touching, palest = result.fates["touching"], result.fates["by_contrast"][0]
    return {
        **found,
        "touching_merged": touching["merged"] if touching["nuclei"] else math.nan,
        "palest_missed": palest["missed"] + palest["mostly missed"] if palest["nuclei"] else math.nan,
    }
