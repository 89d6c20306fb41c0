from __future__ import annotations

import csv
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.entities import Run
from mlflow.environment_variables import MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR
from scripts.errors import DataError
from scripts.experiments.plan import ALL_GROUPS, LEFT_OUT
from scripts.files import read_json
from scripts.nuclei.metric_table import METRICS
from scripts.tracking.experiments import ExperimentStore

__all__ = ["RESULT", "Result", "Results", "read_results"]

RESULT = "metrics.csv"  # one row per image, kept with each child run
FATES = "fates.json"  # what became of the nuclei of each domain


@dataclass(frozen=True)
class Result:
    """
    What one child run measured.

    Args:
        name: of the run.
        variant, seed: what it is.
        groups: number of training groups, or "all".
        rows: one per image, as strings by column: ``file``, ``domain`` and the metrics.
        left_out: domain that it was not trained on and evaluated on, if one was left out.
        fates: the shares of that domain's nuclei, as ``FateReport`` tells them.
    """

    name: str
    variant: str
    groups: str
    seed: str
    rows: list[dict[str, str]]
    left_out: str | None = None
    fates: Mapping[str, Any] = field(default_factory=dict)

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
    The results of an experiment, all on the same images; or where each leaves out a domain, all on the same of that.

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
        first: dict[str | None, Result] = {}
        for result in results:
            self._check_paired(first.setdefault(result.left_out, result), result)
        self.images = {domain: sorted(names) for result in first.values() for domain, names in result.images.items()}

    def seeds(self, variant: str, groups: str, domain: str) -> list[str]:
        """Seeds of a variant's runs that were evaluated on a domain."""
        return [result.seed for result in self._on(domain) if (result.variant, result.groups) == (variant, groups)]

    def scores(self, variant: str, groups: str, domain: str, metric: str) -> np.ndarray | None:
        """
        A metric of each run and image, (seeds, images), of the images whose metric every run on that domain knows.

        So all variants have the same images. Some have no micrometres, or no nuclei to take a share of. None where
        there is no such image, or no such run.

        Raises:
            DataError: for a metric that is neither in the runs nor known otherwise.
        """
        runs = self._on(domain)
        tables = [dict(zip(run.images[domain], (row for row in run.rows if row["domain"] == domain))) for run in runs]
        if metric not in METRICS and not any(metric in row for run in runs for row in run.rows):
            there = ", ".join(key for key in runs[0].rows[0] if key not in ("file", "domain", "mpp"))
            raise DataError("metrics", f"{runs[0].name} has no '{metric}'", f"Its metrics are {there}")
        known = [name for name in self.images[domain] if all(table[name].get(metric) for table in tables)]
        chosen = [table for run, table in zip(runs, tables) if (run.variant, run.groups) == (variant, groups)]
        return (
            np.array([[float(table[name][metric]) for name in known] for table in chosen]) if known and chosen else None
        )

    def _on(self, domain: str) -> list[Result]:
        return [result for result in self.results if domain in result.images]

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
        store: of the experiment.
        parent: its run.
        split: only children evaluated on this one are read.

    Returns:
        the results, in the order in which they were started, and of each child without any its name and why.

    Raises:
        DataError: when no run is finished, or their images differ.
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
            parent.info.run_name, f"no run is finished on {split} ({why})", "Run 'experimenting', or choose --split"
        )
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.set(False)  # one for each small file
    runs = sorted(finished.values(), key=lambda run: run.info.start_time)
    return Results([_download(store, run) for run in runs]), left_out


def _download(store: ExperimentStore, run: Run) -> Result:
    tags = run.data.tags
    left_out = tags.get(LEFT_OUT)
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = store.client.download_artifacts(run.info.run_id, RESULT, folder)
            with open(path, newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            fates = {}
            if left_out is not None:
                fates = read_json(store.client.download_artifacts(run.info.run_id, FATES, folder))[left_out]
        except OSError as error:  # MLflow's own errors of missing artefacts are of this kind, too
            hint = "Evaluate it again"
            raise DataError(run.info.run_name, f"what it measured cannot be read ({error})", hint) from error
    return Result(run.info.run_name, tags["variant"], tags["limit_groups"], tags["seed"], rows, left_out, fates)
