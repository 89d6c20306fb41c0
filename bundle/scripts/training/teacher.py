from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from scripts.errors import DataError
from scripts.training.averaged_weights import AveragedWeights
from torch import nn

__all__ = ["MeanTeacher", "confident_part", "teacher_ramp"]

OUT = -1e4  # a logit that is 0 as a probability, and passes no gradient


class MeanTeacher:
    """
    Teaches unlabelled samples what the average of the weights of past steps sees in them.

    The teacher sees a sample as it is, the network in the style that ``StyleJitter`` gave it; what it learns are the
    pixels of which the teacher is sure. A mean teacher (Tarvainen & Valpola, arXiv:1703.01780) with FixMatch's
    threshold and views (Sohn et al., arXiv:2001.07685).

    Args:
        network: the segmentation network that is trained.
        labelled: of each domain, whether it has labels.
        weight: of the loss of unlabelled samples, at the end of its ramp.
        confidence: probability, of nucleus or of background, from which the teacher is sure.
        ramp: share of the training after which the weight is reached.
        decay: see :class:`AveragedWeights`.

    Raises:
        DataError: when every domain has labels: there is nobody to teach.
    """

    def __init__(
        self,
        network: nn.Module,
        labelled: Sequence[bool],
        weight: float,
        confidence: float = 0.9,
        ramp: float = 0.25,
        decay: float = 0.99,
    ) -> None:
        if all(labelled):
            hint = "Name some with --unlabelled, or leave teacher at 0."
            raise DataError("teacher", f"it is {weight:g}, but every domain that is trained on has labels", hint)
        if not 0.5 < confidence < 1:
            raise ValueError(f"teacher_confidence must be above .5 and below 1, got {confidence}")
        self.weight, self.confidence, self.ramp = weight, confidence, ramp
        self.averaged = AveragedWeights(network, decay)

    def begin(self, image: torch.Tensor, features: Sequence[torch.Tensor] | None) -> list[torch.Tensor]:
        """Take in what the last step made of the weights; what teacher and network both read of the images (B)."""
        self.averaged.update()
        return self.averaged.average.image_encoder.begin(image) if features is None else list(features)

    def __call__(
        self, image: torch.Tensor, features: Sequence[torch.Tensor], logits: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, float]:
        """
        Args:
            image: (U, 3, H, W) unlabelled images as they are.
            features: of them, see :meth:`begin`.
            logits: (U, C, H, W), what the network makes of them.

        Returns:
            the logits, and what they should be in [0, 1], both (U, C, H, W), see :func:`confident_part`; and the share
            of pixels of which the teacher is sure.
        """
        teacher = self.averaged.average
        with torch.no_grad():
            seen = teacher.image_encoder.finish([feature.to(image.dtype) for feature in features])
            told = teacher.decoder([feature.to(image.dtype) for feature in seen], image)[0].float().sigmoid()
        return confident_part(logits, told, self.confidence)

    def strength(self, progress: float) -> float:
        """Weight of the loss at ``progress`` in [0, 1]."""
        return self.weight * teacher_ramp(progress, self.ramp)

    def state_dict(self) -> dict[str, Any]:
        return self.averaged.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.averaged.load_state_dict(state)


def confident_part(
    logits: torch.Tensor, told: torch.Tensor, confidence: float
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """
    Logits and targets that agree, without a gradient, wherever the teacher is not sure of the foreground.

    Of what it takes for nuclei and of what it takes for background the same share is believed, the surest of each: as
    large as fits ``confidence`` in both. With the threshold alone background, of which a network is sure sooner, was
    believed more often, each time the network saw more of it, and nuclei went missing. Where it finds but one of the
    two, nothing is believed. After class-balanced self-training (Zou et al., arXiv:1810.07911).

    Args:
        logits: (U, C, H, W) of the network.
        told: (U, C, H, W) probabilities of the teacher; the first is the foreground's.
        confidence: that it must have for nucleus or for background.

    Returns:
        logits; targets, the foreground's 0 or 1, the others as the teacher gives them; and the share of sure pixels.
        Elsewhere both say 0, so the mean over all pixels of a loss falls with that share, as in FixMatch.
    """
    foreground = told[:, :1]
    nucleus = foreground > 0.5
    certainty = torch.maximum(foreground, 1 - foreground)
    kinds = [kind for kind in (nucleus, ~nucleus) if kind.any()]
    share = min((certainty[kind] >= confidence).double().mean() for kind in kinds) if len(kinds) == 2 else 0
    sure = torch.zeros_like(nucleus)
    if share > 0:
        for kind in kinds:
            sure |= kind & (certainty >= certainty[kind].double().quantile(1 - share).to(certainty.dtype))
    target = torch.cat([nucleus.to(told.dtype), told[:, 1:]], dim=1)
    return logits.float().masked_fill(~sure, OUT), target * sure, sure.float().mean().item()


def teacher_ramp(progress: float, length: float) -> float:
    """``exp(-5 (1 - t)^2)``, t from 0 to 1 within ``length`` of the training (Laine & Aila, arXiv:1610.02242)."""
    return math.exp(-5.0 * (1.0 - min(1.0, progress / max(length, 1e-6))) ** 2)
