from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from scripts.networks.adapters import Adapter, NoAdapter, adapted_blocks
from scripts.networks.sam_attention import FusedBlock
from torch import Tensor, nn

__all__ = ["SamViT"]


class SamViT(nn.Module):
    """
    SAM's ViT image encoder with taps: built from segment-anything's own parts, so that its checkpoints fit, with a
    faster attention.

    Position embeddings are stored for 1024 x 1024 and interpolated for other sizes.

    Args:
        vit: segment-anything's ``ImageEncoderViT``.
        taps: indexes of the blocks whose output is a feature.
        adapters: which blocks have a trained adapter beside them: "none", "late" (the last half), "early" or "all".

    What comes before the first adapted block is :meth:`begin`, the rest :meth:`finish`.
    """

    def __init__(self, vit: nn.Module, taps: Sequence[int], adapters: str = "none") -> None:
        super().__init__()
        count = len(vit.blocks)
        adapted = adapted_blocks(adapters, [i >= count // 2 for i in range(count)])
        self.first = adapted.index(True) if any(adapted) else count
        self.taps = tuple(taps)
        self.patch_embed = vit.patch_embed
        self.pos_embed = vit.pos_embed
        self.blocks = nn.ModuleList(FusedBlock(block) for block in vit.blocks)
        self.neck = vit.neck
        channels = self.pos_embed.shape[-1]
        self.adapters = nn.ModuleList(Adapter(channels) if it_is else NoAdapter() for it_is in adapted)

    def forward(self, x: Tensor) -> list[Tensor]:
        """
        Args:
            x: normalised image (B, 3, H, W), H and W divisible by 16.

        Returns:
            the tapped blocks' outputs (B, embed_dim, H/16, W/16), then the neck's (B, 256, H/16, W/16).
        """
        return self.finish(self.begin(x))

    def begin(self, x: Tensor) -> list[Tensor]:
        """
        What no adapter changes: of an image as in :meth:`forward`, the features that are done before the first adapted
        block, then its input, unless the last of them is that input; without any adapter, all features.
        """
        x = self.patch_embed(x)  # (B, H/16, W/16, C) here and in the blocks
        position = self.pos_embed
        if position.shape[1:3] != x.shape[1:3]:
            size = (x.shape[1], x.shape[2])
            position = F.interpolate(position.permute(0, 3, 1, 2), size, mode="bicubic", antialias=True)
            position = position.permute(0, 2, 3, 1)
        x = x + position

        done: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            if i < self.first:
                x = block(x)
                if i in self.taps:
                    done.append(x.permute(0, 3, 1, 2))
        if self.first == len(self.blocks):
            done.append(self.neck(x.permute(0, 3, 1, 2)))
        elif self.first - 1 not in self.taps:
            done.append(x.permute(0, 3, 1, 2))
        return done

    def finish(self, begun: list[Tensor]) -> list[Tensor]:
        """The features, from what :meth:`begin` gives."""
        if self.first == len(self.blocks):
            return begun
        features = begun if self.first - 1 in self.taps else begun[:-1]
        features, x = features[:], begun[-1].permute(0, 2, 3, 1)
        for i, (block, adapter) in enumerate(zip(self.blocks, self.adapters)):
            if i >= self.first:
                y = block(x).permute(0, 3, 1, 2)
                x = adapter(x.permute(0, 3, 1, 2), y).permute(0, 2, 3, 1)
                if i in self.taps:
                    features.append(x.permute(0, 3, 1, 2))
        features.append(self.neck(x.permute(0, 3, 1, 2)))
        return features
