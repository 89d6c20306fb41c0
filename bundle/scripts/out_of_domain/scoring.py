"""How far images lie from a model's training domains, measured while the network looks at them."""

from __future__ import annotations

import logging
import os

import torch
from ignite.engine import Engine, Events
from scripts.networks.model_file import read_model_file
from scripts.out_of_domain.reference import DomainReference, DomainScore, window_features
from torch import nn

__all__ = ["DomainDistance"]

logger = logging.getLogger(__name__)


class DomainDistance:
    """
    Listens to a network's frozen encoder and tells how far what it sees lies from the training domains.

    As a handler of a MONAI evaluator, list it before those that write: it adds ``domain_score`` (a ``DomainScore``) to
    each item of the output. Elsewhere, call :meth:`take` after the network has run.

    Args:
        network: an ``AMASAM``; of another network there are no scores.
        path: its model file. One that does not describe its training domains gives a warning, and no scores.
        views: as of ``TileInferer``: only the first view, the image as it is, counts.
    """

    def __init__(self, network: nn.Module, path: str | os.PathLike, views: int = 1) -> None:
        self.reference: DomainReference | None = None
        self._views = views
        self._seen: list[torch.Tensor] = []
        encoder = getattr(network, "image_encoder", None)
        if encoder is None:
            return
        self.reference = DomainReference.of_model(read_model_file(path))
        if self.reference is None:
            logger.warning(
                "%s: it does not know its training domains, so there is no out-of-domain score; "
                "`run describing_domains` of configs/align.json adds them",
                path,
            )
            return
        self._strides = encoder.strides
        encoder.register_forward_hook(self._see)

    def attach(self, engine: Engine) -> None:
        """Register with a MONAI evaluator whose batches are single images."""
        if self.reference is not None:
            engine.add_event_handler(Events.ITERATION_STARTED, lambda engine: self._seen.clear())
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._tell)

    def take(self) -> torch.Tensor | None:
        """(tiles, rows, columns, K) distances of the windows of all tiles since the last call; None without any."""
        if self.reference is None or not self._seen:
            return None
        seen = torch.cat(self._seen[:: self._views])
        self._seen.clear()
        return self.reference.distances(seen)

    def score(self, distances: torch.Tensor, weights: torch.Tensor | None = None) -> DomainScore | None:
        """See ``DomainReference.score``."""
        return self.reference.score(distances, weights)

    def _see(self, encoder: nn.Module, inputs: tuple, features: list[torch.Tensor]) -> None:
        self._seen.append(window_features(features, self._strides).cpu())

    def _tell(self, engine: Engine) -> None:
        (item,) = engine.state.output  # windows of several images could not be told apart
        item["domain_score"] = self.score(self.take())
