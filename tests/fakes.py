from __future__ import annotations

import torch
from torch import nn


class TinyEncoder(nn.Module):
    """A frozen encoder's interface on three random convolutions, so that tests of the rest need no SAM."""

    channels, strides, size_multiple, backbone_type = (4, 6, 8), (4, 8, 16), 16, "tiny"

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, c, s, stride=s) for c, s in zip(self.channels, self.strides))
        self.requires_grad_(False)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        features: list[torch.Tensor] = []
        for layer in self.layers:
            features.append(layer(image / 255.0))
        return features
