"""Weights that lie part of the way from those a training began with to those that it has learned."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from ignite.engine import Engine, Events
from scripts.errors import DataError

__all__ = ["PartWay"]


class PartWay:
    """
    Holds the network's trained parts part of the way back to where they began, while it is judged and kept.

    The mean of the weights before and after a fine-tuning does nearly as well on what it was tuned for, and forgets
    less of what it knew (WiSE-FT, Wortsman et al., CVPR 2022). Training itself goes on from the learned weights: they
    are put back when the block, or the run of the validation engine, ends.

    Args:
        network: as the training begins, with the weights of ``init_model``.
        init_share: share of these in the mean, in [0, 1); 0 leaves the network as it is.
        init_model: where they came from.

    Raises:
        ValueError: when the share is not in [0, 1).
        DataError: when there is a share of nothing.
    """

    def __init__(
        self, network: torch.nn.Module, init_share: float = 0.0, init_model: str | os.PathLike | None = None
    ) -> None:
        if not 0 <= init_share < 1:
            raise ValueError(f"init_share must be at least 0 and below 1, got {init_share}")
        if init_share and init_model is None:
            raise DataError("init_share", "there are no weights to share with", "Give --init_model, or --init_share 0.")
        self.init_share = init_share
        self.trained = [p for p in network.parameters() if p.requires_grad] if init_share else []
        self.first = [p.detach().clone() for p in self.trained]
        self.learned: list[torch.Tensor] = []

    def attach(self, engine: Engine) -> None:
        """Judge so: whatever ``engine`` runs the network for, it runs it part of the way."""
        engine.add_event_handler(Events.STARTED, self.__enter__)
        engine.add_event_handler(Events.COMPLETED, self.__exit__)

    def state_dict(self) -> dict[str, list[torch.Tensor]]:
        return {"first": self.first}

    def load_state_dict(self, state: Mapping[str, list[torch.Tensor]]) -> None:
        """Where the run began, for what lies at ``init_model`` may be another model by now, such as its own."""
        if not state["first"]:  # begun by a version before 0.12.0: it goes on with all that it learned
            self.trained = self.first = []
            return
        for first, earlier in zip(self.first, state["first"], strict=True):
            first.copy_(earlier)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Judge what is in the network as it is: a model file holds what was kept already."""
        trained, self.trained = self.trained, []
        try:
            yield
        finally:
            self.trained = trained

    @torch.no_grad()
    def __enter__(self) -> PartWay:
        self.learned = [parameter.clone() for parameter in self.trained]
        for parameter, first in zip(self.trained, self.first):
            parameter.lerp_(first, self.init_share)
        return self

    @torch.no_grad()
    def __exit__(self, *error: Any) -> None:
        for parameter, learned in zip(self.trained, self.learned):
            parameter.copy_(learned)
        self.learned = []
