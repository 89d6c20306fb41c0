from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ignite.engine import Engine, Events
from mlflow import MlflowClient
from mlflow.entities import DatasetInput, LifecycleStage, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from monai.utils import flatten_dict
from scripts.ending import when_interrupted
from scripts.files import read_json, write_json
from scripts.tracking.logged_model import LoggedModel
from scripts.tracking.metric_names import grouped_name
from scripts.tracking.store import absolute_uri, how_to_look, is_server, open_experiment, open_store, reason, stand_in
from scripts.training.history import read_history

if TYPE_CHECKING:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

__all__ = ["TrackedRun"]

logger = logging.getLogger(__name__)


class TrackedRun:
    """
    Files a whole run in MLflow: parameters at the start, metrics after each epoch, artefacts at the end, when one line
    tells how to look at it. Metrics have the names of :func:`grouped_name` there.

    Tracking never costs a run that has begun. A server that is away at the start, or goes away, is told in one line,
    and everything, also what was filed before, goes to the local store instead. (MONAI's ``MLFlowHandler`` waits for
    minutes and then fails, and lets the environment win over its argument.) List it behind all that adds metrics or
    writes artefacts, and behind what loads a checkpoint.

    Args:
        tracking_uri: store, e.g. ``sqlite:///out/mlruns.db`` or an MLflow server.
        experiment_name, run_name: where the run is filed.
        params: settings that tell runs apart.
        tags: short facts to filter by.
        artifacts: names or patterns of files in ``folder`` to keep with the run; those not written are left out.
        data: data sets that the run is made of, see ``data_inputs.data_inputs``.
        model: is logged when the run completes, behind the artefacts.
        run_id: file everything in this existing run instead of one of its own. Whoever made it closes it, and its own
            tags and parameters stay as they are: so an experiment's child run holds its training and its evaluation.
        local_uri: the store that takes the place of a server that is away; None leaves the run untracked then.
        folder: what the run writes is there, also the next two.
        history: table of all epochs (see ``history.History``), from which a run that is resumed gets what its store
            lacks of the epochs before.
        run_file: remembers in which run the files beside it are recorded.
        resume: go on in the run of ``run_file`` if its parameters are the same; else a new run takes its place.
        system_metrics: seconds between two looks at the machine's processors, memory, disk and network, which become
            metrics ``system/...``; 0 does not look.

    Raises:
        DataError: at the start, when a local store cannot be opened.
    """

    def __init__(
        self,
        tracking_uri: str,
        experiment_name: str,
        run_name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, Any] | None = None,
        artifacts: Sequence[str | os.PathLike] = (),
        data: Sequence[DatasetInput] = (),
        model: LoggedModel | None = None,
        run_id: str | None = None,
        local_uri: str | None = None,
        folder: str | os.PathLike = "",
        history: str | os.PathLike | None = None,
        run_file: str | os.PathLike | None = None,
        resume: bool = False,
        system_metrics: float = 0,
    ) -> None:
        self.system_metrics = system_metrics
        self._monitor: SystemMetricsMonitor | None = None
        self.uri, self.local_uri = absolute_uri(tracking_uri), local_uri
        self.experiment_name, self.run_name, self.run_id = experiment_name, run_name, run_id
        self.params, self.tags = {key: str(value) for key, value in params.items()}, dict(tags or {})
        self.folder, self.artifacts = Path(folder), [str(file) for file in artifacts]
        self.data, self.model = list(data), model
        self.history = None if history is None else self.folder / history
        self.run_file, self.resume = None if run_file is None else self.folder / run_file, resume
        self._epochs: dict[int, dict[str, float]] = {}
        self._filed: dict[int, set[str]] = {}  # names of metrics that the store has, by epoch
        self._client: MlflowClient | None = None
        self._run: str | None = None
        self._begun = self._moved = self._given_up = False

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)
        engine.add_event_handler(Events.COMPLETED, self._completed)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._failed)

    def _started(self, engine: Engine) -> None:
        self.params |= {key: str(getattr(engine.state, key)) for key in ("max_epochs", "epoch_length")}
        self._run, self._epochs, self._filed = None, {}, {}  # an engine that runs again is another run
        if self.resume and self.history is not None:
            rows = {row.pop("epoch"): row for row in read_history(self.history)}
            self._epochs = {epoch: _grouped(row) for epoch, row in rows.items() if epoch <= engine.state.epoch}
        self._file()
        self._begun = True
        when_interrupted(self._interrupted)
        if self.system_metrics and not self._given_up:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            seconds = {"sampling_interval": self.system_metrics, "samples_before_logging": 1}
            self._monitor = SystemMetricsMonitor(
                self._run, **seconds, resume_logging=self.resume, tracking_uri=self.uri
            )
            self._monitor.start()

    def _epoch_completed(self, engine: Engine) -> None:
        self._epochs[engine.state.epoch] = _grouped(engine.state.metrics)
        self._file()

    def _completed(self, engine: Engine) -> None:
        # what other handlers found when the run completed is logged, too
        self._epochs[engine.state.epoch] = self._epochs.get(engine.state.epoch, {}) | _grouped(engine.state.metrics)
        self._file("FINISHED")
        self._begun = False
        if self.run_id is None and not self._given_up:  # whoever made the run tells where it is
            print(how_to_look(self.uri))

    def _interrupted(self) -> None:
        if self._begun:
            self._file("KILLED")

    def _failed(self, engine: Engine, error: BaseException) -> None:
        if self._run is not None:
            self._file("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            self._begun = False
        raise error

    def _file(self, status: str | None = None) -> None:
        """Bring the store up to date, and with a status end the run; a store that cannot be reached is left."""
        if status is not None and self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
        if self._given_up:
            return
        try:
            self._update(status)
        except Exception as error:  # noqa: BLE001 hours of training end here
            if is_server(self.uri) and self.local_uri is not None:
                message = "%s: the MLflow server cannot be reached (%s): this run is filed in %s from now on"
                logger.warning(message, self.uri, reason(error), self.local_uri)
                self.uri, self._moved = self.local_uri, True
                self._client, self._run, self._filed = None, None, {}
                self._file(status)
            elif is_server(self.uri) or self._begun:
                logger.warning("%s: this run is not tracked from now on (%s)", self.uri, reason(error))
                self._given_up = True
            else:
                raise

    def _update(self, status: str | None) -> None:
        if self._client is None:
            self._client = open_store(self.uri)
        if self._run is None:
            self._run = self._open().info.run_id
            if self.run_file is not None and self.run_id is None:
                write_json(self.run_file, {"tracking_uri": self.uri, "run_id": self._run})
        for epoch, metrics in self._epochs.items():
            new = {name: value for name, value in metrics.items() if name not in self._filed.get(epoch, ())}
            if new:
                now = int(time.time() * 1000)
                batch = [Metric(name, float(value), now, epoch) for name, value in new.items()]
                self._client.log_batch(self._run, metrics=batch)
                self._filed.setdefault(epoch, set()).update(new)
        if status == "FINISHED":
            for pattern in self.artifacts:
                for file in sorted(self.folder.glob(pattern)):
                    self._client.log_artifact(self._run, str(file))
            if self.model is not None:
                self.model.log(self._client, self._client.get_run(self._run))
        if status is not None and self.run_id is None:
            self._client.set_terminated(self._run, status=status)

    def _open(self) -> Run:
        """The run to file in, with its parameters and tags."""
        if self.run_id is not None and not self._moved:
            run = self._client.get_run(self.run_id)
        else:
            experiment = open_experiment(self._client, self.experiment_name)
            if self.run_id is not None:
                run = stand_in(self._client, experiment, self.run_id, self.run_name)
            else:
                run = self._resumed(experiment) or self._client.create_run(experiment, run_name=self.run_name)
        params = [Param(key, value) for key, value in self.params.items() if key not in run.data.params]
        tags = [RunTag(key, str(value)) for key, value in self.tags.items() if key not in run.data.tags]
        self._client.log_batch(run.info.run_id, params=params, tags=tags)
        if self.data:
            self._client.log_inputs(run.info.run_id, self.data)
        if self._epochs:  # a run that goes on may have them
            steady = next(iter(self._epochs[min(self._epochs)]))
            steps = {point.step for point in self._client.get_metric_history(run.info.run_id, steady)}
            self._filed = {epoch: set(self._epochs[epoch]) for epoch in steps & self._epochs.keys()}
        return run

    def _resumed(self, experiment: str) -> Run | None:
        """The run to go on in."""
        if not self.resume or self.run_file is None:
            return None
        if self.run_file.is_file():
            about = read_json(self.run_file)
            run = self._existing(about["run_id"]) if about["tracking_uri"] == self.uri else None
        else:  # begun by an earlier version; the name tells a run on a server too little, which others use, too
            unfinished = f"attributes.run_name = '{self.run_name}' AND attributes.status != 'FINISHED'"
            found = [] if is_server(self.uri) else self._client.search_runs([experiment], unfinished, max_results=1)
            run = next(iter(found), None)
        if run is None:
            return None
        if all(run.data.params.get(key, value) == value for key, value in self.params.items()):
            self._client.update_run(run.info.run_id, status="RUNNING")
            return run
        # parameters of a run cannot be changed: what is trained with others, such as more epochs, is another run
        if run.info.status != "FINISHED":
            self._client.set_terminated(run.info.run_id, status="KILLED")
        return None

    def _existing(self, run_id: str) -> Run | None:
        """A run that was filed in this store; it may have been deleted since, or the store been made anew."""
        try:
            run = self._client.get_run(run_id)
        except MlflowException:
            return None
        return run if run.info.lifecycle_stage == LifecycleStage.ACTIVE else None


def _grouped(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {grouped_name(name): value for name, value in flatten_dict(metrics).items()}
