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
from scripts.phases import PHASES
from scripts.training.keeping import EarlyStop, KeptModel
from scripts.training.run_settings import RunSettings, differences
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["ANEW", "FinishedRun", "ScheduleState", "TrainingCheckpoint", "check_resume", "read_checkpoint"]

logger = logging.getLogger(__name__)

GO_ON = "The same command with --resume true goes on after the last epoch that was finished."
ANEW = "Give the output_dir or the run_name of the run to go on with, or drop --resume to start anew"


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
        parts: objects with ``state_dict``/``load_state_dict``, by name, None where this run has no such part; a
            learning-rate schedule may be longer in a resumed run than it was.
        kept_model, early_stop: attached with this handler, after loading and before saving, for what they remember
            belongs to the checkpoint.
        identity: plain values that must be the same when resuming, such as the encoder's fingerprint.
        settings: of the run; they must be the same, too, apart from those that are free.
        resume: load ``path`` before the first epoch; ``check_resume`` says before whether that can be done.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        parts: Mapping[str, Any],
        kept_model: KeptModel,
        early_stop: EarlyStop,
        identity: Mapping[str, Any],
        settings: RunSettings,
        resume: bool = False,
    ) -> None:
        self.path, self.identity, self.settings, self.resume = Path(path), dict(identity), settings, resume
        self.kept_model, self.early_stop = kept_model, early_stop
        # "best_model" is its name in the checkpoints of earlier versions
        parts = {name: part for name, part in parts.items() if part is not None}
        self.parts = {**parts, "best_model": kept_model, "early_stop": early_stop}
        for name, part in parts.items():
            if isinstance(part, LRScheduler):
                self.parts[name] = ScheduleState(part)

    def attach(self, engine: Engine) -> None:
        if self.resume:  # first: what is resumed has judged its start already
            from_now_on(GO_ON)
            engine.add_event_handler(Events.STARTED, self.load)
        self.kept_model.attach(engine)
        self.early_stop.attach(engine)
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
            "time": PHASES.state_dict(),
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
        if "time" in content:  # not in those of 0.9.0 and before
            PHASES.load_state_dict(content["time"])
        if _reached(content, engine.state.max_epochs, self.early_stop.patience):
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
        content = {**read_checkpoint(self.path), "finished": True, "time": PHASES.state_dict()}
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
        parts = content["parts"]
        if "early_stop" not in parts:  # version 0.6.0 and before counted where the best model was kept
            parts["early_stop"] = {"stale": parts["best_model"].pop("stale")}
        parts.setdefault("part_way", {"first": []})  # version 0.11.0 and before had none
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
        patience: of the :class:`~scripts.training.keeping.EarlyStop`.

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
    return content["epoch"] >= max_epochs or 0 < patience <= content["parts"]["early_stop"]["stale"]
