from __future__ import annotations

import logging
import os
import shutil
import time
from pathlib import Path

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from scripts.errors import DataError
from scripts.files import LEFT, atomic_path, remove_partial, unused_path
from scripts.networks.loading import load_model
from scripts.networks.model_file import read_model_file
from scripts.training.part_way import PartWay

__all__ = ["PublishModel"]

logger = logging.getLogger(__name__)

PUBLISH = ("better", "always")


class PublishModel:
    """
    Puts the model that a training kept in the place of the one that is served, unless that one validates better.

    Both are judged by the same evaluator on the same images. Without validation images, or without a model to compare
    with, the new one is published. The model that was served is kept beside it, as ``previous/model_<time>.pt``, unless
    it is the new one itself, published before its training was interrupted.
    List it behind all that needs the last weights, for others are in the network afterwards.

    Args:
        model: the file that the training kept, see ``keeping.KeptModel``.
        path: where the served model lies; replaced at once and whole.
        publish: ``"better"``, or ``"always"`` for whatever the validation says.
        network: the segmentation network that the evaluator runs.
        evaluator: of the validation images.
        metric: key of ``evaluator.state.metrics``, higher is better.
        part_way: if the evaluator judges part of the way; the files are judged as they are.
    """

    def __init__(
        self,
        model: str | os.PathLike,
        path: str | os.PathLike,
        publish: str,
        network: torch.nn.Module,
        evaluator: Engine,
        metric: str = "val_dice",
        part_way: PartWay | None = None,
    ) -> None:
        if publish not in PUBLISH:
            raise ValueError(f"publish must be {' or '.join(PUBLISH)}, got {publish!r}")
        self.model, self.path, self.publish = Path(model), Path(path), publish
        self.network, self.evaluator, self.metric = network, evaluator, metric
        self.part_way = part_way or PartWay(network)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        idist.barrier()  # the first process may still write the model
        if _same_weights(self.model, self.path):
            logger.info("%s: it is published already", self.model)
            return
        new, served = self._score(self.model), self._score(self.path)  # every process sees its part of the images
        if idist.get_rank() > 0:
            return
        scores = f"{self.metric} {_text(new)}, of the served one {_text(served)}"
        if self.publish == "better" and new is not None and served is not None and new < served:
            logger.warning("not published, the served model validates better (%s): %s", scores, self.model)
            return
        remove_partial(self.path.parent, lambda name: name == self.path.name, LEFT)
        if self.path.is_file():
            previous = unused_path(self.path.parent / "previous" / f"model_{time.strftime('%Y%m%d_%H%M%S')}.pt")
            with atomic_path(previous) as partial:
                shutil.copyfile(self.path, partial)
        with atomic_path(self.path) as partial:
            shutil.copyfile(self.model, partial)
        logger.info("published %s (%s)", self.path, scores)

    def _score(self, model: Path) -> float | None:
        """Of a model file on the validation images; None if there are none, or it is no such network."""
        if not model.is_file() or not self.evaluator.state.epoch_length:
            return None
        try:
            load_model(self.network, model)
        except DataError as error:  # another backbone or decoder was served so far
            logger.warning(
                "the published model is replaced, for it cannot be compared with (kept in previous/): %s", error
            )
            return None
        with self.part_way.paused():
            self.evaluator.run()
        return float(self.evaluator.state.metrics[self.metric])


def _same_weights(model: Path, other: Path) -> bool:
    if not model.is_file() or not other.is_file():
        return False
    try:
        weights, others = (read_model_file(path)["model"] for path in (model, other))
    except DataError:  # it will be told when the two are compared
        return False
    return weights.keys() == others.keys() and all(torch.equal(value, others[key]) for key, value in weights.items())


def _text(score: float | None) -> str:
    return "unknown" if score is None else f"{score:.4f}"
