"""What domains are aligned by: the adversary, or, as controls without one, distances of their features."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ignite.distributed as idist
import torch
from scripts.errors import DataError
from scripts.networks.domain_adversary import CGRL, DomainAdversary, encoder_level
from scripts.networks.regions import region_shares
from torch import nn

__all__ = ["DISTANCES", "DomainDiscrepancy", "aligned_channels", "alignment_loss", "coral", "mmd"]

Distance = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
POINTS = 16  # at most so many points of a sample in each direction are compared


def alignment_loss(
    kind: str, in_channels: int, coefficients: Sequence[float], aligned_by: str = "region", spectral_norm: bool = False
) -> nn.Module:
    """
    The module that aligns: :class:`DomainAdversary` for "adversary", else :class:`DomainDiscrepancy`.

    Args:
        kind: "adversary", or a key of :data:`DISTANCES`.
        in_channels, coefficients, aligned_by, spectral_norm: see there.

    Raises:
        DataError: for spectral norm without a discriminator.
    """
    if kind == "adversary":
        return DomainAdversary(in_channels, coefficients, aligned_by=aligned_by, spectral_norm=spectral_norm)
    if spectral_norm:
        raise DataError("spectral_norm", f"alignment_loss {kind} has no discriminator", "Drop one of the two.")
    return DomainDiscrepancy(kind, coefficients, aligned_by)


def aligned_channels(network: nn.Module, aligned_at: str, stride: int) -> int:
    """Channels of what is aligned, see ``AdversarialModel``."""
    if aligned_at == "decoder":
        return network.decoder.aligned_channels
    return network.image_encoder.channels[encoder_level(network.image_encoder, stride)]


class DomainDiscrepancy(nn.Module):
    """
    Distance between the features of the primary and of each auxiliary domain, to be made small; nothing is learned.

    It takes the place of :class:`DomainAdversary`: the gradient of a sample is ``strength * c[domain]`` times that of
    the distance, so with mode ``ama`` auxiliaries go to the primary and the primary stays. Points of the features are
    the samples of the two distributions. With several processes each compares its own share of the batch.

    Args:
        kind: a key of :data:`DISTANCES`.
        coefficients: of each domain, primary first.
        aligned_by: regions, compared apart, a key of ``regions.ALIGNED_BY``.
    """

    def __init__(self, kind: str, coefficients: Sequence[float], aligned_by: str = "region") -> None:
        super().__init__()
        if kind not in DISTANCES:
            raise ValueError(f"alignment_loss must be adversary or one of {', '.join(DISTANCES)}, got {kind!r}")
        self.distance, self.aligned_by = DISTANCES[kind], aligned_by
        self.cgrl = CGRL(coefficients, reverses=False)

    def forward(self, aligned: torch.Tensor, domain: torch.Tensor, foreground: torch.Tensor) -> tuple:
        """
        Args:
            aligned: (B, C, h, w) features.
            domain: (B,) domain indices.
            foreground: (B, 1, H, W) nuclei mask in {0, 1}.

        Returns:
            the mean distance over auxiliary domains and regions, a scalar (this process' part), and None: no domain
            is judged.
        """
        with torch.autocast(aligned.device.type, enabled=False):  # squares of half precision are too coarse
            loss = self._distance(self.cgrl(aligned, domain).float(), domain, foreground)
        return loss / idist.get_world_size(), None

    def _distance(self, x: torch.Tensor, domain: torch.Tensor, foreground: torch.Tensor) -> torch.Tensor:
        shares = region_shares(foreground.float(), x.shape[2:], self.aligned_by)
        step = [max(1, side // POINTS) for side in x.shape[2:]]
        points, shares = (t[..., :: step[0], :: step[1]].flatten(2).transpose(1, 2) for t in (x, shares))
        # channels count alike; their scale is no part of what is aligned
        spread, middle = torch.std_mean(points.detach(), dim=(0, 1))
        points = (points - middle) / spread.clamp(min=1e-6)
        primary = domain == 0
        found = []
        for other in range(1, len(self.cgrl.coefficients)):
            (x1, w1), (x2, w2) = (
                (points[of].flatten(0, 1), shares[of].flatten(0, 1).T) for of in (primary, domain == other)
            )
            areas = w1.sum(dim=1, keepdim=True), w2.sum(dim=1, keepdim=True)
            both = ((areas[0] > 0) & (areas[1] > 0))[:, 0]  # regions that both have
            if both.any():
                found.append(self.distance(x1, x2, (w1 / areas[0])[both], (w2 / areas[1])[both]))
        return torch.cat(found).mean() if found else x.sum() * 0


def coral(x: torch.Tensor, y: torch.Tensor, p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """
    ``|cov(x) - cov(y)|_F^2 / (4 C^2)`` of points (N, C) and (M, C), for each of R regions.

    Sun & Saenko, Deep CORAL, arXiv:1607.01719, equation 1.

    Args:
        x, y: the points.
        p, q: their weights in each region, (R, N) and (R, M), that sum up to 1.

    Returns:
        (R,).
    """
    difference = _covariances(x, p) - _covariances(y, q)
    return difference.square().sum(dim=(1, 2)) / (4 * x.shape[1] ** 2)


def mmd(x: torch.Tensor, y: torch.Tensor, p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """
    Squared maximum mean discrepancy of points (N, C) and (M, C), for each of R regions; arguments as :func:`coral`.

    Gretton et al., A kernel two-sample test (JMLR 13, 2012), equation 5 (the biased estimate, never negative). The
    kernel is the mean of RBF kernels ``exp(-|a - b|^2 / s)``, s the mean squared distance of all points times 1/4, 1/2,
    1, 2 and 4, as in deep adaptation networks (Long et al., arXiv:1502.02791).
    """
    both, weights = torch.cat([x, y]), torch.cat([p, -q], dim=1)
    norms = both.square().sum(dim=1)
    squared = (norms[:, None] + norms[None, :] - 2 * both @ both.T).clamp(min=0)
    widest = torch.exp(-squared / (4 * squared.detach().mean().clamp(min=1e-6)))
    kernels = [widest]
    for _ in range(4):  # half as wide each
        kernels.append(kernels[-1].square())
    return ((weights @ (sum(kernels) / 5)) * weights).sum(dim=1)


def _covariances(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """(R, C, C) of points (N, C) with weights (R, N)."""
    means = weights @ x
    squares = torch.einsum("rn,nc,nd->rcd", weights, x, x)
    return squares - means[:, :, None] * means[:, None, :]


DISTANCES: dict[str, Distance] = {"mmd": mmd, "coral": coral}
