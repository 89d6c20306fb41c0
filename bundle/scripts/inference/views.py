from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from scripts.nuclei.targets import CHANNELS, usual_targets

__all__ = ["VIEWS", "disagreement", "view_network"]

ENLARGED = 1.25  # docs/experiments.md compares others
# number of views -> enlargement and mirrored axes of each; the first is the image as it is
VIEWS = {
    1: ((1.0, ()),),
    2: ((1.0, ()), (ENLARGED, (-2, -1))),
    4: ((1.0, ()), (1.0, (-2, -1)), (ENLARGED, (-2,)), (ENLARGED, (-1,))),
}
SIDES = {"horizontal": -1, "vertical": -2}  # channels that tell sides apart, and the axis that exchanges these
LEAST = 0.02  # mean probability below which an image has next to no nuclei
SMALLEST = 1e-6  # probability beyond which a logit says nothing more


def view_network(
    network: Callable[[torch.Tensor], torch.Tensor], views: int, size_multiple: int = 32
) -> Callable[[torch.Tensor], torch.Tensor]:
    """
    A network that looks at an image several times, turned and enlarged, and tells how far its answers differ.

    The logits are those of the mean probability over the views (Wang et al., Neurocomputing 2019). The output has one
    channel more than the network's: the standard deviation of the foreground probability, in [0, 0.5].

    Args:
        network: (B, 3, H, W) -> logits (B, C, H, W), foreground first. Its ``targets``, if it has any, tell which
            channels turn over with the image.
        views: 1 gives the network itself back; 2; 4. See :data:`VIEWS`.
        size_multiple: the network takes sides that are multiples of this, so enlarged sides are rounded up to one.

    Raises:
        ValueError: for another number of views.
    """
    if views not in VIEWS:
        raise ValueError(f"views must be one of {', '.join(map(str, VIEWS))}, got {views!r}")
    if views == 1:
        return network
    targets = getattr(network, "targets", None)

    def look(image: torch.Tensor, enlarged: float, dims: tuple[int, ...]) -> torch.Tensor:
        if enlarged == 1:
            return _turned_back(network(image.flip(dims)), dims, targets)
        size = image.shape[-2:]
        larger = tuple(-(-int(side * enlarged) // size_multiple) * size_multiple for side in size)
        # cubic interpolation overshoots at edges
        image = F.interpolate(image, larger, mode="bicubic", align_corners=False).clamp(0, 255)
        logits = _turned_back(network(image.flip(dims)), dims, targets)
        return F.interpolate(logits.float(), size, mode="bilinear", align_corners=False, antialias=True)

    return lambda image: _mean_and_spread([look(image, *view) for view in VIEWS[views]])


def disagreement(answer: torch.Tensor) -> float:
    """
    How far a network's answers to views of an image differ, for its nuclei: an image is not disputed for having many.

    Args:
        answer: (C, H, W) of an image, by :func:`view_network` with several views: foreground first, the spread last.

    Returns:
        mean spread over mean probability, 0 where all answers are the same.
    """
    return float(answer[-1].mean()) / max(float(answer[0].float().sigmoid().mean()), LEAST)


def _turned_back(logits: torch.Tensor, dims: tuple[int, ...], targets: str | None) -> torch.Tensor:
    """Logits of a mirrored image as those of the image; what lay left of a nucleus' middle now lies right of it."""
    logits = logits.flip(dims)
    for channel, name in enumerate(CHANNELS[targets or usual_targets(logits.shape[1])]):
        if SIDES.get(name) in dims:
            logits[:, channel] = -logits[:, channel]
    return logits


def _mean_and_spread(views: list[torch.Tensor]) -> torch.Tensor:
    """Logits (B, C, H, W) of several views to those of their mean probability, and the spread as the last channel."""
    probability = torch.stack([view.float().sigmoid() for view in views])
    spread = probability[:, :, :1].std(dim=0, correction=0)
    return torch.cat([probability.mean(dim=0).logit(eps=SMALLEST), spread], dim=1)
