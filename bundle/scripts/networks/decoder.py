"""What the network and the trainer ask of any decoder."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["Decoder", "interpolate"]


class Decoder(nn.Module):
    """
    What turns a frozen encoder's features into logits; the part of the network that is trained.

    Args:
        out_channels: of the logits: the foreground, and those that separate touching nuclei.
        aligned_channels: of the features that a domain discriminator reads.
        settings: plain values with which the constructor, beside the encoder's channels and strides, makes the same
            decoder again; a model file holds them.
    """

    def __init__(self, *, out_channels: int, aligned_channels: int, settings: dict[str, Any]) -> None:
        super().__init__()
        self.out_channels, self.aligned_channels, self.settings = out_channels, aligned_channels, settings

    def forward(self, features: list[torch.Tensor], image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            features: the encoder's, fine to coarse, each (B, C_i, H / stride_i, W / stride_i).
            image: (B, 3, H, W) RGB in [0, 255].

        Returns:
            logits (B, out_channels, H, W), and the aligned features (B, aligned_channels, H / s, W / s), which lie
            behind trained layers.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward")


def interpolate(logits: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Logits (B, C, h, w) at the size of the image (B, 3, H, W), bilinearly, as SAM brings its masks to size."""
    return F.interpolate(logits, [image.shape[2], image.shape[3]], mode="bilinear", align_corners=False)
