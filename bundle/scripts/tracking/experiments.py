from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from scripts.errors import DataError
from scripts.tracking.store import absolute_uri, is_server, open_experiment, open_store, reason, sqlite_file, stand_in

__all__ = ["ExperimentStore"]

logger = logging.getLogger(__name__)

_PARENT_TAG = "mlflow.parentRunId"  # by it MLflow's own table shows children below their parent
_VERB = "experimenting"

Answer = TypeVar("Answer")


class ExperimentStore:
    """
    One experiment in an MLflow store: a parent run, found by its name, and its child runs.

    What is recorded goes to the local store as soon as a server cannot be reached, below a parent of the same name,
    and one line says so. Several threads may record at once.

    Args:
        tracking_uri: store, e.g. ``sqlite:///out/mlruns.db`` or an MLflow server; later the local one, perhaps.
        experiment_name: MLflow's experiment, the folder of runs.
        name: name of the parent run; None reads the latest one.
        local_uri: the store that takes the place of a server that is away; without it that is an error.
    """

    def __init__(self, tracking_uri: str, experiment_name: str, name: str | None, local_uri: str | None = None) -> None:
        self.tracking_uri, self.experiment_name, self.name = absolute_uri(tracking_uri), experiment_name, name
        self.local_uri = local_uri
        self._client: MlflowClient | None = None
        self._parent: Run | None = None
        self._parent_tags: dict[str, str] = {}
        self._moved = False
        self._lock = threading.RLock()

    @property
    def client(self) -> MlflowClient:
        """MLflow's client of the store."""
        with self._lock:
            if self._client is None:
                self._client = open_store(self.tracking_uri)
            return self._client

    def find_parent(self) -> Run:
        """
        The parent run.

        Raises:
            DataError: when there is no such store, experiment or parent, naming those there are.
        """
        path = sqlite_file(self.tracking_uri)
        if path is not None and not path.is_file():
            raise DataError(path, "there is no such MLflow store", "Give the --tracking_uri of the experiment")
        try:
            experiment = self.client.get_experiment_by_name(self.experiment_name)
        except MlflowException as error:
            where = "" if self.local_uri is None else f"; what was recorded while it was away is in {self.local_uri}"
            hint = f"Start it, or give another --tracking_uri{where}"
            raise DataError(self.tracking_uri, f"the server cannot be reached ({reason(error)})", hint) from error
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
        self._parent_tags = {**tags, "verb": _VERB}
        return self._reach(self._open_parent)

    def children(self, parent: Run) -> list[Run]:
        """Its child runs, the latest first."""

        def find() -> list[Run]:
            info = self._here(parent).info
            return self._search(info.experiment_id, f"tags.`{_PARENT_TAG}` = '{info.run_id}'")

        return self._reach(find)

    def open_child(self, parent: Run, name: str, tags: Mapping[str, str]) -> Run:
        """A new child run."""

        def make() -> Run:
            info = self._here(parent).info
            child = {**tags, _PARENT_TAG: info.run_id, "verb": _VERB}
            return self.client.create_run(info.experiment_id, run_name=name, tags=child)

        return self._reach(make)

    def reopen(self, run: Run) -> Run:
        """Go on in an unfinished run."""

        def update() -> Run:
            here = self._here(run)
            self.client.update_run(here.info.run_id, status="RUNNING")
            if "failure" in here.data.tags:
                self.client.delete_tag(here.info.run_id, "failure")
            return here

        return self._reach(update)

    def close(self, run: Run, status: str, failure: str | None = None) -> None:
        """End a run as FINISHED, FAILED (with the reason as a tag) or KILLED."""

        def end() -> None:
            run_id = self._here(run).info.run_id
            if failure is not None:
                self.client.set_tag(run_id, "failure", failure)
            self.client.set_terminated(run_id, status=status)

        self._reach(end)

    def place(self, run: Run) -> dict[str, str | None]:
        """Where a process of its own has to file a child run: settings of its verb."""

        def find() -> dict[str, str | None]:
            run_id = self._here(run).info.run_id
            return {
                "tracking_uri": self.tracking_uri,
                "local_tracking_uri": self.local_uri or self.tracking_uri,
                "mlflow_run_id": run_id,
            }

        return self._reach(find)

    def metrics(self, run: Run) -> dict[str, float]:
        """The latest value of each metric of a run."""
        return self._reach(lambda: self.client.get_run(self._here(run).info.run_id).data.metrics)

    def holds(self, run: Run, file: str) -> bool:
        """Whether a file was kept with a run."""

        def look() -> bool:
            return file in (kept.path for kept in self.client.list_artifacts(self._here(run).info.run_id))

        return self._reach(look)

    def log_files(self, run: Run, files: Sequence[str | os.PathLike], folder: str | None = None) -> None:
        """Keep files with a run; those that do not exist are left out."""

        def log() -> None:
            run_id = self._here(run).info.run_id
            for file in files:
                if os.path.isfile(file):
                    self.client.log_artifact(run_id, str(file), folder)

        self._reach(log)

    def _reach(self, action: Callable[[], Answer]) -> Answer:
        """What an action gives; when the server cannot be reached, the same action in the local store."""
        with self._lock:
            try:
                return action()
            except Exception as error:
                recording = bool(self._parent_tags)
                if not recording or self._moved or self.local_uri is None or not is_server(self.tracking_uri):
                    raise
                message = "%s: the MLflow server cannot be reached (%s): the experiment is recorded in %s from now on"
                logger.warning(message, self.tracking_uri, reason(error), self.local_uri)
                self.tracking_uri, self._client, self._moved = self.local_uri, None, True
                if self._parent is not None:
                    self._open_parent()
                return action()

    def _open_parent(self) -> Run:
        identifier = open_experiment(self.client, self.experiment_name)
        for parent in self._parents(identifier):
            if parent.info.run_name == self.name:
                self.client.update_run(parent.info.run_id, status="RUNNING")
                break
        else:
            parent = self.client.create_run(identifier, run_name=self.name, tags=self._parent_tags)
        self._parent = parent
        return parent

    def _here(self, run: Run) -> Run:
        """The run itself, or what stands for it in the local store if it was begun on a server that is away."""
        if not self._moved:
            return run
        if _PARENT_TAG not in run.data.tags:
            return self._parent
        parent = self._parent.info.run_id
        if run.data.tags[_PARENT_TAG] == parent:
            return run
        here = stand_in(self.client, self._parent.info.experiment_id, run.info.run_id, run.info.run_name)
        for key, value in {**run.data.tags, _PARENT_TAG: parent}.items():
            if key not in here.data.tags:
                self.client.set_tag(here.info.run_id, key, value)
        return here

    def _parents(self, experiment_id: str) -> list[Run]:
        runs = self._search(experiment_id, f"tags.verb = '{_VERB}'")
        return [run for run in runs if _PARENT_TAG not in run.data.tags]

    def _search(self, experiment_id: str, condition: str) -> list[Run]:
        """All pages of them; ``mlflow.search_runs`` does that for the one store of the whole process alone."""
        runs: list[Run] = []
        token = None
        while True:
            page = self.client.search_runs([experiment_id], condition, page_token=token)
            runs += page
            token = page.token
            if not token:
                return runs
