from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from scripts.ending import from_now_on
from scripts.errors import DataError
from scripts.files import atomic_path
from scripts.networks.loading import save_model
from scripts.training.run_settings import RunSettings, differences

__all__ = ["ANEW", "FinishedRun", "KeptModel", "ScheduleState", "TrainingCheckpoint", "check_resume", "read_checkpoint"]

logger = logging.getLogger(__name__)

KEEP = ("best", "last")
GO_ON = "The same command with --resume true goes on after the last epoch that was finished."
ANEW = "Give the output_dir or the run_name of the run to go on with, or drop --resume to start anew"


class KeptModel:
    """
    Writes the whole model, the best or the last one, and stops training when validation no longer improves.

    With several processes the first one writes, and all of them stop.

    Args:
        network: the segmentation network.
        path: file to write; see ``scripts.networks.model_file``.
        provenance: plain values written with the weights.
        about: see ``networks.loading.save_model``.
        keep: ``"best"`` writes whenever validation improves; ``"last"`` after each validation and after the last epoch,
            so that few validation images do not choose an early epoch by luck.
        metric: key of ``engine.state.metrics``, higher is better. Without any validation the last epoch is kept.
        patience: stop after this many validations without a new best; 0 never stops.
        start: a validation engine that judges the network as the training finds it, which then counts as the first
            best: with ``keep`` "best" the file holds it until something better is made. Needs validation images.

    Raises:
        ValueError: ``keep`` is neither of the two.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        path: str | os.PathLike,
        provenance: Mapping[str, Any],
        about: Mapping[str, Any] | None = None,
        keep: str = "best",
        metric: str = "val_dice",
        patience: int = 0,
        start: Engine | None = None,
    ) -> None:
        if keep not in KEEP:
            raise ValueError(f"keep must be {' or '.join(KEEP)}, got {keep!r}")
        self.network, self.path, self.provenance, self.keep = network, Path(path), dict(provenance), keep
        self.about, self.metric, self.patience, self.start = about, metric, patience, start
        self.start_score: float | None = None
        self.best: float | None = None
        self.best_epoch = self.stale = 0

    def attach(self, engine: Engine) -> None:
        if self.start is not None:
            engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)
        engine.add_event_handler(Events.COMPLETED, self._completed)

    def state_dict(self) -> dict:
        names = ("best", "best_epoch", "stale", "start_score")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best, self.best_epoch, self.stale = state["best"], state["best_epoch"], state["stale"]
        self.start_score = state.get("start_score")  # earlier versions had none

    def _started(self, engine: Engine) -> None:
        if self.best is not None:  # resumed
            return
        if not self.start.state.epoch_length:
            raise DataError(
                "start_counts", "no validation image can judge the start", "Set held_out, or give a validation part."
            )
        self.start.run()
        self.best = self.start_score = float(self.start.state.metrics[self.metric])
        self._save(engine, self.best)

    def _epoch_completed(self, engine: Engine) -> None:
        score = engine.state.metrics.get(self.metric)
        better = score is not None and (self.best is None or score > self.best)
        if better:
            self.best, self.best_epoch, self.stale = float(score), engine.state.epoch, 0
        # the last epoch here and not when training has completed: other handlers read the file then
        last = self.best is not None and (score is not None or engine.state.epoch == engine.state.max_epochs)
        if better or (self.keep == "last" and last):
            self._save(engine, score)
        if score is None or better:
            return
        self.stale += 1
        if self.patience and self.stale >= self.patience:
            logger.info("no better %s for %d validations: training ends", self.metric, self.stale)
            engine.terminate()

    def _completed(self, engine: Engine) -> None:
        if self.best is None:
            self.best_epoch = engine.state.epoch
            self._save(engine, None)
            logger.info("no validation took place: %s holds the last epoch, %d", self.path, self.best_epoch)
            return
        line = f"best {self.metric} {self.best:.4f}, epoch {self.best_epoch}"
        if self.start_score is not None:
            line += f"; {self.start_score:.4f} before training"
        logger.info("%s: %s%s", self.path, "" if self.keep == "best" else f"last epoch, {engine.state.epoch}; ", line)

    def _save(self, engine: Engine, score: float | None) -> None:
        if idist.get_rank() > 0:
            return
        scores = {} if score is None else {self.metric: float(score)}
        provenance = {**self.provenance, "epoch": engine.state.epoch, **scores}
        save_model(self.path, self.network, provenance, self.about)


class ScheduleState:
    """
    Where a learning-rate schedule stands, for a checkpoint; how long it is stays as configured, so that a resumed run
    may be made longer.

    Args:
        scheduler: the schedule.
        configured: its attributes that the checkpoint does not bring back.
    """

    def __init__(self, scheduler: Any, configured: Sequence[str] = ("t_total", "warmup_steps")) -> None:
        self.scheduler, self.configured = scheduler, configured

    def state_dict(self) -> dict:
        return self.scheduler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        kept = {name: getattr(self.scheduler, name) for name in self.configured if hasattr(self.scheduler, name)}
        self.scheduler.load_state_dict({**state, **kept})
        if kept != {name: state.get(name) for name in kept}:
            # the optimizer has the rate of the schedule as it was
            for group, rate in zip(self.scheduler.optimizer.param_groups, self.scheduler.get_lr()):
                group["lr"] = rate


class TrainingCheckpoint:
    """
    Everything an interrupted training needs to go on as if it had not been: saved after each epoch, and loaded first.

    It holds the trained parts only; the frozen encoder is named by its type and fingerprint. Random numbers need no
    place in it, because each epoch is seeded by its number (see ``EpochSeeder``). With several processes the first one
    writes it, and all load it. A run that was interrupted behind its last epoch does what is left of its end, which is
    why whatever handlers do when training is completed can be done twice.

    Args:
        path: the file.
        parts: objects with ``state_dict``/``load_state_dict``, by name.
        kept_model: attached with this handler and before it, for what it remembers belongs to the checkpoint.
        identity: plain values that must be the same when resuming, such as the encoder's fingerprint.
        settings: of the run; they must be the same, too, apart from those that are free.
        resume: load ``path`` before the first epoch; ``check_resume`` says before whether that can be done.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        parts: Mapping[str, Any],
        kept_model: KeptModel,
        identity: Mapping[str, Any],
        settings: RunSettings,
        resume: bool = False,
    ) -> None:
        self.path, self.kept_model, self.identity, self.settings = Path(path), kept_model, dict(identity), settings
        self.resume = resume
        self.parts = {**parts, "best_model": kept_model}  # its name in the checkpoints of earlier versions

    def attach(self, engine: Engine) -> None:
        if self.resume:  # first: what is resumed has judged its start already
            from_now_on(GO_ON)
            engine.add_event_handler(Events.STARTED, self.load)
        self.kept_model.attach(engine)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def save(self, engine: Engine) -> None:
        if idist.get_rank() > 0:
            return
        content = {
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "identity": self.identity,
            "settings": self.settings.record(),
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
        }
        with atomic_path(self.path) as path:
            torch.save(content, path)
        from_now_on(GO_ON)

    def load(self, engine: Engine) -> None:
        content = read_checkpoint(self.path, engine.state.device)
        for name, part in self.parts.items():
            try:
                part.load_state_dict(content["parts"][name])
            except (KeyError, RuntimeError, ValueError) as e:
                raise DataError(self.path, f"its {name} is of another size ({e})", ANEW) from e
        engine.state.epoch, engine.state.iteration = content["epoch"], content["iteration"]
        if _reached(content, engine.state.max_epochs, self.kept_model.patience):
            logger.info("resumed from %s: epoch %d was the last one", self.path, content["epoch"])
            engine.terminate()  # which is no failure: what follows a training follows
        else:
            logger.info("resumed from %s after epoch %d", self.path, content["epoch"])


class FinishedRun:
    """
    Marks the checkpoint of a run that has come to its end, reports, publishing and all. List it last.

    Args:
        path: the checkpoint.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if idist.get_rank() > 0 or not self.path.is_file():
            return
        content = {**read_checkpoint(self.path), "finished": True}
        with atomic_path(self.path) as path:
            torch.save(content, path)


def read_checkpoint(path: str | os.PathLike, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Content of a file that :class:`TrainingCheckpoint` wrote; DataError when it is missing or cannot be read."""
    if not Path(path).is_file():
        raise DataError(path, "there is no checkpoint to resume from", ANEW)
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        if not {"epoch", "iteration", "identity", "parts"} <= content.keys():
            raise ValueError("it is no checkpoint of a training")
    except Exception as e:
        raise DataError(path, f"the checkpoint cannot be read ({e})", ANEW) from e
    return content


def check_resume(
    path: str | os.PathLike,
    identity: Mapping[str, Any],
    settings: RunSettings,
    max_epochs: int,
    patience: int,
    resume: bool = True,
) -> None:
    """
    Refuse, before anything is written, to resume a run that cannot be gone on with.

    Args:
        path, identity, settings, resume: as of :class:`TrainingCheckpoint`.
        max_epochs: of the trainer.
        patience: of the :class:`KeptModel`.

    Raises:
        DataError: when the checkpoint is missing, unreadable, of another or a finished run, or of other settings, each
            of them named with both values.
    """
    if not resume:
        return
    content = read_checkpoint(path)
    if other := differences(content["identity"], identity):
        raise DataError(path, f"it is of another run: {', '.join(other)}", ANEW)
    if "settings" not in content:
        message = "%s: an earlier version wrote it, without settings: whether they have changed cannot be told. %s"
        logger.warning(message, path, "learning_rate and weight_decay go on as in the checkpoint")
    else:
        if changes := settings.changes(content["settings"]):
            hint = "Give the same settings, or drop --resume to start anew"
            raise DataError(path, f"it was made with other settings: {', '.join(changes)}", hint)
        if (version := content["settings"]["version"]) != settings.version:
            logger.warning("%s: version %s wrote it: only settings that this one has, too, are compared", path, version)
    if content.get("finished") and _reached(content, max_epochs, patience):
        problem = f"this run is finished, with epoch {content['epoch']}"
        raise DataError(path, problem, "Raise --max_epochs (or --patience, if it stopped early) to train on")


def _reached(content: Mapping[str, Any], max_epochs: int, patience: int) -> bool:
    """Whether a checkpoint is of the last epoch, by the settings of now."""
    return content["epoch"] >= max_epochs or 0 < patience <= content["parts"]["best_model"]["stale"]
