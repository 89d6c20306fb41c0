from __future__ import annotations

import csv
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mlflow.entities import Run
from mlflow.environment_variables import MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR
from scripts.errors import DataError
from scripts.experiments.plan import ALL_GROUPS
from scripts.tracking.experiments import ExperimentStore

__all__ = ["RESULT", "Result", "Results", "read_results"]

RESULT = "metrics.csv"  # one row per image, kept with each child run


@dataclass(frozen=True)
class Result:
    """
    What one child run measured.

    Args:
        name: of the run.
        variant, seed: what it is.
        groups: number of training groups, or "all".
        rows: one per image, as strings by column: ``file``, ``domain`` and the metrics.
    """

    name: str
    variant: str
    groups: str
    seed: str
    rows: list[dict[str, str]]

    @property
    def images(self) -> dict[str, list[str]]:
        """Names of its images by domain: file names, or whole paths where a domain has a file name twice."""
        files = defaultdict(list)
        for row in self.rows:
            files[row["domain"]].append(row["file"])
        names = {domain: [Path(path).name for path in paths] for domain, paths in files.items()}
        return {
            domain: names[domain] if len(set(names[domain])) == len(files[domain]) else files[domain]
            for domain in files
        }


class Results:
    """
    The results of an experiment, all on the same images.

    Args:
        results: at least one.

    Raises:
        DataError: when two runs were evaluated on different images.
    """

    def __init__(self, results: list[Result]) -> None:
        self.results = results
        self.variants = list(dict.fromkeys(result.variant for result in results))
        found = {result.groups for result in results}
        # fewest first, no limit last
        self.groups = sorted(found, key=lambda groups: (groups == ALL_GROUPS, int(groups) if groups.isdigit() else 0))
        self.images = {domain: sorted(names) for domain, names in results[0].images.items()}
        for result in results[1:]:
            self._check_paired(results[0], result)

    def seeds(self, variant: str, groups: str) -> list[str]:
        """Seeds of a variant's runs."""
        return [result.seed for result in self._of(variant, groups)]

    def scores(self, variant: str, groups: str, domain: str, metric: str) -> np.ndarray | None:
        """
        A metric of each run and image, (seeds, images), images in the order of ``images[domain]``.

        None where there is no such run, or the metric is not known for all images (as micrometres may be).

        Raises:
            DataError: when no image of a run has that metric.
        """
        table = []
        for result in self._of(variant, groups):
            rows = [row for row in result.rows if row["domain"] == domain]
            if metric not in rows[0]:
                there = ", ".join(key for key in rows[0] if key not in ("file", "domain", "mpp"))
                raise DataError("metrics", f"{result.name} has no '{metric}'", f"Its metrics are {there}")
            by_image = dict(zip(result.images[domain], (row[metric] for row in rows)))
            values = [by_image[name] for name in self.images[domain]]
            if not all(values):
                return None
            table.append([float(value) for value in values])
        return np.array(table) if table else None

    def _of(self, variant: str, groups: str) -> list[Result]:
        return [result for result in self.results if (result.variant, result.groups) == (variant, groups)]

    def _check_paired(self, one: Result, other: Result) -> None:
        for a, b in ((one, other), (other, one)):
            for domain, names in a.images.items():
                lacking = sorted(set(names) - set(b.images.get(domain, ())))
                if lacking:
                    more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
                    raise DataError(
                        b.name,
                        f"it lacks images of {domain} that {a.name} was evaluated on: {', '.join(lacking[:3])}{more}",
                        "Only runs on the same images can be compared: evaluate both on the same data",
                    )


def read_results(store: ExperimentStore, parent: Run, split: str) -> tuple[Results, dict[str, str]]:
    """
    The finished children of a parent, from the store alone.

    Args:
        split: only children evaluated on this one are read.

    Returns:
        the results, in the order in which they were started, and of each child without any its name and why.

    Raises:
        DataError: when no child is finished, or their images differ.
    """
    children = [run for run in store.children(parent) if run.data.tags.get("split") == split]
    finished: dict[str, Run] = {}
    for run in children:  # the latest first
        if run.info.status == "FINISHED":
            finished.setdefault(run.info.run_name, run)
    left_out: dict[str, str] = {}
    for run in children:
        if run.info.run_name not in finished:
            left_out.setdefault(run.info.run_name, run.data.tags.get("failure") or run.info.status.lower())
    if not finished:
        why = "; ".join(f"{name}: {reason}" for name, reason in left_out.items()) or "none was started"
        raise DataError(
            parent.info.run_name, f"no child is finished on {split} ({why})", "Run 'experimenting', or choose --split"
        )
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.set(False)  # one for each small file
    runs = sorted(finished.values(), key=lambda run: run.info.start_time)
    return Results([_download(store, run) for run in runs]), left_out


def _download(store: ExperimentStore, run: Run) -> Result:
    tags = run.data.tags
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = store.client.download_artifacts(run.info.run_id, RESULT, folder)
            with open(path, newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        except OSError as error:  # MLflow's own errors of missing artefacts are of this kind, too
            raise DataError(run.info.run_name, f"its {RESULT} cannot be read ({error})", "Evaluate it again") from error
    return Result(run.info.run_name, tags["variant"], tags["limit_groups"], tags["seed"], rows)
