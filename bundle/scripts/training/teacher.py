from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from scripts.errors import DataError
from scripts.training.averaged_weights import AveragedWeights
from torch import nn

__all__ = ["MeanTeacher", "check_taught", "consistency", "teacher_ramp"]


class MeanTeacher:
    """
    Teaches unlabelled samples what the average of the weights of past steps sees in them.

    The teacher sees a sample as it is, the network in the style that ``StyleJitter`` gave it (a mean teacher, Tarvainen
    & Valpola, arXiv:1703.01780).

    Args:
        network: the segmentation network that is trained.
        labelled: of each domain, whether it has labels.
        weight: of the loss of unlabelled samples, at the end of its ramp.
        ramp: share of the training after which the weight is reached.
        decay: see :class:`AveragedWeights`.

    Raises:
        DataError: when every domain has labels: there is nobody to teach.
    """

    def __init__(
        self, network: nn.Module, labelled: Sequence[bool], weight: float, ramp: float = 0.25, decay: float = 0.99
    ) -> None:
        check_taught(weight, labelled)
        self.weight, self.ramp = weight, ramp
        self.averaged = AveragedWeights(network, decay)

    def begin(self, image: torch.Tensor, features: Sequence[torch.Tensor] | None) -> list[torch.Tensor]:
        """Take in what the last step made of the weights; what teacher and network both read of the images (B)."""
        self.averaged.update()
        return self.averaged.average.image_encoder.begin(image) if features is None else list(features)

    def __call__(self, image: torch.Tensor, features: Sequence[torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
        """
        Args:
            image: (U, 3, H, W) unlabelled images as they are.
            features: of them, see :meth:`begin`.
            logits: (U, C, H, W), what the network makes of them.

        Returns:
            (U,) losses, see :func:`consistency`.
        """
        teacher = self.averaged.average
        with torch.no_grad():
            seen = teacher.image_encoder.finish([feature.to(image.dtype) for feature in features])
            told = teacher.decoder([feature.to(image.dtype) for feature in seen], image)[0].float().sigmoid()
        return consistency(logits, told)

    def strength(self, progress: float) -> float:
        """Weight of the loss at ``progress`` in [0, 1]."""
        return self.weight * teacher_ramp(progress, self.ramp)

    def state_dict(self) -> dict[str, Any]:
        return self.averaged.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.averaged.load_state_dict(state)


def consistency(logits: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
    """
    Cross-entropy of what the network says against what the teacher does, of all pixels, however sure it is.

    Nothing is rounded and no pixel is left out, so it is least where both agree. With only sure pixels nuclei went
    missing, or grew by far more than they do with this (``docs/experiments.md``). What separates nuclei counts as much
    as the teacher sees a nucleus there.

    Args:
        logits: (U, C, H, W) of the network, foreground first.
        told: (U, C, H, W) probabilities of the teacher.

    Returns:
        (U,) losses.
    """
    costs = F.binary_cross_entropy_with_logits(logits.float(), told, reduction="none")
    loss = costs[:, 0].mean(dim=(1, 2))
    if logits.shape[1] == 1:
        return loss
    nuclei = told[:, 0]
    return loss + (nuclei * costs[:, 1:].mean(dim=1)).sum(dim=(1, 2)) / nuclei.sum(dim=(1, 2)).clamp(min=1)


def teacher_ramp(progress: float, length: float) -> float:
    """``exp(-5 (1 - t)^2)``, t from 0 to 1 within ``length`` of the training (Laine & Aila, arXiv:1610.02242)."""
    return math.exp(-5.0 * (1.0 - min(1.0, progress / max(length, 1e-6))) ** 2)


def check_taught(weight: float, labelled: Sequence[bool]) -> None:
    """Before any image is encoded: DataError where a teacher is asked for and every domain has labels."""
    if weight and all(labelled):
        hint = "Name some with --unlabelled, or leave teacher at 0."
        raise DataError("teacher", f"it is {weight:g}, but every domain that is trained on has labels", hint)
