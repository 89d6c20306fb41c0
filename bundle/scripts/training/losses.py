from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from monai.transforms import SobelGradients
from scripts.nuclei.targets import channel_count
from torch import nn

__all__ = ["SegmentationLoss"]

# weight of the slopes' squared error: at the start of a training about half of what the places cost
SLOPES = 20.0


class SegmentationLoss(nn.Module):
    """
    Loss of each sample: Dice and binary cross-entropy of the foreground, and a loss of what separates nuclei.

    - ``distance``: cross-entropy against the normalised distance, a soft target in [0, 1].
    - ``border``: Dice and cross-entropy of the contacts; without Dice, so few pixels would not be learned.
    - ``hv``: in the foreground, cross-entropy against the places, and the squared error of their slopes, as in
      HoVer-Net (Graham et al., MedIA 2019; MONAI's ``HoVerNetLoss``), which makes the step between two nuclei steep.

    Args:
        targets: what is taught, see :func:`scripts.nuclei.targets.make_targets`.
        dice_weight, ce_weight: weights of MONAI's soft Dice loss and of the cross-entropy of the foreground.
        separation_weight: weight of what separates nuclei.

    Raises:
        ValueError: when the targets are not known.
    """

    def __init__(
        self,
        targets: str = "distance",
        dice_weight: float = 1.0,
        ce_weight: float = 1.0,
        separation_weight: float = 1.0,
    ) -> None:
        super().__init__()
        channel_count(targets)
        # smooth terms as in MONAI's defaults; `batch=False` keeps samples, hence domains, apart
        self.dice = DiceLoss(sigmoid=True, reduction="none")
        self.targets = targets
        self.dice_weight, self.ce_weight, self.separation_weight = dice_weight, ce_weight, separation_weight
        self.slopes = [SobelGradients(kernel_size=5, spatial_axes=axis) for axis in (1, 0)]

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) logits and targets in [0, 1] -> (B,) losses."""
        if logits.shape != target.shape:
            raise ValueError(f"logits and target differ in shape: {tuple(logits.shape)} and {tuple(target.shape)}")
        logits = logits.float()
        ce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        loss = self.dice_weight * self._dice(logits, target, 0) + self.ce_weight * ce[:, 0].mean(dim=(1, 2))
        if logits.shape[1] > 1:
            loss = loss + self.separation_weight * self._separation(logits, target, ce)
        return loss

    def _separation(self, logits: torch.Tensor, target: torch.Tensor, ce: torch.Tensor) -> torch.Tensor:
        if self.targets == "distance":
            return ce[:, 1].mean(dim=(1, 2))
        if self.targets == "border":
            return self._dice(logits, target, 1) + ce[:, 1].mean(dim=(1, 2))
        nuclei = target[:, 0]
        pixels = nuclei.sum(dim=(1, 2)).clamp(min=1)
        places = ce[:, 1:].mean(dim=1)
        error = sum(
            (slope(2 * logits[:, channel].sigmoid()) - slope(2 * target[:, channel])) ** 2
            for channel, slope in enumerate(self.slopes, start=1)
        )
        return (nuclei * (places + SLOPES * error)).sum(dim=(1, 2)) / pixels

    def _dice(self, logits: torch.Tensor, target: torch.Tensor, channel: int) -> torch.Tensor:
        one = slice(channel, channel + 1)
        return self.dice(logits[:, one], target[:, one]).flatten(1).mean(1)
