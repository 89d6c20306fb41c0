from __future__ import annotations

import logging
import os

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from scripts.errors import DataError, only_warned
from scripts.networks.loading import kept_weights

__all__ = ["FinalReport"]

logger = logging.getLogger(__name__)


class FinalReport:
    """
    Runs an evaluator once, at the end of a training, on the weights that the training keeps.

    What it finds joins ``engine.state.metrics``; list it before the MLflow handler. A report that fails is told and
    never costs the training. In a distributed training the first process alone writes it.

    Args:
        evaluator: with handlers that write the report.
        network: the segmentation network that the evaluator runs.
        kept_model: file of the weights kept so far, see ``keeping.KeptModel``.
    """

    def __init__(self, evaluator: Engine, network: torch.nn.Module, kept_model: str | os.PathLike) -> None:
        self.evaluator, self.network, self.kept_model = evaluator, network, kept_model

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if idist.get_rank() > 0:
            return
        with only_warned(logger, "no report at the end of training"):
            if not self.evaluator.state.epoch_length:
                raise DataError("alignment", "no domain has an image for the report", "Give validation images")
            with kept_weights(self.network, self.kept_model):
                self.evaluator.run()
            engine.state.metrics.update(self.evaluator.state.metrics)
