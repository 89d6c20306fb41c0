"""
Filters for MONAI's federated client, ``monai.fl.client.MonaiAlgo``; ``configs/fl_filters.json`` names them.

On the way between clients and server weights have the names they have in ``model.pt``.
"""

from __future__ import annotations

from typing import Any

from monai.fl.utils.exchange_object import ExchangeObject
from monai.fl.utils.filters import Filter
from scripts.networks.loading import is_frozen

__all__ = ["ReceivedParts", "TrainedParts"]

_NETWORK = "network."  # where AdversarialModel, which is trained, has the segmentation network


class TrainedParts(Filter):
    """What a client sends: decoder, adapters, adversary where it has them. All clients have the same frozen encoder."""

    def __call__(self, data: ExchangeObject, extra: dict[str, Any] | None = None) -> ExchangeObject:
        """``data.weights``: state dict (or difference) of an ``AdversarialModel`` -> that of the trained parts."""
        names = {name: name.removeprefix(_NETWORK) for name in data.weights}
        data.weights = {short: data.weights[name] for name, short in names.items() if not is_frozen(short)}
        return data


class ReceivedParts(Filter):
    """What a client receives fits the model it trains, and the network alone, which it evaluates."""

    def __call__(self, data: ExchangeObject, extra: dict[str, Any] | None = None) -> ExchangeObject:
        """``data.weights``: of the trained parts -> under both names."""
        data.weights = {**data.weights, **{_NETWORK + name: value for name, value in data.weights.items()}}
        return data
