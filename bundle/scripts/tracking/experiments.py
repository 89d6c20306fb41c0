from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from mlflow.entities import Run
from scripts.errors import DataError
from scripts.tracking.runs import TrackedRun

__all__ = ["ExperimentStore"]

_PARENT_TAG = "mlflow.parentRunId"  # by it MLflow's own table shows children below their parent
_VERB = "experimenting"


class ExperimentStore:
    """
    One experiment in an MLflow store: a parent run, found by its name, and its child runs.

    Args:
        tracking_uri: store, e.g. ``sqlite:///out/mlruns.db`` or an MLflow server.
        experiment_name: MLflow's experiment, the folder of runs.
        name: name of the parent run; None reads the latest one.
    """

    def __init__(self, tracking_uri: str, experiment_name: str, name: str | None) -> None:
        self.tracking_uri, self.experiment_name, self.name = tracking_uri, experiment_name, name
        self._handler: TrackedRun | None = None

    @property
    def client(self):
        """MLflow's client of the store."""
        return self._open().client

    def find_parent(self) -> Run:
        """
        The parent run.

        Raises:
            DataError: when there is no such store, experiment or parent, naming those there are.
        """
        path = self.tracking_uri.removeprefix("sqlite:///")
        if path != self.tracking_uri and not os.path.isfile(path):
            raise DataError(path, "there is no such MLflow store", "Give the --tracking_uri of the experiment")
        experiment = self.client.get_experiment_by_name(self.experiment_name)
        if experiment is None:
            there = ", ".join(e.name for e in self.client.search_experiments())
            raise DataError(
                self.tracking_uri, f"there is no experiment '{self.experiment_name}'", f"There are: {there or 'none'}"
            )
        parents = self._parents(experiment.experiment_id)
        for parent in parents:
            if self.name in (None, parent.info.run_name):
                return parent
        there = ", ".join(parent.info.run_name for parent in parents)
        wanted = "any run of 'experimenting'" if self.name is None else f"an experiment run named '{self.name}'"
        raise DataError(
            self.experiment_name, f"it does not hold {wanted}", f"Give its --name. There are: {there or 'none'}"
        )

    def open_parent(self, tags: Mapping[str, str]) -> Run:
        """The parent run, made if it is not there yet, and running from now on."""
        handler = self._open()
        handler._set_experiment()
        identifier = handler.experiment.experiment_id
        for parent in self._parents(identifier):
            if parent.info.run_name == self.name:
                self.client.update_run(parent.info.run_id, status="RUNNING")
                return parent
        return self.client.create_run(identifier, run_name=self.name, tags={**tags, "verb": _VERB})

    def children(self, parent: Run) -> list[Run]:
        """Its child runs, the latest first."""
        return self._search(parent.info.experiment_id, f"tags.`{_PARENT_TAG}` = '{parent.info.run_id}'")

    def open_child(self, parent: Run, name: str, tags: Mapping[str, str]) -> Run:
        """A new child run."""
        tags = {**tags, _PARENT_TAG: parent.info.run_id, "verb": _VERB}
        return self.client.create_run(parent.info.experiment_id, run_name=name, tags=tags)

    def reopen(self, run: Run) -> None:
        """Go on in an unfinished run."""
        self.client.update_run(run.info.run_id, status="RUNNING")
        if "failure" in run.data.tags:
            self.client.delete_tag(run.info.run_id, "failure")

    def close(self, run: Run, status: str, failure: str | None = None) -> None:
        """End a run as FINISHED, FAILED (with the reason as a tag) or KILLED."""
        if failure is not None:
            self.client.set_tag(run.info.run_id, "failure", failure)
        self.client.set_terminated(run.info.run_id, status=status)

    def log_files(self, run: Run, files: Sequence[str | os.PathLike], folder: str | None = None) -> None:
        """Keep files with a run; those that do not exist are left out."""
        for file in files:
            if os.path.isfile(file):
                self.client.log_artifact(run.info.run_id, str(file), folder)

    def _open(self) -> TrackedRun:
        # where runs and their artefacts are filed is the handler's business, for these runs as for all others
        if self._handler is None:
            self._handler = TrackedRun(self.tracking_uri, self.experiment_name, self.name or "", params={})
        return self._handler

    def _parents(self, experiment_id: str) -> list[Run]:
        runs = self._search(experiment_id, f"tags.verb = '{_VERB}'")
        return [run for run in runs if _PARENT_TAG not in run.data.tags]

    def _search(self, experiment_id: str, condition: str) -> list[Run]:
        runs: list[Run] = []
        token = None
        while True:
            page = self.client.search_runs([experiment_id], condition, page_token=token)
            runs += page
            token = page.token
            if not token:
                return runs
