"""Parts of an image that domains are compared in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

__all__ = ["ALIGNED_BY", "region_shares"]

# how many regions an image has: all of it; nuclei and background; nuclei, their border, and background
ALIGNED_BY = {"image": 1, "region": 2, "class": 3}
BORDER = 2  # pixels to either side of a nucleus' edge


def region_shares(foreground: torch.Tensor, size: Sequence[int], by: str) -> torch.Tensor:
    """
    What share of each feature point lies in each region; the regions' shares of a point sum up to 1.

    Args:
        foreground: (B, 1, H, W) nuclei mask in {0, 1}; for the border at the resolution of the image.
        size: (h, w) of the features.
        by: a key of :data:`ALIGNED_BY`.

    Returns:
        (B, R, h, w).
    """
    if by == "image":
        return foreground.new_ones(len(foreground), 1, *size)
    if by == "region":
        nuclei = F.adaptive_avg_pool2d(foreground, list(size))
        return torch.cat([nuclei, 1 - nuclei], dim=1)
    outer, background = (F.max_pool2d(x, 2 * BORDER + 1, 1, BORDER) for x in (foreground, 1 - foreground))
    inner = 1 - background
    return F.adaptive_avg_pool2d(torch.cat([inner, outer - inner, 1 - outer], dim=1), list(size))
