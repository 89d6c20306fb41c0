from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from scripts.networks.adapters import share_frozen
from torch import nn
from torch.optim.swa_utils import AveragedModel

__all__ = ["AveragedWeights"]


class AveragedWeights:
    """
    The exponential moving average of a network's trained weights, as a network of its own: ``average``, in eval mode.

    Frozen weights are those of the network itself. PyTorch's ``AveragedModel`` averages; the first of its steps copies.

    Args:
        network: what is trained.
        decay: share of the average that a step leaves; .99 looks back some hundred steps. After n steps it is at most
            (1 + n) / (10 + n), so that untrained weights are soon forgotten.
    """

    def __init__(self, network: nn.Module, decay: float = 0.99) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay of the averaged weights must be from 0 and below 1, got {decay}")
        self.network, self.decay = network, decay
        self._averaged = AveragedModel(nn.Identity(), avg_fn=self._mean)
        self._averaged.module = share_frozen(network).eval()  # given the network, it would copy the encoder as well

    @property
    def average(self) -> nn.Module:
        return self._averaged.module

    def update(self) -> None:
        """Take in the network's weights of now."""
        self._averaged.update_parameters(self.network)

    def _mean(self, average: torch.Tensor, weight: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        return average.lerp(weight, 1 - min(self.decay, (1 + int(steps)) / (10 + int(steps))))

    def state_dict(self) -> dict[str, Any]:
        trained = {name: p.detach() for name, p in self.average.named_parameters() if p.requires_grad}
        return {"steps": int(self._averaged.n_averaged), "weights": trained}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.average.load_state_dict({**self.average.state_dict(), **state["weights"]})
        self._averaged.n_averaged.fill_(state["steps"])
