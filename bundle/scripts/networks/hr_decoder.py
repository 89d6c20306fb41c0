from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

__all__ = ["HRDecoder"]

# channels at each stride, in multiples of `width`: fine levels are narrow because they have the most pixels
_CHANNELS = {1: 1, 2: 2, 4: 4, 8: 6, 16: 8}
# a second convolution only where pixels are few; at strides 1 and 2 it would double the cost of the whole decoder
_CONVOLUTIONS = {1: 1, 2: 1, 4: 2, 8: 2, 16: 2}


def _group_norm(channels: int) -> nn.GroupNorm:
    # normalises each sample alone: no domain's statistics leak into another's, and a sample whose adversarial
    # gradient is zero stays at exactly zero (BatchNorm would mix the samples of a batch)
    return nn.GroupNorm(math.gcd(8, channels), channels)


def _conv_block(in_channels: int, out_channels: int, convolutions: int = 1) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(convolutions):
        layers += [
            nn.Conv2d(in_channels if i == 0 else out_channels, out_channels, 3, padding=1, bias=False),
            _group_norm(out_channels),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class _Level(nn.Module):
    """Upsamples by a learned factor of two, then fuses the skip of the new resolution."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int, convolutions: int) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
        self.fuse = _conv_block(out_channels + skip_channels, out_channels, convolutions)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return self.fuse(torch.cat([self.upsample(x), skip], dim=1))


class HRDecoder(nn.Module):
    """
    High-Resolution Decoder: from the frozen encoder's features to logits at the resolution of the input.

    SAM's own decoder stops at a quarter of the input's resolution and interpolates the mask. Here every step up is
    learned, and no mask is interpolated. At each stride the encoder's features, where it has any, are adapted by a
    1x1 convolution and fused; at strides 2 and 1, where SAM has none, a light stem reads the image itself.

    The features at ``aligned_stride`` are returned beside the logits: they lie behind trainable layers, so a domain
    discriminator that reads them through CGRL can move them (on the encoder's raw output it could not).

    Args:
        in_channels: channels of the encoder's features, fine to coarse.
        strides: their strides in input pixels; each one of 4, 8, 16, several features may share a stride.
        width: channels at full resolution; coarser levels have 2, 4, 6 and 8 times as many.
        out_channels: 1 for the foreground logit alone, 2 to add the distance logit that separates touching nuclei.
        aligned_stride: stride of the features the domain discriminator sees: 4, 8 or 16.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int],
        *,
        width: int = 16,
        out_channels: int = 2,
        aligned_stride: int = 8,
    ) -> None:
        super().__init__()
        if len(in_channels) != len(strides):
            raise ValueError(f"in_channels and strides differ in length: {list(in_channels)} and {list(strides)}")
        if max(strides, default=0) != 16 or not set(strides) <= {4, 8, 16}:
            raise ValueError(f"strides must be among 4, 8, 16 and hold 16, got {list(strides)}")
        if aligned_stride not in (4, 8, 16):
            raise ValueError(f"aligned_stride must be 4, 8 or 16, got {aligned_stride}")
        if width < 1 or out_channels not in (1, 2):
            raise ValueError(f"width must be at least 1 and out_channels 1 or 2, got {width} and {out_channels}")
        channels = {stride: width * factor for stride, factor in _CHANNELS.items()}
        self.out_channels = out_channels
        self.aligned_channels = channels[aligned_stride]
        self.aligned_level = [16, 8, 4].index(aligned_stride)

        self.feature_strides = [int(s) for s in strides]
        self.adapters = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, channels[s], 1, bias=False), _group_norm(channels[s]))
            for c, s in zip(in_channels, strides)
        )
        skips = {s: channels[s] * self.feature_strides.count(s) for s in (16, 8, 4)}
        self.stem1 = _conv_block(3, channels[1])
        self.stem2 = nn.Sequential(
            nn.Conv2d(channels[1], channels[2], 3, stride=2, padding=1, bias=False),
            _group_norm(channels[2]),
            nn.ReLU(inplace=True),
        )
        skips.update({2: channels[2], 1: channels[1]})
        self.coarse = _conv_block(skips[16], channels[16], _CONVOLUTIONS[16])
        self.levels = nn.ModuleList(
            _Level(channels[2 * s], skips[s], channels[s], _CONVOLUTIONS[s]) for s in (8, 4, 2, 1)
        )
        self.head = nn.Conv2d(channels[1], out_channels, 1)

    def forward(self, features: list[torch.Tensor], image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            features: the encoder's features, fine to coarse, each (B, C_i, H / stride_i, W / stride_i).
            image: (B, 3, H, W) RGB in [0, 255].

        Returns:
            logits (B, out_channels, H, W) and the aligned features (B, aligned_channels, H / s, W / s).
        """
        # convolutions on a CPU are faster this way, and the format of the input decides that of all that follows
        image = image.contiguous(memory_format=torch.channels_last)
        adapted: list[torch.Tensor] = []
        for i, adapter in enumerate(self.adapters):
            adapted.append(adapter(features[i]))
        fine = self.stem1(image / 127.5 - 1.0)
        half = self.stem2(fine)

        x = self.coarse(self._skip(adapted, 16, image))
        trunk = [x]
        skips = [self._skip(adapted, 8, image), self._skip(adapted, 4, image), half, fine]
        for i, level in enumerate(self.levels):
            x = level(x, skips[i])
            trunk.append(x)
        return self.head(x), trunk[self.aligned_level]

    def _skip(self, adapted: list[torch.Tensor], stride: int, image: torch.Tensor) -> torch.Tensor:
        """All adapted features of a stride, or no channels at all where the encoder has none (a plain ViT at 8, 4)."""
        same: list[torch.Tensor] = []
        for i, feature_stride in enumerate(self.feature_strides):
            if feature_stride == stride:
                same.append(adapted[i])
        if len(same) == 0:
            return image.new_zeros([image.shape[0], 0, image.shape[2] // stride, image.shape[3] // stride])
        return torch.cat(same, dim=1)
