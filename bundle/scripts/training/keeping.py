"""What a training keeps of its epochs, and when it ends early."""

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
from scripts.networks.loading import save_model
from scripts.training.part_way import PartWay

__all__ = ["EarlyStop", "KeptModel"]

logger = logging.getLogger(__name__)

KEEP = ("best", "last")


class KeptModel:
    """
    Writes the whole model, the best or the last one.

    With several processes the first one writes.

    Args:
        network: the segmentation network.
        path: file to write; see ``scripts.networks.model_file``.
        provenance: plain values written with the weights.
        about: see ``networks.loading.save_model``.
        keep: ``"best"`` writes whenever validation improves; ``"last"`` after each validation and after the last epoch,
            so that few validation images do not choose an early epoch by luck.
        metric: key of ``engine.state.metrics``, higher is better. Without any validation the last epoch is kept.
        start: a validation engine that judges the network as the training finds it, which then counts as the first
            best: with ``keep`` "best" the file holds it until something better is made. Needs validation images.
        part_way: what is written lies so far from where the network began, see ``PartWay``; give it to the validation
            engines, too, so that what is judged is what is written.

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
        start: Engine | None = None,
        part_way: PartWay | None = None,
    ) -> None:
        if keep not in KEEP:
            raise ValueError(f"keep must be {' or '.join(KEEP)}, got {keep!r}")
        self.network, self.path, self.provenance, self.keep = network, Path(path), dict(provenance), keep
        self.about, self.metric, self.start = about, metric, start
        self.part_way = part_way or PartWay(network)
        self.start_score: float | None = None
        self.best: float | None = None
        self.best_epoch = 0

    def attach(self, engine: Engine) -> None:
        if self.start is not None:
            engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)
        engine.add_event_handler(Events.COMPLETED, self._completed)

    def state_dict(self) -> dict:
        names = ("best", "best_epoch", "start_score")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best, self.best_epoch = state["best"], state["best_epoch"]
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
            self.best, self.best_epoch = float(score), engine.state.epoch
        # the last epoch here and not when training has completed: other handlers read the file then
        last = self.best is not None and (score is not None or engine.state.epoch == engine.state.max_epochs)
        if better or (self.keep == "last" and last):
            self._save(engine, score)

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
        with self.part_way:
            save_model(self.path, self.network, provenance, self.about)


class EarlyStop:
    """
    Ends a training when validation no longer improves. List it behind the :class:`KeptModel`, which says what is best.

    MONAI's ``EarlyStopHandler`` has a best of its own, which does not know of a start that counts, and cannot be off.

    Args:
        kept_model: of the same training.
        patience: end after this many validations without a new best; 0 never ends.
    """

    def __init__(self, kept_model: KeptModel, patience: int = 0) -> None:
        self.kept_model, self.patience = kept_model, patience
        self.stale = 0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def state_dict(self) -> dict:
        return {"stale": self.stale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stale = state["stale"]

    def __call__(self, engine: Engine) -> None:
        if self.kept_model.metric not in engine.state.metrics:
            return
        self.stale = 0 if self.kept_model.best_epoch == engine.state.epoch else self.stale + 1
        if self.patience and self.stale >= self.patience:
            logger.info("no better %s for %d validations: training ends", self.kept_model.metric, self.stale)
            engine.terminate()
