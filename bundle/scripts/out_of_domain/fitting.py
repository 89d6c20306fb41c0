"""Describes a model's training domains and writes that into its file."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import Dataset
from monai.transforms import Compose
from scripts.data.domains import in_turn
from scripts.data.readers import LoadNucleid
from scripts.data.transforms import ToTargetMppd
from scripts.errors import DataError, only_warned
from scripts.networks.loading import kept_weights
from scripts.networks.model_file import add_to_model_file
from scripts.out_of_domain.reference import DomainReference, window_features
from torch import nn
from tqdm import tqdm

__all__ = ["DescribeDomains", "few_of_each_domain"]

logger = logging.getLogger(__name__)


def few_of_each_domain(items: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """At most so many items of each domain, of as many groups as can be: the first of every group, then the second."""
    domains: dict[int, list[dict[str, Any]]] = {}
    for item in items:
        # who replaces the items, as MONAI Label does, may give no more than files
        item = {"domain": 0, "group": str(item["image"]), **item}
        domains.setdefault(item["domain"], []).append(item)
    return [item for own in domains.values() for item in in_turn(own)[:count]]


class DescribeDomains:
    """
    Writes into a model file where its training images lie in the space of the encoder's features, and how large
    their nuclei are.

    Called, it does so at once. As a handler of a trainer, it does at the end of the training, with the weights in the
    file; what goes wrong there is told and never costs the training. In a distributed training the first process alone
    does it.

    Args:
        network: an ``AMASAM``.
        items: the training images and their labels, of ``load_items``.
        count: at most so many of each domain are looked at, not augmented.
        target_mpp: micrometres per pixel that they are resampled to; None leaves them.
        domain_names: by index.
        inferer: as in inference, so that the same windows are seen.
        path: the model file.
        device: of the network.
    """

    def __init__(
        self,
        network: nn.Module,
        items: Sequence[dict[str, Any]],
        count: int,
        target_mpp: float | None,
        domain_names: Sequence[str],
        inferer: Callable[..., torch.Tensor],
        path: str | os.PathLike,
        device: torch.device | str = "cpu",
    ) -> None:
        steps = Compose([LoadNucleid(), ToTargetMppd(target_mpp)])
        self.dataset = Dataset(few_of_each_domain(items, count), steps)
        self.network, self.domain_names = network, list(domain_names)
        self.inferer, self.path, self.device = inferer, path, device

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, behind the handler that writes the model file."""
        engine.add_event_handler(Events.COMPLETED, self._completed)

    def __call__(self) -> None:
        features, domain, group = [], [], []
        areas: dict[int, list[np.ndarray]] = {}

        def see(encoder: nn.Module, inputs: tuple, output: list[torch.Tensor]) -> None:
            features.append(window_features(output, encoder.strides).flatten(0, 2).cpu().numpy())

        hook = self.network.image_encoder.register_forward_hook(see)
        training = self.network.training
        self.network.eval()
        try:
            for index, about in enumerate(tqdm(self.dataset.data, desc="describing domains", unit="image")):
                before = len(features)
                item = self.dataset[index]
                areas.setdefault(about["domain"], []).append(np.bincount(np.asarray(item["label"]).ravel())[1:])
                with torch.inference_mode():
                    image = torch.as_tensor(np.asarray(item["image"])).float()
                    self.inferer(image[None].to(self.device), self.network)
                windows = sum(len(values) for values in features[before:])
                domain += [about["domain"]] * windows
                group += [about["group"]] * windows
        finally:
            hook.remove()
            self.network.train(training)
        if not features:
            raise DataError("domains", "there are no training images to describe them by", "Give training images")
        present, indices = np.unique(domain, return_inverse=True)
        names = [self.domain_names[index] for index in present]
        windows = np.concatenate(features).astype(np.float64)
        reference = DomainReference.fit(windows, indices, np.array(group), names)
        medians = {}
        for index, counts in areas.items():
            counted = np.concatenate(counts)
            if (counted > 0).any():
                medians[self.domain_names[index]] = float(np.median(counted[counted > 0]))
        add_to_model_file(self.path, domain_reference=reference.as_dict(), nucleus_area_px=medians)
        logger.info("%s: knows its training domains by %d windows", self.path, len(domain))

    def _completed(self, engine: Engine) -> None:
        if idist.get_rank() > 0:
            return
        with only_warned(logger, "the model will give no out-of-domain scores"):
            with kept_weights(self.network, self.path):  # their encoder may have adapters that went on learning
                self()
