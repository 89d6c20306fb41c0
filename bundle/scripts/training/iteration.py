from __future__ import annotations

import math
from collections.abc import Sequence

import ignite.distributed as idist
import torch
from monai.engines import SupervisedTrainer
from monai.utils import convert_to_tensor
from monai.utils.enums import CommonKeys as Keys
from scripts.networks.domain_adversary import AdversarialModel
from scripts.training.self_test import gradient_self_test

__all__ = ["AdversarialIteration", "adversarial_ramp", "unwrap"]


def adversarial_ramp(progress: float, maximum: float, warmup: float = 0.0, steepness: float = 10.0) -> float:
    """
    Strength of the gradient reversal at ``progress`` in [0, 1]: ``maximum * (2 / (1 + exp(-steepness p)) - 1)``.

    From 0, so that features are not disturbed by a discriminator that has learned nothing yet (Ganin et al. 2016).
    ``warmup`` is a share of the training in which it stays 0; p is the progress in the rest.
    """
    progress = max(0.0, progress - warmup) / (1.0 - warmup)
    return maximum * (2.0 / (1.0 + math.exp(-steepness * progress)) - 1.0)


def unwrap(model: torch.nn.Module) -> AdversarialModel:
    """The model inside a DistributedDataParallel wrapper, or the model itself."""
    return model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model


class AdversarialIteration:
    """
    One training step for MONAI's ``SupervisedTrainer(iteration_update=...)``.

    Loss: the mean segmentation loss over samples (auxiliary ones weighted) plus the domain cross-entropy behind CGRL,
    both over the batch of all processes. The first step of a run is preceded by the gradient self-test.

    Args:
        lambda_max: strength of the gradient reversal at the end of its ramp.
        auxiliary_weight: weight of auxiliary samples in the segmentation loss, the primary's being 1.
        clip_norm: the norms of the network's and of the adversary's gradients are clipped to this; 0 does not clip.
        labelled: of each domain, whether it has labels; samples of the others have no segmentation loss, and their
            ``dice`` is nan. None: all have.
        lambda_warmup: share of the training before that ramp begins, in which the discriminator alone learns.

    Batches hold ``image`` (B, 3, H, W) in [0, 255], ``target`` (B, C, H, W) in [0, 1] and ``domain`` (B,), and, where
    the encoder has been run already, ``features``, a list of (B, H / s_i, W / s_i, C_i). After a step
    ``engine.state.output`` holds image, label (the target), pred (logits), loss, and for :class:`EpochMetrics`
    domain, dice, segmentation_loss, domain_loss, judged, lambda and, in the first step of an epoch, gradient norms.
    """

    def __init__(
        self,
        lambda_max: float = 0.1,
        auxiliary_weight: float = 1.0,
        clip_norm: float = 1.0,
        labelled: Sequence[bool] | None = None,
        lambda_warmup: float = 0.0,
    ) -> None:
        if lambda_max < 0 or auxiliary_weight < 0:
            raise ValueError(f"lambda_max and auxiliary_weight must not be negative: {lambda_max}, {auxiliary_weight}")
        self.lambda_max, self.auxiliary_weight, self.clip_norm = lambda_max, auxiliary_weight, clip_norm
        self.labelled = None if labelled is None else torch.tensor(list(labelled))
        self.lambda_warmup = lambda_warmup
        self._tested = False

    def __call__(self, engine: SupervisedTrainer, batch: dict) -> dict:
        device, state = engine.state.device, engine.state
        # plain tensors: MetaTensor bookkeeping in every operation of the network only costs time
        image, target, domain = (
            convert_to_tensor(batch[key]).to(device, non_blocking=engine.non_blocking)
            for key in (Keys.IMAGE, "target", "domain")
        )
        features = batch.get("features")
        if features is not None:
            features = [
                feature.to(device, non_blocking=engine.non_blocking).permute(0, 3, 1, 2)
                for feature in convert_to_tensor(features)
            ]
        model = unwrap(engine.network)
        engine.network.train()
        progress = (state.iteration - 1) / max(1, state.max_epochs * state.epoch_length - 1)
        strength = 0.0
        if model.adversary is not None:
            if not self._tested:
                gradient_self_test(model, image, domain, target[:, :1], features)
                self._tested = True
            cgrl = model.adversary.cgrl
            cgrl.strength = adversarial_ramp(progress, self.lambda_max, self.lambda_warmup)
            strength = cgrl.strength * cgrl.coefficients.abs().max().item()  # 0 in mode "joint", which reverses nothing

        known = torch.ones_like(domain, dtype=torch.bool)
        if self.labelled is not None:
            known = self.labelled.to(device)[domain]
        engine.optimizer.zero_grad(set_to_none=engine.optim_set_to_none)
        with torch.autocast(device.type, enabled=engine.amp, **engine.amp_kwargs):
            logits, aligned, domain_loss, judged = engine.network(image, domain, target[:, :1], features)
            losses = engine.loss_function(logits, target)
        weights = torch.where(domain == 0, 1.0, self.auxiliary_weight) * known
        # of means over the batch of all processes, each process computes the part of its own samples
        segmentation_loss = (losses * weights).sum() / idist.all_reduce(weights.sum()).clamp(min=1e-6)
        part = segmentation_loss if domain_loss is None else segmentation_loss + domain_loss
        loss = idist.all_reduce(part.detach().clone())
        if not torch.isfinite(loss):
            files = sorted({str(f) for f in getattr(batch[Keys.IMAGE], "meta", {}).get("filename_or_obj", [])})
            raise FloatingPointError(
                f"the loss became {loss.item()} in iteration {state.iteration} (images: {', '.join(files) or '?'}). "
                "Lower --learning_rate or --lambda_max, or look at these images and labels"
            )

        gradients = {}
        first = (state.iteration - 1) % state.epoch_length == 0
        if domain_loss is not None and aligned.requires_grad and first:
            gradients = _gradient_relation(segmentation_loss, domain_loss, aligned)
        scaler = engine.scaler if engine.amp else None
        # DistributedDataParallel averages over processes what is to be summed
        part = part * idist.get_world_size()
        (part if scaler is None else scaler.scale(part)).backward()
        if scaler is not None:
            scaler.unscale_(engine.optimizer)
        if self.clip_norm > 0:
            # the discriminator apart: however wrong it is, it must not shorten the network's steps
            trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
            for of_adversary in (False, True):
                part_of = [p for name, p in trained if name.startswith("adversary.") == of_adversary]
                torch.nn.utils.clip_grad_norm_(part_of, self.clip_norm)
        if scaler is None:
            engine.optimizer.step()
        else:
            scaler.step(engine.optimizer)
            scaler.update()

        return {
            Keys.IMAGE: image,
            Keys.LABEL: target,
            Keys.PRED: logits.detach(),
            Keys.LOSS: loss,
            "domain": domain,
            "dice": _hard_dice(logits.detach()[:, 0], target[:, 0]).masked_fill(~known, torch.nan),
            "segmentation_loss": idist.all_reduce(segmentation_loss.detach().clone()),
            "domain_loss": None if domain_loss is None else idist.all_reduce(domain_loss.detach().clone()),
            "judged": judged,
            "lambda": strength,
            "gradients": gradients,
        }


def _hard_dice(logits: torch.Tensor, foreground: torch.Tensor) -> torch.Tensor:
    """(B,) Dice of thresholded logits; 1 where both are empty."""
    mask = (logits > 0).flatten(1).float()
    truth = foreground.flatten(1)
    total = mask.sum(1) + truth.sum(1)
    return torch.where(total > 0, 2 * (mask * truth).sum(1) / total.clamp(min=1), torch.ones_like(total))


def _gradient_relation(
    segmentation_loss: torch.Tensor, domain_loss: torch.Tensor, aligned: torch.Tensor
) -> dict[str, float]:
    """Norms of the task's and the adversary's gradient at the aligned features, and the cosine between them."""
    task, adversarial = (
        torch.autograd.grad(loss, aligned, retain_graph=True)[0].flatten().float()
        for loss in (segmentation_loss, domain_loss)
    )
    products = idist.all_reduce(torch.stack([task @ task, adversarial @ adversarial, task @ adversarial]))
    norms = products[:2].sqrt()
    cosine = products[2] / norms.prod().clamp(min=1e-20)
    return {"task": norms[0].item(), "adversarial": norms[1].item(), "cosine": cosine.item()}
