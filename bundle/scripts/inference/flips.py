from __future__ import annotations

from collections.abc import Callable

import torch
from scripts.nuclei.targets import CHANNELS, usual_targets
from torch import nn

__all__ = ["FLIPS", "flip_network"]

FLIPS = ("none", "features", "images")
VIEWS = ((), (-1,), (-2,), (-2, -1))  # as it is, mirrored, upside down, both
SIDES = {"horizontal": -1, "vertical": -2}  # channels that tell sides apart, and the axis that exchanges these
SMALLEST = 1e-6  # probability beyond which a logit says nothing more


def flip_network(network: nn.Module, flips: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """
    A network that looks at an image in four orientations and tells how far its answers differ.

    Its output has one channel more than the network's: the standard deviation of the foreground probability over the
    orientations, in [0, 0.5]. With ``images`` the network runs on each flip of the image, and the logits are those of
    the mean probability (Wang et al., Neurocomputing 2019). With ``features`` the encoder runs once and the decoder on
    flips of its features and of the image. Features of a flipped image are not the flipped features, so the decoder's
    other answers are worse: the logits then are those without flips.

    Args:
        network: (B, 3, H, W) -> logits (B, C, H, W), foreground first; for ``features`` an ``AMASAM``. Its ``targets``,
            if it has any, tell which channels turn over with a flip.
        flips: ``none`` gives the network itself back; ``features``; ``images``.

    Raises:
        ValueError: for another word, or when the network has no encoder and decoder of its own.
    """
    if flips not in FLIPS:
        raise ValueError(f"flips must be one of {', '.join(FLIPS)}, got {flips!r}")
    if flips == "none":
        return network
    if flips == "images":
        targets = getattr(network, "targets", None)
        return lambda x: _mean_and_spread([_flipped_back(network(x.flip(dims)), dims, targets) for dims in VIEWS])
    if not (hasattr(network, "image_encoder") and hasattr(network, "decoder")):
        raise ValueError(f"{type(network).__name__} has no features to flip: use flips images, or none")

    def forward(x: torch.Tensor) -> torch.Tensor:
        features = network.image_encoder(x)
        views = [
            network.decoder([feature.flip(dims) for feature in features], x.flip(dims))[0].flip(dims) for dims in VIEWS
        ]
        return torch.cat([views[0].float(), _mean_and_spread(views)[:, -1:]], dim=1)

    return forward


def _flipped_back(logits: torch.Tensor, dims: tuple[int, ...], targets: str | None) -> torch.Tensor:
    """Logits of a flipped image as those of the image; what lay left of a nucleus' middle now lies right of it."""
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
