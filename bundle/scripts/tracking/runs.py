from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from monai.handlers import MLFlowHandler

__all__ = ["TrackedRun", "name_run"]


def name_run(output_dir: str | os.PathLike, base: str, resume: bool = False) -> str:
    """
    A run's name, which is also its folder in ``output_dir``: ``base``, or ``base_2``, ``base_3`` ... for later runs.

    Args:
        output_dir: folder of all runs and of their MLflow store.
        base: what the run is, e.g. "tnbc_ama_seed0".
        resume: take the latest run of that base instead of a new one.

    With several processes the first one decides.
    """

    def numbered(n: int) -> str:
        return base if n == 1 else f"{base}_{n}"

    n = 1
    while (Path(output_dir) / numbered(n)).exists():
        n += 1
    return idist.broadcast(numbered(max(1, n - 1) if resume else n))


class TrackedRun(MLFlowHandler):
    """
    MONAI's MLflow handler for one whole run: parameters at the start, epoch metrics, artefacts at the end.

    Differs from its parent in four things: a run that is not resumed never goes on in an unfinished one of the same
    name, a run that fails is marked as failed, metrics that a handler listed before finds when the run completes are
    logged too, and tags make runs selectable in MLflow's table.

    Args:
        tracking_uri: store, e.g. ``sqlite:///out/mlruns.db`` or an MLflow server.
        experiment_name, run_name: where the run is filed.
        params: settings that tell runs apart.
        tags: short facts to filter by.
        artifacts: files to keep with the run; those that were not written are left out.
        resume: go on in the latest unfinished run of that name.
        run_id: file everything in this existing run instead of one of its own. Whoever made it closes it, and its own
            tags and parameters stay as they are: so an experiment's child run holds its training and its evaluation.
    """

    def __init__(
        self,
        tracking_uri: str,
        experiment_name: str,
        run_name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, Any] | None = None,
        artifacts: Sequence[str | os.PathLike] = (),
        resume: bool = False,
        run_id: str | None = None,
    ) -> None:
        # the store's folder must exist before SQLite opens its file in it
        if tracking_uri.startswith("sqlite:///"):
            Path(tracking_uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        super().__init__(
            tracking_uri=tracking_uri,
            iteration_log=False,
            experiment_name=experiment_name,
            run_name=run_name,
            experiment_param={k: v for k, v in params.items()},
            artifacts=[str(a) for a in artifacts],
            close_on_complete=run_id is None,
        )
        self.tags, self.resume, self.run_id = dict(tags or {}), resume, run_id
        self._logged: set[str] = set()

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self._log_what_came_last)  # before the parent closes the run
        super().attach(engine)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._failed)

    def start(self, engine: Engine) -> None:
        tags = self.tags
        if self.run_id is not None:
            self.cur_run = self.client.get_run(self.run_id)
            self.experiment = self.client.get_experiment(self.cur_run.info.experiment_id)
            self._delete_exist_param_in_dict(self.experiment_param)
            tags = {key: value for key, value in tags.items() if key not in self.cur_run.data.tags}
        elif not self.resume:
            self._set_experiment()
            self.cur_run = self.client.create_run(self.experiment.experiment_id, run_name=self.run_name)
        super().start(engine)
        for key, value in tags.items():
            self.client.set_tag(self.cur_run.info.run_id, key, str(value))

    def epoch_completed(self, engine: Engine) -> None:
        super().epoch_completed(engine)
        self._logged = set(engine.state.metrics)

    def _log_what_came_last(self, engine: Engine) -> None:
        late = {name: value for name, value in engine.state.metrics.items() if name not in self._logged}
        if late and self.cur_run is not None:
            self._log_metrics(late, step=engine.state.epoch)

    def complete(self) -> None:
        self.artifacts = tuple(a for a in self.artifacts if os.path.exists(a))
        super().complete()

    def _failed(self, engine: Engine, error: BaseException) -> None:
        if self.cur_run is not None and self.run_id is None:
            self.client.set_terminated(self.cur_run.info.run_id, status="FAILED")
        raise error
