from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from scripts.errors import DataError
from scripts.files import atomic_path
from scripts.networks.loading import save_model

__all__ = ["KeptModel", "TrainingCheckpoint"]

logger = logging.getLogger(__name__)

KEEP = ("best", "last")


class KeptModel:
    """
    Writes the whole model, the best or the last one, and stops training when validation no longer improves.

    With several processes the first one writes, and all of them stop.

    Args:
        network: the segmentation network.
        path: file to write; see ``scripts.networks.model_file``.
        provenance: plain values told with the weights.
        about: see ``networks.loading.save_model``.
        keep: ``"best"`` writes whenever validation improves; ``"last"`` after each validation and after the last epoch,
            so that few validation images do not choose an early epoch by luck.
        metric: key of ``engine.state.metrics``, higher is better. Without any validation the last epoch is kept.
        patience: stop after this many validations without a new best; 0 never stops.

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
    ) -> None:
        if keep not in KEEP:
            raise ValueError(f"keep must be {' or '.join(KEEP)}, got {keep!r}")
        self.network, self.path, self.provenance, self.keep = network, Path(path), dict(provenance), keep
        self.about, self.metric, self.patience = about, metric, patience
        self.best: float | None = None
        self.best_epoch = self.stale = 0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)
        engine.add_event_handler(Events.COMPLETED, self._completed)

    def state_dict(self) -> dict:
        return {"best": self.best, "best_epoch": self.best_epoch, "stale": self.stale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best, self.best_epoch, self.stale = state["best"], state["best_epoch"], state["stale"]

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
        told = f"best {self.metric} {self.best:.4f}, epoch {self.best_epoch}"
        logger.info("%s: %s%s", self.path, "" if self.keep == "best" else f"last epoch, {engine.state.epoch}; ", told)

    def _save(self, engine: Engine, score: float | None) -> None:
        if idist.get_rank() > 0:
            return
        told = {} if score is None else {self.metric: float(score)}
        provenance = {**self.provenance, "epoch": engine.state.epoch, **told}
        save_model(self.path, self.network, provenance, self.about)


class TrainingCheckpoint:
    """
    Everything an interrupted training needs to go on as if it had not been: saved after each epoch, and loaded first.

    It holds the trained parts only; the frozen encoder is told by its type and fingerprint. Random numbers need no
    place in it, because each epoch is seeded by its number (see ``EpochSeeder``). With several processes the first one
    writes it, and all load it.

    Args:
        path: the file.
        parts: objects with ``state_dict``/``load_state_dict``, by name.
        kept_model: attached with this handler and before it, for what it remembers belongs to the checkpoint.
        identity: plain values that must be the same when resuming, such as the encoder's fingerprint.
        resume: load ``path`` before the first epoch; DataError when it is missing, unreadable or of another set-up.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        parts: Mapping[str, Any],
        kept_model: KeptModel,
        identity: Mapping[str, Any],
        resume: bool = False,
    ) -> None:
        self.path, self.kept_model, self.identity, self.resume = Path(path), kept_model, dict(identity), resume
        self.parts = {**parts, "best_model": kept_model}  # its name in the checkpoints of earlier versions

    def attach(self, engine: Engine) -> None:
        self.kept_model.attach(engine)
        if self.resume:
            engine.add_event_handler(Events.STARTED, self.load)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def save(self, engine: Engine) -> None:
        if idist.get_rank() > 0:
            return
        content = {
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "identity": self.identity,
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
        }
        with atomic_path(self.path) as path:
            torch.save(content, path)

    def load(self, engine: Engine) -> None:
        hint = "Give the output_dir of the run to go on with, or drop --resume to start anew"
        if not self.path.is_file():
            raise DataError(self.path, "there is no checkpoint to resume from", hint)
        try:
            content = torch.load(self.path, map_location=engine.state.device, weights_only=True)
        except Exception as e:
            raise DataError(self.path, f"the checkpoint cannot be read ({e})", hint) from e
        for key, value in self.identity.items():
            if content["identity"].get(key) != value:
                raise DataError(
                    self.path, f"it was made with {key} {content['identity'].get(key)!r}, not {value!r}", hint
                )
        for name, part in self.parts.items():
            part.load_state_dict(content["parts"][name])
        if content["epoch"] >= engine.state.max_epochs:
            raise DataError(
                self.path,
                f"training has reached epoch {content['epoch']} of {engine.state.max_epochs}",
                "Raise --max_epochs to train on",
            )
        engine.state.epoch, engine.state.iteration = content["epoch"], content["iteration"]
        logger.info("resumed from %s after epoch %d", self.path, content["epoch"])
