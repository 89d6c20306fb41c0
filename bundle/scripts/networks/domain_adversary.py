from __future__ import annotations

from collections.abc import Sequence

import ignite.distributed as idist
import torch
import torch.nn.functional as F
from scripts.errors import DataError
from scripts.networks.regions import ALIGNED_BY, region_shares
from scripts.networks.style import StyleJitter
from torch import nn
from torch.nn.utils import parametrizations

__all__ = [
    "ALIGNED_AT",
    "CGRL",
    "MODES",
    "AdversarialModel",
    "DomainAdversary",
    "DomainDiscriminator",
    "check_aligned_at",
    "domain_coefficients",
    "encoder_level",
    "reverse_gradient",
]

# mode -> CGRL coefficient of the primary and of each auxiliary domain; "single" trains on the primary alone
MODES: dict[str, tuple[float, float] | None] = {
    "ama": (0.0, 1.0),
    "grl": (1.0, 1.0),
    "signed": (-1.0, 1.0),
    "joint": (0.0, 0.0),
    "single": None,
}
# whose features are aligned
ALIGNED_AT = ("decoder", "encoder")


def domain_coefficients(mode: str, num_domains: int) -> list[float]:
    """
    CGRL coefficients by domain (primary first) of a named mode, see ``MODES``.

    Raises:
        ValueError: for an unknown mode.
        DataError: for one of several domains, where there is the primary alone.
    """
    if mode not in MODES:
        raise ValueError(f"mode '{mode}' is unknown; use one of {', '.join(MODES)}")
    pair = MODES[mode]
    if pair is None:
        return [0.0] * num_domains
    if num_domains < 2:
        hint = "Train with --mode single, or name others with --auxiliary"
        raise DataError("mode", f"'{mode}' learns from auxiliary domains too, and there is the primary alone", hint)
    return [pair[0]] + [pair[1]] * (num_domains - 1)


class _ReverseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(scale)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        (scale,) = ctx.saved_tensors
        return -grad * scale.view(-1, *[1] * (grad.dim() - 1)).to(grad.dtype), None


def reverse_gradient(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """
    Identity forward; backward, sample i of the batch gets ``-scale[i]`` times its gradient.

    Args:
        x: (B, ...) features.
        scale: (B,) factors; 0 stops the gradient of a sample at exactly zero, negative ones let it pass unreversed.

    The reversal is that of Ganin et al., https://arxiv.org/abs/1505.07818; the factor per sample is what CGRL adds.
    """
    return _ReverseGradient.apply(x, scale)


class CGRL(nn.Module):
    """
    Conditional Gradient Reversal Layer: ``grad_in = -strength * coefficients[domain] * grad_out``.

    Args:
        coefficients: one per domain, primary first. 0 for the primary and 1 for auxiliaries is AMA-SAM's selective
            alignment: auxiliary features are pushed to lose their domain, the primary's are left to its task.
        reverses: False scales the gradient likewise, and leaves its sign: for what is to be made small.

    ``strength`` is lambda: 0 when built, set by the training schedule.
    """

    def __init__(self, coefficients: Sequence[float], reverses: bool = True) -> None:
        super().__init__()
        self.sign = 1.0 if reverses else -1.0
        self.register_buffer("coefficients", torch.tensor(list(coefficients), dtype=torch.float32))
        self.strength = 0.0

    def forward(self, x: torch.Tensor, domain: torch.Tensor) -> torch.Tensor:
        """(B, ...) features and (B,) domain indices -> the same features."""
        return reverse_gradient(x, self.sign * self.strength * self.coefficients[domain])


class DomainDiscriminator(nn.Module):
    """
    Tells from which domain features come, separately for each region of the image, such as nuclei and background.

    Features are embedded point by point and averaged over each region, so neither how many nuclei an image holds nor
    how large they are is what the discriminator can read. It has no BatchNorm: samples are judged alone.

    Args:
        in_channels: channels of the features.
        num_domains: K, the number of domains.
        hidden: width of the embedding.
        aligned_by: regions, a key of ``regions.ALIGNED_BY``.
        spectral_norm: no layer changes a difference by more than a factor of 1 (Miyato et al., arXiv:1802.05957).
    """

    def __init__(
        self,
        in_channels: int,
        num_domains: int,
        hidden: int = 64,
        aligned_by: str = "region",
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        if aligned_by not in ALIGNED_BY:
            raise ValueError(f"aligned_by must be one of {', '.join(ALIGNED_BY)}, got {aligned_by!r}")
        self.aligned_by = aligned_by
        self.embed = nn.Sequential(
            nn.Conv2d(in_channels, hidden, 1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(hidden, hidden, 1),
            nn.LeakyReLU(0.2, inplace=True),
        )
        self.classify = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden, hidden), nn.LeakyReLU(0.2, inplace=True), nn.Linear(hidden, num_domains))
            for _ in range(ALIGNED_BY[aligned_by])
        )
        # PyTorch's default shrinks the differences between samples at every layer, so much that the discriminator
        # judged by the batch's proportions alone for hundreds of steps, and CGRL had nothing to reverse
        for layer in list(self.modules()):
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(layer.weight, a=0.2)
                nn.init.zeros_(layer.bias)
                if spectral_norm:
                    parametrizations.spectral_norm(layer)

    def forward(self, x: torch.Tensor, foreground: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            x: (B, C, h, w) features.
            foreground: (B, 1, H, W) nuclei mask in {0, 1}, at any resolution.

        Returns:
            logits (B, R, K) for R regions, and their weights (B, R): 0 where a region does not occur in the sample.
        """
        embedded = self.embed(x)
        shares = region_shares(foreground.to(embedded.dtype), x.shape[2:], self.aligned_by)
        logits, weights = [], []
        for share, classify in zip(shares.split(1, dim=1), self.classify):
            area = share.sum(dim=(2, 3))
            logits.append(classify((embedded * share).sum(dim=(2, 3)) / area.clamp(min=1e-6)))
            weights.append((area > 0).to(embedded.dtype))
        return torch.stack(logits, dim=1), torch.cat(weights, dim=1)


class DomainAdversary(nn.Module):
    """
    A domain discriminator that sees features through CGRL, and its loss.

    Minimising the loss trains the discriminator on all domains, and, through the reversed gradient, makes the features
    of each domain with a positive coefficient harder to tell apart. Every domain of a batch counts alike, whatever its
    share, so ignorance costs ln K. With several processes the batch is that of all together, and each one's loss is its
    part of the sum.

    Args:
        in_channels: channels of the aligned features.
        coefficients: CGRL coefficient of each domain, primary first.
        hidden, aligned_by, spectral_norm: see ``DomainDiscriminator``.
    """

    def __init__(
        self,
        in_channels: int,
        coefficients: Sequence[float],
        hidden: int = 64,
        aligned_by: str = "region",
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        self.cgrl = CGRL(coefficients)
        self.discriminator = DomainDiscriminator(in_channels, len(coefficients), hidden, aligned_by, spectral_norm)

    def forward(
        self, aligned: torch.Tensor, domain: torch.Tensor, foreground: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            aligned: (B, C, h, w) features.
            domain: (B,) domain indices.
            foreground: (B, 1, H, W) nuclei mask in {0, 1}.

        Returns:
            the domain cross-entropy, a scalar (this process' part, see above), and for each sample the domain judged
            most probable, (B,).
        """
        logits, weights = self.discriminator(self.cgrl(aligned, domain), foreground)
        losses = F.cross_entropy(logits.flatten(0, 1), domain.repeat_interleave(logits.shape[1]), reduction="none")
        by_sample = (losses.view_as(weights) * weights).sum(1) / weights.sum(1).clamp(min=1e-6)
        counts = idist.all_reduce(domain.bincount(minlength=len(self.cgrl.coefficients)))
        loss = (by_sample / counts[domain]).sum() / (counts > 0).sum()
        judged = (logits.detach().softmax(-1) * weights.unsqueeze(-1)).sum(1).argmax(-1)
        return loss, judged


def encoder_level(encoder: nn.Module, stride: int) -> int:
    """Which of the encoder's features, the last one, has that stride; DataError where none has."""
    levels = [i for i, each in enumerate(encoder.strides) if each == stride]
    if not levels:
        known = ", ".join(map(str, sorted(set(encoder.strides))))
        raise DataError("aligned_stride", f"the encoder has no features at stride {stride}", f"It has them at {known}.")
    return levels[-1]


class AdversarialModel(nn.Module):
    """
    What is trained: the segmentation network together with what aligns domains (one module, so DDP sees one forward).

    Args:
        network: an ``AMASAM``.
        adversary: what aligns, a ``DomainAdversary`` or a ``DomainDiscrepancy``; None trains without any, as mode
            "single" does.
        style_jitter: probability that features are given another style, see :class:`StyleJitter`.
        predicted_regions: the discriminator's nuclei are those that the network finds, for all domains alike, and not
            those of labels: where some domain has none.
        aligned_at: "decoder" aligns the features that the decoder says, "encoder" those of the encoder at
            ``aligned_stride``, which adapters must lie before.

    Raises:
        DataError: when the encoder is to be aligned and has no adapters, or no features of that stride.
    """

    def __init__(
        self,
        network: nn.Module,
        adversary: DomainAdversary | None = None,
        style_jitter: float = 0.0,
        predicted_regions: bool = False,
        aligned_at: str = "decoder",
        aligned_stride: int = 16,
    ) -> None:
        super().__init__()
        self.level = None
        if aligned_at == "encoder":
            check_aligned_at(aligned_at, network.image_encoder.adapters)
            self.level = encoder_level(network.image_encoder, aligned_stride)
        self.predicted_regions = predicted_regions
        self.network = network
        self.adversary = adversary
        self.style = StyleJitter(style_jitter)

    def forward(
        self,
        image: torch.Tensor,
        domain: torch.Tensor,
        foreground: torch.Tensor,
        features: Sequence[torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """
        Args:
            image: (B, 3, H, W) RGB in [0, 255].
            domain: (B,) domain indices.
            foreground: (B, 1, H, W) nuclei mask in {0, 1}; not read with ``predicted_regions``.
            features: what the encoder's ``begin`` makes of the image, in any precision; without them it is run.

        Returns:
            logits (B, C, H, W), aligned features, domain loss and judged domains (both None without adversary, and the
            latter with a ``DomainDiscrepancy``).
        """
        encoder = self.network.image_encoder
        if features is None:
            features = encoder(image)
        else:
            features = encoder.finish([feature.to(image.dtype) for feature in features])
        features, image = self.style([feature.to(image.dtype) for feature in features], image)
        logits, aligned = self.network.decoder(features, image)
        if self.level is not None:
            aligned = features[self.level]
        if self.adversary is None:
            return logits, aligned, None, None
        if self.predicted_regions:
            foreground = (logits[:, :1].detach() > 0).to(foreground.dtype)
        loss, judged = self.adversary(aligned, domain, foreground)
        return logits, aligned, loss, judged


def check_aligned_at(aligned_at: str, adapters: str) -> None:
    """Before any image is encoded: DataError where the encoder is to be aligned and has no adapters."""
    if aligned_at == "encoder" and adapters == "none":
        hint = "Train with --adapters late, early or all, or align at the decoder."
        raise DataError("aligned_at", "nothing in the frozen encoder can be moved", hint)
