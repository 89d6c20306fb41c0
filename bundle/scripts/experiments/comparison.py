from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from scripts.errors import DataError
from scripts.experiments.bootstrap import Bootstrap
from scripts.experiments.left_out import summarise_left_out
from scripts.experiments.plots import plot_differences, plot_low_data, plot_scores
from scripts.experiments.results import Results, read_results
from scripts.experiments.tables import comparison_markdown
from scripts.files import atomic_path, has_columns, write_table
from scripts.owned import OwnFiles
from scripts.tracking.experiments import ExperimentStore
from scripts.tracking.store import how_to_look

__all__ = ["Comparison", "compare_pairs", "summarise_variants"]

# named here, because a table has its columns also where no row has a value
SCORE_COLUMNS = ("domain", "limit_groups", "variant", "metric", "mean", "low", "high", "std_seeds", "seeds", "images")
DIFFERENCE_COLUMNS = ("domain", "limit_groups", "variant", "reference", "metric", "difference", "low", "high")
EARLIER_COLUMNS = (*DIFFERENCE_COLUMNS, "images")  # before 0.6.0
DIFFERENCE_COLUMNS += ("images", "seeds", "std_seeds")
LEFT_OUT_COLUMNS = ("limit_groups", "left_out", "variant", "metric", "mean", "std_seeds", "seeds")
TABLES = ("comparison.md", "scores.csv", "differences.csv", "left_out.csv")
FILES = (*TABLES, "scores.png", "differences.png", "low_data.png")


class Comparison:
    """
    Compares the finished children of an experiment, from its MLflow store alone.

    Writes into ``output_dir/<name>/comparison_<split>/``, and keeps with the parent run in ``comparison/<split>``:

    - ``comparison.md``: the tables, for reading;
    - ``scores.csv``: mean over images, and spread over seeds, of every variant, number of groups, domain and metric;
    - ``differences.csv``: of every pair of variants the mean difference and its interval;
    - ``left_out.csv``, where domains were left out: see :func:`summarise_left_out`;
    - ``scores.png``, ``differences.png``, and ``low_data.png`` when there are several numbers of groups.

    Args:
        store: names the parent run, or None for the latest one.
        split: the evaluated part of the data.
        metrics: columns of ``metrics.csv``.
        domain: the domain of the plots and of the table of differences; None takes the primary, or the first left out.
        output_dir: see above.
        bootstrap: how intervals are made.
        reference: the variant that all others are compared with; None compares each pair.
    """

    def __init__(
        self,
        store: ExperimentStore,
        split: str,
        metrics: Sequence[str],
        domain: str | None,
        output_dir: str | os.PathLike,
        bootstrap: Bootstrap,
        reference: str | None = None,
    ) -> None:
        self.store, self.split, self.domain, self.output_dir = store, split, domain, Path(output_dir)
        self.metrics = [metrics] if isinstance(metrics, str) else list(metrics)
        self.bootstrap, self.reference = bootstrap, reference

    def run(self) -> None:
        """Read, compare, write; DataError as :class:`ExperimentStore`, :func:`read_results` and ``OwnFiles`` tell."""
        parent = self.store.find_parent()
        name = parent.info.run_name
        folder = self.output_dir / name / f"comparison_{self.split}"
        is_ours = any(has_columns(folder / FILES[2], columns) for columns in (DIFFERENCE_COLUMNS, EARLIER_COLUMNS))
        own = OwnFiles(folder, FILES if is_ours else ())
        own.check(FILES)
        results, missing = read_results(self.store, parent, self.split)
        left_out = summarise_left_out(results)
        domain = self.domain or (left_out[0]["left_out"] if left_out else parent.data.tags["primary"])
        if domain not in results.images:
            raise DataError("domain", f"'{domain}' was not evaluated", f"There are {', '.join(results.images)}")
        if self.reference not in (None, *results.variants):
            raise DataError("reference", f"'{self.reference}' did not run", f"There are {', '.join(results.variants)}")
        scores = summarise_variants(results, self.metrics, self.bootstrap)
        differences = compare_pairs(results, self.metrics, self.bootstrap, self.reference)
        known = [metric for metric in self.metrics if any(row["metric"] == metric for row in scores)]
        if not known:
            raise DataError("metrics", f"no run has {', '.join(self.metrics)}", "Choose others, or evaluate again")

        write_table(own.path("scores.csv"), scores, SCORE_COLUMNS)
        write_table(own.path("differences.csv"), differences, DIFFERENCE_COLUMNS)
        if left_out:
            write_table(own.path("left_out.csv"), left_out, LEFT_OUT_COLUMNS)
        figures = {
            "scores.png": plot_scores(results, domain, known),
            "differences.png": plot_differences(differences, domain, known, self.bootstrap.confidence),
            "low_data.png": plot_low_data(results, domain, known),
        }
        figures = {file: figure for file, figure in figures.items() if figure is not None}
        for file, figure in figures.items():
            figure.suptitle(f"{name}: {domain}, {self.split}")
            with atomic_path(own.path(file)) as partial:
                figure.savefig(partial, dpi=120)
        text = comparison_markdown(
            name, self.split, domain, results, scores, differences, left_out, missing, self.bootstrap
        )
        with atomic_path(own.path("comparison.md")) as partial:
            pictures = "".join(f"\n![{Path(file).stem}]({file})\n" for file in figures)
            partial.write_text(text + pictures, encoding="utf-8")
        self.store.log_files(parent, [folder / file for file in (*TABLES, *figures)], f"comparison/{self.split}")
        print(f"{text}\nwritten to {folder}\n{how_to_look(self.store.tracking_uri)}")


def summarise_variants(results: Results, metrics: Sequence[str], bootstrap: Bootstrap) -> list[dict]:
    """
    One row for each domain, number of groups, variant and metric.

    ``mean`` is over images and seeds, ``low`` and ``high`` its interval over images; ``std_seeds`` the
    sample standard deviation, over seeds, of the means over images, absent where there is one seed.
    """
    rows = []
    for domain in results.images:
        for groups in results.groups:
            for variant in results.variants:
                for metric in metrics:
                    scores = results.scores(variant, groups, domain, metric)
                    if scores is None:
                        continue
                    by_seed = scores.mean(axis=1)
                    row = {"domain": domain, "limit_groups": groups, "variant": variant, "metric": metric}
                    low, high = bootstrap.interval(scores.mean(axis=0))
                    row |= {"mean": float(by_seed.mean()), "low": low, "high": high}
                    row |= {"seeds": len(by_seed), "images": scores.shape[1]}
                    if len(by_seed) > 1:
                        row["std_seeds"] = float(by_seed.std(ddof=1))
                    rows.append(row)
    return rows


def compare_pairs(
    results: Results, metrics: Sequence[str], bootstrap: Bootstrap, reference: str | None = None
) -> list[dict]:
    """
    One row for each domain, number of groups, pair of variants and metric: ``difference`` is ``variant`` minus
    ``reference``, the mean over images of the difference of each image's mean over seeds; ``low`` and ``high`` its
    interval; ``seeds`` the smaller number of the two, and ``std_seeds`` the greater spread over them, absent for one
    seed. With ``reference`` only the pairs of that variant.
    """
    if reference is None:
        pairs = list(combinations(results.variants, 2))
    else:
        pairs = [(reference, variant) for variant in results.variants if variant != reference]
    rows = []
    for domain in results.images:
        for groups in results.groups:
            for second, first in pairs:
                for metric in metrics:
                    pair = [results.scores(v, groups, domain, metric) for v in (first, second)]
                    if any(scores is None for scores in pair):
                        continue
                    difference = pair[0].mean(axis=0) - pair[1].mean(axis=0)
                    low, high = bootstrap.interval(difference)
                    row = {"domain": domain, "limit_groups": groups, "variant": first, "reference": second}
                    row |= {"metric": metric, "difference": float(difference.mean())}
                    row |= {"low": low, "high": high, "images": len(difference), "seeds": min(map(len, pair))}
                    if row["seeds"] > 1:
                        row["std_seeds"] = max(float(scores.mean(axis=1).std(ddof=1)) for scores in pair)
                    rows.append(row)
    return rows
