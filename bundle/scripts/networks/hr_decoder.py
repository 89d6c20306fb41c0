from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from scripts.errors import DataError
from scripts.networks.decoder import Decoder, interpolate
from scripts.networks.fused import Pointwise, recorded
from torch import nn

__all__ = ["SIZES", "HRDecoder"]

# size -> stride: (channels, convolutions). The finest stride is where the learned levels end; from stride 2 the last
# step is a sub-pixel convolution, which gives each pixel its own weights without any layer at full resolution, where
# most of a decoder's time goes. benchmarks/decoder.py measures them.
SIZES = {
    "light": {16: (96, 1), 8: (64, 1), 4: (32, 1), 2: (16, 1)},
    "standard": {16: (128, 2), 8: (96, 2), 4: (48, 2), 2: (24, 1)},
    "wide": {16: (128, 2), 8: (96, 2), 4: (64, 2), 2: (32, 1), 1: (16, 1)},
    # a baseline: ends where SAM's own decoder ends, so that the others tell what the finer levels bring
    "quarter": {16: (128, 2), 8: (96, 2), 4: (48, 2)},
}


def _group_norm(channels: int) -> nn.GroupNorm:
    # normalises each sample alone: no domain's means and variances leak into another's, and a sample whose adversarial
    # gradient is zero stays at exactly zero (BatchNorm would mix the samples of a batch)
    return nn.GroupNorm(math.gcd(8, channels), channels)


def _conv_block(in_channels: int, out_channels: int, convolutions: int = 1, stride: int = 1) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(convolutions):
        layers += [
            nn.Conv2d(in_channels if i == 0 else out_channels, out_channels, 3, stride, padding=1, bias=False),
            _group_norm(out_channels),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def _pixel_shuffle(x: torch.Tensor, square: int) -> torch.Tensor:
    """PyTorch's, in half the time on a CPU where channels come last; exports keep the one operator."""
    if not torch.jit.is_scripting():
        if not recorded():
            b, c, h, w = x.shape
            pixels = x.permute(0, 2, 3, 1).reshape(b, h, w, c // square**2, square, square)
            return pixels.permute(0, 3, 1, 4, 2, 5).reshape(b, c // square**2, h * square, w * square)
    return F.pixel_shuffle(x, square)


class _Level(nn.Module):
    """Upsamples by a learned factor of two, then fuses what is known at the new resolution."""

    def __init__(self, in_channels: int, out_channels: int, convolutions: int) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
        self.fuse = _conv_block(out_channels, out_channels, convolutions)

    def forward(self, x: torch.Tensor, skips: list[torch.Tensor]) -> torch.Tensor:
        x = self.upsample(x)
        for skip in skips:
            x = x + skip
        return self.fuse(x)


class HRDecoder(Decoder):
    """
    High-Resolution Decoder: from the frozen encoder's features to logits at the resolution of the input.

    SAM's own decoder stops at a quarter of the input's resolution and interpolates the mask. Here every step up is
    learned, and no mask is interpolated. At each stride the encoder's features, where it has any, are adapted by a
    1x1 convolution and added; at strides 2 and 1, where SAM has none, a light stem reads the image itself. Where the
    levels end at stride 2, the stem reads all pixels of each 2x2 square (no pixel is skipped), and the last step is a
    sub-pixel convolution (Shi et al., arXiv:1609.05158). Size ``quarter`` is the exception: it stops at stride 4,
    looks at no pixel of the image, and interpolates as SAM does.

    Where the encoder saw the image at half its resolution (strides twice SAM's), all levels lie at doubled strides too,
    and the stem and the last step take squares of twice the side: what is fine is read from the image itself.

    The features at ``aligned_stride`` are returned beside the logits: they lie behind trainable layers, so a domain
    discriminator that reads them through CGRL can move them (on the encoder's raw output it could not).

    Args:
        in_channels: channels of the encoder's features, fine to coarse.
        strides: their strides in input pixels; each one of 4, 8, 16 (or all twice that), also the same one.
        size: ``light``, ``standard``, ``wide`` or ``quarter``, see :data:`SIZES`.
        out_channels: the foreground logit, and those that separate touching nuclei (``nuclei.targets.CHANNELS``).
        aligned_stride: stride of the features the domain discriminator sees: 4, 8 or 16 (or twice that).
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int],
        *,
        size: str = "standard",
        out_channels: int = 2,
        aligned_stride: int = 16,
    ) -> None:
        if len(in_channels) != len(strides):
            raise ValueError(f"in_channels and strides differ in length: {list(in_channels)} and {list(strides)}")
        shrink = 2 if max(strides, default=0) == 32 else 1  # how much smaller the encoder saw the image
        known = [16 * shrink, 8 * shrink, 4 * shrink]
        if max(strides, default=0) != known[0] or not set(strides) <= set(known):
            raise ValueError(f"strides must be among 4, 8, 16 and hold 16 (or all twice that), got {list(strides)}")
        if aligned_stride not in known:
            problem = f"the decoder has no such level, and {aligned_stride} was asked for"
            raise DataError("aligned_stride", problem, f"It has them at {', '.join(map(str, known[::-1]))}.")
        if size not in SIZES:
            raise ValueError(f"size of the decoder must be one of {', '.join(SIZES)}, got '{size}'")
        if out_channels < 1:
            raise ValueError(f"out_channels must be at least 1, got {out_channels}")
        # in pixels of the picture that the encoder saw
        strides = [stride // shrink for stride in strides]
        channels = {stride: width for stride, (width, _) in SIZES[size].items()}
        convolutions = {stride: number for stride, (_, number) in SIZES[size].items()}
        super().__init__(
            out_channels=out_channels,
            aligned_channels=channels[aligned_stride // shrink],
            settings={"size": size, "out_channels": out_channels, "aligned_stride": aligned_stride},
        )
        self.finest = min(channels)
        self.square = self.finest * shrink  # side in pixels of what the stem reads and the last step gives at once
        self.aligned_level = known.index(aligned_stride)

        self.feature_strides = [int(s) for s in strides]
        self.adapters = nn.ModuleList(
            nn.Sequential(Pointwise(c, channels[s]), _group_norm(channels[s])) for c, s in zip(in_channels, strides)
        )
        self.stem = nn.ModuleList()
        if self.finest < 4:
            self.stem.append(_conv_block(3 * self.square**2, channels[self.finest]))
        if self.finest == 1:
            self.stem.append(_conv_block(channels[1], channels[2], stride=2))
        self.coarse = _conv_block(channels[16], channels[16], convolutions[16])
        self.levels = nn.ModuleList(
            _Level(channels[2 * s], channels[s], convolutions[s]) for s in (8, 4, 2, 1) if s in channels
        )
        steps = self.square**2 if self.finest < 4 else 1
        self.head = nn.Conv2d(channels[self.finest], out_channels * steps, 3, padding=1)

    def forward(self, features: list[torch.Tensor], image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`Decoder`."""
        adapted: list[torch.Tensor] = []
        for i, adapter in enumerate(self.adapters):
            # convolutions on a CPU are faster this way, and the format of the input decides that of all that follows
            adapted.append(adapter(features[i].contiguous(memory_format=torch.channels_last)))
        fine: list[list[torch.Tensor]] = []
        if self.finest < 4:
            x = F.pixel_unshuffle((image / 127.5).sub_(1.0), self.square).contiguous(memory_format=torch.channels_last)
            for stem in self.stem:
                x = stem(x)
                fine.insert(0, [x])

        deepest = self._at(adapted, 16)
        x = deepest[0]
        for feature in deepest[1:]:
            x = x + feature
        x = self.coarse(x)
        trunk = [x]
        skips = [self._at(adapted, 8), self._at(adapted, 4)] + fine
        for i, level in enumerate(self.levels):
            x = level(x, skips[i])
            trunk.append(x)
        logits = self.head(x)
        logits = _pixel_shuffle(logits, self.square) if self.finest < 4 else interpolate(logits, image)
        return logits, trunk[self.aligned_level]

    def _at(self, adapted: list[torch.Tensor], stride: int) -> list[torch.Tensor]:
        """The adapted features of a stride: none where the encoder has none (a plain ViT at 8 and 4)."""
        same: list[torch.Tensor] = []
        for i, feature_stride in enumerate(self.feature_strides):
            if feature_stride == stride:
                same.append(adapted[i])
        return same
