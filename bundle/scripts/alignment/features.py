from __future__ import annotations

import torch
import torch.nn.functional as F
from scripts.errors import DataError
from scripts.networks.adapters import without_adapters
from torch import nn

__all__ = ["REGIONS", "RegionFeatures", "region_means"]

REGIONS = ("nuclei", "background")


class RegionFeatures(nn.Module):
    """
    Features of images, averaged over nuclei and over background apart: before and after what alignment acts on.

    Averaging by region as the discriminator does keeps the number and size of nuclei out of the features.

    Args:
        network: an ``AMASAM``.
        control: a network with the same frozen encoder, such as this one before training or that of a training without
            alignment; its features tell what alignment is to be measured against.

    Raises:
        DataError: when the control has another encoder.
    """

    def __init__(self, network: nn.Module, control: nn.Module | None = None) -> None:
        super().__init__()
        kinds = [each.image_encoder.backbone_type for each in (network, control or network)]
        if kinds[0] != kinds[1]:
            problem = f"the control has the encoder {kinds[1]}, and the model {kinds[0]}"
            raise DataError("control_path", problem, "Give a control that was trained on the same encoder.")
        self.network, self.control = network, control
        self.frozen = without_adapters(network.image_encoder)

    def forward(self, image: torch.Tensor, label: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Args:
            image: (B, 3, H, W) RGB in [0, 255].
            label: (B, 1, H, W), nuclei above 0.

        Returns:
            ``aligned`` (B, 2, C'), of the features that the domain discriminator sees; and ``frozen`` (B, 2, C), of
            the features that the frozen encoder, without adapters, has at their stride and coarser; ``dice``
            (B,) of the foreground that the network finds; and with a control ``control`` (B, 2, C').
        """
        plain = self.frozen(image)
        features = plain if self.network.image_encoder.adapters == "none" else self.network.image_encoder(image)
        logits, aligned = self.network.decoder(features, image)
        foreground = (label > 0).float()
        found = (logits[:, :1] > 0).float()
        dice = 2 * (found * foreground).sum((1, 2, 3)) / (found + foreground).sum((1, 2, 3)).clamp(min=1)
        sources = [feature for feature in plain if feature.shape[-1] <= aligned.shape[-1]]
        frozen = torch.cat([region_means(feature, foreground) for feature in sources], dim=-1)
        means = {"frozen": frozen, "aligned": region_means(aligned, foreground), "dice": dice}
        if self.control is not None:
            encoder = self.control.image_encoder
            features = plain if encoder.adapters == "none" else encoder(image)
            means["control"] = region_means(self.control.decoder(features, image)[1], foreground)
        return means


def region_means(features: torch.Tensor, foreground: torch.Tensor) -> torch.Tensor:
    """
    Means of (B, C, h, w) features over nuclei and background, (B, 2, C) float32; zero for a region that is empty.

    A feature point counts for a region by the share of its area in it.

    Args:
        features: of any stride.
        foreground: (B, 1, H, W) in {0, 1}, at any resolution.
    """
    nuclei = F.adaptive_avg_pool2d(foreground, list(features.shape[2:]))
    shares = torch.cat([nuclei, 1 - nuclei], dim=1).flatten(2)
    sums = torch.einsum("brp,bcp->brc", shares, features.float().flatten(2))
    return sums / shares.sum(dim=2, keepdim=True).clamp(min=1e-6)
