from __future__ import annotations

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
    :data:`MEAN` is the mean over all of them, of those seeds that have all.
    """
    runs = [result for result in results.results if result.left_out is not None]
    if not runs:
        return []
    about = ["limit_groups", "left_out", "variant", "seed"]
    table = pd.DataFrame([dict(zip(about, (r.groups, r.left_out, r.variant, r.seed))) | _figures(r) for r in runs])
    whole = table.groupby(["limit_groups", "variant", "seed"]).filter(
        lambda seed: len(seed) == table["left_out"].nunique()
    )
    if len(whole):
        means = whole.groupby(["limit_groups", "variant", "seed"], sort=False)[_FIGURES].mean().reset_index()
        table = pd.concat([table, means.assign(left_out=MEAN)])
    long = table.melt(about, _FIGURES, "metric").dropna(subset="value")
    long["metric"] = pd.Categorical(long["metric"], _FIGURES)  # in this order
    for column, order in (
        ("limit_groups", results.groups),
        ("left_out", [*sorted({r.left_out for r in runs}), MEAN]),
        ("variant", results.variants),
    ):
        long[column] = pd.Categorical(long[column], order)
    summary = long.groupby([*about[:3], "metric"], observed=True)["value"].agg(["mean", "std", "count"])
    rows = summary.rename(columns={"std": "std_seeds", "count": "seeds"}).reset_index().to_dict("records")
    return [{key: value for key, value in row.items() if not pd.isna(value)} for row in rows]


def left_out_markdown(rows: Sequence[Mapping]) -> str:
    """The table of :func:`summarise_left_out`."""
    lines: dict[tuple, dict[str, str]] = {}
    for row in rows:
        metric = metric_of(row["metric"])
        cell = metric.text(row["mean"]) + (f" ± {metric.text(row['std_seeds'])}" if "std_seeds" in row else "")
        line = lines.setdefault((row["left_out"], row["variant"], row["limit_groups"]), {"seeds": str(row["seeds"])})
        line[row["metric"]] = cell
    return markdown_table(
        ["left out", "variant", "training groups", "seeds", *(metric_of(name).arrow for name in _FIGURES)],
        [[*about, *(line.get(key, "-") for key in ["seeds", *_FIGURES])] for about, line in lines.items()],
    )


def _figures(result: Result) -> dict[str, float | None]:
    """Of one run, on the domain left out; None where there are no such nuclei."""
    found = {name: sum(float(row[name]) for row in result.rows) / len(result.rows) for name in ("dice", "aji", "pq")}
    touching, palest = result.fates["touching"], result.fates["by_contrast"][0]
    return {
        **found,
        "touching_merged": touching["merged"] if touching["nuclei"] else None,
        "palest_missed": palest["missed"] + palest["mostly missed"] if palest["nuclei"] else None,
    }
