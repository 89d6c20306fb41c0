"""Before a training: does the adversary's gradient do what its coefficients say?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scripts.networks.adapters import is_adapter
from scripts.networks.domain_adversary import AdversarialModel

__all__ = ["AdversaryError", "gradient_self_test"]


class AdversaryError(RuntimeError):
    """Domain alignment is set up so that it would do nothing, or act where it must not."""


def gradient_self_test(
    model: AdversarialModel,
    image: torch.Tensor,
    domain: torch.Tensor,
    foreground: torch.Tensor,
    features: Sequence[torch.Tensor] | None = None,
) -> dict[int, float]:
    """
    Show on one batch that the adversarial gradient is where CGRL says, and nowhere else.

    It must be non-zero on the aligned features of every sample whose coefficient is not 0, exactly zero on the others,
    non-zero on trainable weights before the discriminator, adapters among them, and absent from the frozen encoder. It
    leaves no gradients behind.

    Args:
        model: with an adversary.
        image, domain, foreground, features: a batch, see ``AdversarialModel.forward``.

    Returns:
        mean gradient norm at the aligned features by domain index, at strength 1.

    Raises:
        AdversaryError: says which of these fails, and why that usually is.
    """
    cgrl = model.adversary.cgrl
    if not cgrl.coefficients.any():
        return {}
    strength, cgrl.strength = cgrl.strength, 1.0
    # a step of spectral norm's power iteration would be one that an uninterrupted run does not take
    training = model.adversary.training
    model.adversary.eval()
    try:
        with torch.random.fork_rng():  # a resumed run, which tests again, must draw what the first one drew
            _, aligned, domain_loss, _ = model(image, domain, foreground, features)
        trainable = [p for p in model.network.parameters() if p.requires_grad]
        encoder = model.network.image_encoder
        frozen = [n for n, p in encoder.named_parameters() if p.requires_grad and not is_adapter(n)]
        adapters = {id(p) for n, p in encoder.named_parameters() if is_adapter(n)}
        if frozen:
            raise AdversaryError(f"the encoder must be frozen, but {frozen[0]} and {len(frozen) - 1} others train")
        if not aligned.requires_grad or not trainable:
            raise AdversaryError(
                "no trainable layer lies before the domain discriminator, so CGRL would change nothing. "
                "Let it read the decoder's adapted features, or an encoder's behind its adapters"
            )
        *by_weight, by_feature = torch.autograd.grad(domain_loss, [*trainable, aligned], allow_unused=True)
    finally:
        cgrl.strength = strength
        model.adversary.train(training)
    norms = by_feature.flatten(1).float().norm(dim=1)
    coefficients = cgrl.coefficients[domain]
    if norms[coefficients == 0].any():
        raise AdversaryError("samples of a domain with CGRL coefficient 0 receive an adversarial gradient")
    dead = (coefficients != 0) & (norms == 0)
    if dead.any():
        raise AdversaryError(
            f"domain {domain[dead][0].item()} has CGRL coefficient {coefficients[dead][0].item():g} but receives no "
            "adversarial gradient: the discriminator is dead (all its activations zero?)"
        )
    if (coefficients != 0).any() and not any(g is not None and g.any() for g in by_weight):
        raise AdversaryError("the adversarial gradient reaches no trainable weight of the network")
    reached = [g is not None and bool(g.any()) for p, g in zip(trainable, by_weight) if id(p) in adapters]
    if (coefficients != 0).any() and reached and not any(reached):
        raise AdversaryError("the adversarial gradient reaches no adapter: the decoder does not read what they change")
    return {int(d): norms[domain == d].mean().item() for d in domain.unique()}
