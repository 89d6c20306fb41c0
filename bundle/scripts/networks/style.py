from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

__all__ = ["StyleJitter"]

GAIN, SHIFT = 0.2, 12.0  # standard deviations of a colour's contrast, relative, and of its brightness in [0, 255]


class StyleJitter(nn.Module):
    """
    Samples of a batch in styles of no training domain, without encoding them again; in training only.

    Mean and standard deviation of each channel of a sample's features are shifted at random, by as much as they differ
    between the samples of the batch, each feature with the given probability (DSU, Li et al., ICLR 2022, "Uncertainty
    modeling for out-of-distribution generalization"). Of the image, which the decoder reads beside the features, each
    colour's contrast and brightness change. A batch of one sample keeps its features.

    Args:
        prob: that the features of a stride are shifted, for each sample; 0 changes nothing, the image neither.
    """

    def __init__(self, prob: float) -> None:
        super().__init__()
        if not 0 <= prob <= 1:
            raise ValueError(f"style_jitter must be a probability, got {prob}")
        self.prob = prob

    def forward(self, features: Sequence[torch.Tensor], image: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Features (B, C_i, h_i, w_i) and image (B, 3, H, W) in [0, 255] -> the same in other styles."""
        if not self.training or self.prob == 0:
            return list(features), image
        colours = len(image), image.shape[1], 1, 1
        gain = 1 + GAIN * torch.randn(colours, device=image.device).clamp(-2, 2)
        middle = image.mean(dim=(2, 3), keepdim=True)
        image = (image - middle) * gain + middle + SHIFT * torch.randn(colours, device=image.device)
        return [self._restyled(feature) for feature in features], image.clamp(0, 255)

    def _restyled(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(dim=(2, 3), keepdim=True)
        deviation = (x.var(dim=(2, 3), keepdim=True) + 1e-6).sqrt()
        chosen = torch.rand(len(x), 1, 1, 1, device=x.device) < self.prob
        new_mean, new_deviation = (
            value + chosen * torch.randn_like(value) * value.std(dim=0, keepdim=True, correction=0)
            for value in (mean, deviation)
        )
        return (x - mean) / deviation * new_deviation + new_mean
