from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import nn

__all__ = ["SegmentationLoss"]


class SegmentationLoss(nn.Module):
    """
    Loss of each sample: Dice and binary cross-entropy of the foreground, cross-entropy of the distance channel.

    Args:
        dice_weight, ce_weight: weights of MONAI's soft Dice loss and of the cross-entropy of the foreground.
        distance_weight: weight of the cross-entropy against the normalised distance, a soft target in [0, 1].
    """

    def __init__(self, dice_weight: float = 1.0, ce_weight: float = 1.0, distance_weight: float = 1.0) -> None:
        super().__init__()
        # smooth terms as in MONAI's defaults; `batch=False` keeps samples, hence domains, apart
        self.dice = DiceLoss(sigmoid=True, reduction="none")
        self.dice_weight, self.ce_weight, self.distance_weight = dice_weight, ce_weight, distance_weight

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) logits and targets in [0, 1] (foreground, then distance if C is 2) -> (B,) losses."""
        if logits.shape != target.shape:
            raise ValueError(f"logits and target differ in shape: {tuple(logits.shape)} and {tuple(target.shape)}")
        logits = logits.float()
        ce = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(dim=(2, 3))
        loss = self.dice_weight * self.dice(logits[:, :1], target[:, :1]).flatten(1).mean(1) + self.ce_weight * ce[:, 0]
        if logits.shape[1] > 1:
            loss = loss + self.distance_weight * ce[:, 1]
        return loss
