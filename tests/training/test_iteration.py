"""One training step on losses that are known: a network of one weight, domains by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from scripts.training.iteration import AdversarialIteration, adversarial_ramp

LOSSES = torch.tensor([1.0, 2.0, 4.0, 8.0])
DOMAINS = torch.tensor([0, 1, 2, 0])


class OneWeight(torch.nn.Module):
    """Its one weight scales the losses; the domain loss, with an adversary, is half of it."""

    def __init__(self, adversary: bool) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.adversary = SimpleNamespace(cgrl=SimpleNamespace(strength=None)) if adversary else None

    def forward(self, image, domain, mask, features):
        aligned = self.weight * torch.ones(1)
        logits = aligned * torch.ones(len(image), 1, 4, 4)
        return logits, aligned, None if self.adversary is None else aligned.sum() * 0.5, None


def step(iteration: AdversarialIteration, adversary: bool = False, number: int = 1) -> tuple[dict, OneWeight]:
    """A step's output, and the network with the gradient that the optimizer saw."""
    network = OneWeight(adversary)
    iteration._tested = True  # the gradient self-test wants the real network
    engine = SimpleNamespace(
        state=SimpleNamespace(device=torch.device("cpu"), iteration=number, max_epochs=4, epoch_length=5),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.0),
        loss_function=lambda logits, target: LOSSES * logits.mean((1, 2, 3)),
        non_blocking=False,
        optim_set_to_none=True,
        amp=False,
        amp_kwargs={},
    )
    batch = {"image": torch.zeros(4, 3, 4, 4), "target": torch.ones(4, 1, 4, 4), "domain": DOMAINS}
    return iteration(engine, batch), network


@pytest.mark.parametrize("weight, mean", [(1.0, 15 / 4), (0.25, (1 + 0.5 + 1 + 8) / 2.5), (0.0, 9 / 2)])
def test_auxiliary_samples_are_weighted_and_the_primarys_are_not(weight, mean):
    output, _ = step(AdversarialIteration(auxiliary_weight=weight))
    torch.testing.assert_close(output["segmentation_loss"], torch.tensor(mean))
    torch.testing.assert_close(output["loss"], torch.tensor(mean))


def test_the_ramp_goes_from_nothing_in_the_first_step_to_all_in_the_last():
    strengths = [step(AdversarialIteration(lambda_max=0.3), True, number)[0]["lambda"] for number in range(1, 21)]
    assert strengths[0] == 0 and strengths[-1] == adversarial_ramp(1, 0.3) and strengths == sorted(set(strengths))
    output, network = step(AdversarialIteration(lambda_max=0.3), True, 7)
    assert network.adversary.cgrl.strength == output["lambda"] == strengths[6]


def test_the_domain_loss_is_added_once():
    output, _ = step(AdversarialIteration(), True)
    assert output["loss"] == output["segmentation_loss"] + 0.5 and output["domain_loss"] == 0.5


@pytest.mark.parametrize("clip_norm, gradient", [(1.0, 1.0), (0.0, 3.75), (10.0, 3.75)])
def test_the_gradient_is_clipped_to_its_norm(clip_norm, gradient):
    _, network = step(AdversarialIteration(clip_norm=clip_norm))
    torch.testing.assert_close(network.weight.grad, torch.tensor([gradient]), rtol=1e-5, atol=1e-5)
