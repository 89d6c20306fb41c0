"""Where the training images of a model lie in the space of its encoder's features."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scripts.errors import DataError

__all__ = ["UNUSUAL", "WINDOW", "DomainReference", "DomainScore", "window_features"]

WINDOW = 256  # pixels: side of the windows over which features are averaged
FOLDS = 5
UNUSUAL = 0.95  # ``DomainScore.out_of_domain`` above which an image is unlike those of training


def window_features(features: Sequence[torch.Tensor], strides: Sequence[int]) -> torch.Tensor:
    """
    Means of the frozen encoder's features over windows of about 256 x 256 pixels.

    Taken are the last features but one: SAM's neck, which gives the last, ends in a normalisation that hides how
    unusual an image is (fluorescence lay 1.9 times as far as a training image by it, 7 times without).

    Args:
        features: fine to coarse, each (B, C_i, h_i, w_i).
        strides: of each, in pixels.

    Returns:
        (B, rows, columns, C) float32; an image smaller than a window is one.
    """
    feature, stride = features[-2], strides[-2]
    rows, columns = (max(round(side * stride / WINDOW), 1) for side in feature.shape[2:])
    return F.adaptive_avg_pool2d(feature.float(), (rows, columns)).permute(0, 2, 3, 1)


@dataclass(frozen=True)
class DomainScore:
    """
    How far a part of an image lies from the training domains.

    Args:
        out_of_domain: share of the nearest domain's training windows that lie nearer, in [0, 1]: around 0.5 is
            ordinary, above 0.95 unusual.
        domain_distance: its distance in medians of theirs; tells apart what is all beyond 1.
        nearest_domain: name.
    """

    out_of_domain: float
    domain_distance: float
    nearest_domain: str

    def values(self) -> dict[str, Any]:
        """For tables."""
        return {
            "out_of_domain": round(self.out_of_domain, 4),
            "domain_distance": round(self.domain_distance, 3),
            "nearest_domain": self.nearest_domain,
        }


@dataclass(frozen=True)
class DomainReference:
    """
    Where the windows of the training images lie in the space of features.

    The distance to a domain is Mahalanobis', from its mean, with one covariance for all domains (Lee et al., NeurIPS
    2018), shrunk as by Ledoit and Wolf, because windows are few. It is compared with the distances of training
    windows that were held out, by patient or field, when mean and covariance were computed.

    Args:
        names: of the domains.
        means: (K, C).
        precision: (C, C), inverse of the covariance.
        held_out: for each domain the sorted distances of its held-out windows.
    """

    names: list[str]
    means: torch.Tensor
    precision: torch.Tensor
    held_out: list[torch.Tensor]

    @classmethod
    def fit(cls, features: np.ndarray, domain: np.ndarray, group: np.ndarray, names: Sequence[str]) -> DomainReference:
        """
        Args:
            features: (N, C) of training windows.
            domain: (N,) index of each.
            group: (N,) what belongs together, such as a patient; within its domain.
            names: of the domains.

        Raises:
            DataError: when a domain has fewer than two windows.
        """
        folds = np.zeros(len(domain), int)
        for index, name in enumerate(names):
            own = np.flatnonzero(domain == index)
            if len(own) < 2:
                raise DataError(name, "it has fewer than two training windows", "Give it more training images")
            units = np.unique(group[own], return_inverse=True)[1]
            folds[own] = (units if units.max() > 0 else np.arange(len(own))) % FOLDS
        held_out = np.zeros(len(domain))
        for fold in np.unique(folds):
            kept, out = folds != fold, folds == fold
            rest = cls._of(features[kept], domain[kept], names, [])
            distances = rest.distances(torch.as_tensor(features[out])).numpy()
            held_out[out] = distances[np.arange(out.sum()), domain[out]]
        sorted_ones = [torch.as_tensor(np.sort(held_out[domain == index])).float() for index in range(len(names))]
        return cls._of(features, domain, names, sorted_ones)

    @classmethod
    def _of(cls, features: np.ndarray, domain: np.ndarray, names: Sequence[str], held_out: list) -> DomainReference:
        means = np.stack([features[domain == index].mean(axis=0) for index in range(len(names))])
        from sklearn.covariance import LedoitWolf  # slow to import, and only fitting needs it

        with warnings.catch_warnings():  # of one window, where a fold leaves no more, there is no other shape
            warnings.filterwarnings("ignore", "Only one sample available")
            precision = LedoitWolf(assume_centered=True).fit(features - means[domain]).precision_
        return cls(list(names), *(torch.as_tensor(values).float() for values in (means, precision)), held_out)

    def distances(self, features: torch.Tensor) -> torch.Tensor:
        """(..., C) to (..., K): Mahalanobis distance to each domain."""
        offset = features.float().cpu()[..., None, :] - self.means
        return torch.einsum("...c,cd,...d->...", offset, self.precision, offset).clamp(min=0).sqrt()

    def score(self, distances: torch.Tensor, weights: torch.Tensor | None = None) -> DomainScore | None:
        """
        Mean over windows; the nearest domain is that of the smallest mean.

        Args:
            distances: (..., K), of windows, from :meth:`distances`.
            weights: (...) of the windows; by default they count alike. None of any weight: there is no score.
        """
        distances = distances.reshape(-1, len(self.names))
        weights = torch.ones(len(distances)) if weights is None else torch.as_tensor(weights).reshape(-1).float()
        if not weights.sum() > 0:
            return None
        weights = weights / weights.sum()
        relative = torch.stack([d / held.median() for d, held in zip(distances.T, self.held_out)])
        nearer = torch.stack(
            [torch.searchsorted(held, d.contiguous()) / len(held) for d, held in zip(distances.T, self.held_out)]
        )
        nearest = int((relative @ weights).argmin())
        found = min(float(nearer[nearest] @ weights), 1.0), float(relative[nearest] @ weights)  # of rounding
        return DomainScore(*found, self.names[nearest])

    def as_dict(self) -> dict[str, Any]:
        """Tensors and plain values, for a model file."""
        return {name: getattr(self, name) for name in ("names", "means", "precision", "held_out")}

    @classmethod
    def of_model(cls, content: Mapping[str, Any]) -> DomainReference | None:
        """From what ``read_model_file`` gives; None when the file has none."""
        return cls(**content["domain_reference"]) if "domain_reference" in content else None
