"""One training step on losses that are known: a network of one weight, domains by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from monai.data import MetaTensor
from scripts.training import iteration
from scripts.training.iteration import AdversarialIteration, adversarial_ramp

LOSSES = torch.tensor([1.0, 2.0, 4.0, 8.0])
DOMAINS = torch.tensor([0, 1, 2, 0])


def _cgrl(*coefficients: float) -> SimpleNamespace:
    return SimpleNamespace(strength=None, coefficients=torch.tensor(coefficients or (0.0, 1.0, 1.0)))


class OneWeight(torch.nn.Module):
    """Its one weight scales the losses; the domain loss, with an adversary, is half of it."""

    def __init__(self, adversary: bool) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.adversary = SimpleNamespace(cgrl=_cgrl()) if adversary else None

    def forward(self, image, domain, mask, features):
        assert mask.shape == (4, 1, 4, 4), "the foreground alone"
        self.features = features
        aligned = self.weight * torch.ones(1)
        logits = aligned * torch.ones(len(image), 1, 4, 4)
        return logits, aligned, None if self.adversary is None else aligned.sum() * 0.5, None


def step(
    run: AdversarialIteration,
    adversary: bool = False,
    number: int = 1,
    image: torch.Tensor | None = None,
    make: type[OneWeight] = OneWeight,
    **more,
) -> tuple[dict, OneWeight]:
    """A step's output, and the network with the gradient that the optimizer saw."""
    network = make(adversary)
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
    batch = {
        "image": torch.zeros(4, 3, 4, 4) if image is None else image,
        "target": torch.ones(4, 2, 4, 4),
        "domain": DOMAINS,
        **more,
    }
    return run(engine, batch), network


@pytest.fixture(autouse=True)
def self_tests(monkeypatch) -> list:
    """Calls of the gradient self-test, which wants the real network."""
    calls: list = []
    monkeypatch.setattr(iteration, "gradient_self_test", lambda *arguments: calls.append(arguments))
    return calls


def test_the_first_step_of_a_run_tests_the_gradients(self_tests):
    run = AdversarialIteration()
    step(run)
    assert not self_tests, "there is no adversary"
    for number in (1, 2):
        step(run, True, number)
        assert len(self_tests) == 1


@pytest.mark.parametrize("weight, mean", [(1.0, 15 / 4), (0.25, (1 + 0.5 + 1 + 8) / 2.5), (0.0, 9 / 2)])
def test_auxiliary_samples_are_weighted_and_the_primarys_are_not(weight, mean):
    output, _ = step(AdversarialIteration(auxiliary_weight=weight))
    torch.testing.assert_close(output["segmentation_loss"], torch.tensor(mean))
    torch.testing.assert_close(output["loss"], torch.tensor(mean))


def test_samples_without_labels_have_no_segmentation_loss_and_no_dice():
    output, _ = step(AdversarialIteration(labelled=[True, False, True]))
    torch.testing.assert_close(output["segmentation_loss"], torch.tensor((1 + 4 + 8) / 3))
    assert output["dice"].isnan().tolist() == [False, True, False, False]
    output, _ = step(AdversarialIteration(labelled=[False, True, True]))
    torch.testing.assert_close(output["segmentation_loss"], torch.tensor((2 + 4) / 2))


def test_the_ramp_goes_from_nothing_in_the_first_step_to_all_in_the_last():
    strengths = [step(AdversarialIteration(lambda_max=0.3), True, number)[0]["lambda"] for number in range(1, 21)]
    assert strengths[0] == 0 and strengths[-1] == adversarial_ramp(1, 0.3) and strengths == sorted(set(strengths))
    output, network = step(AdversarialIteration(lambda_max=0.3), True, 7)
    assert network.adversary.cgrl.strength == output["lambda"] == strengths[6]


def test_what_is_told_of_lambda_is_what_is_reversed():
    class Joint(OneWeight):
        def __init__(self, adversary: bool) -> None:
            super().__init__(adversary)
            self.adversary.cgrl = _cgrl(0.0, 0.0, 0.0)

    assert (
        step(AdversarialIteration(), True, 7, make=Joint)[0]["lambda"]
        == 0
        < step(AdversarialIteration(), True, 7)[0]["lambda"]
    )


def test_the_domain_loss_is_added_once():
    assert step(AdversarialIteration())[0]["lambda"] == 0, "without an adversary nothing is reversed"
    output, _ = step(AdversarialIteration(), True)
    assert output["loss"] == output["segmentation_loss"] + 0.5 and output["domain_loss"] == 0.5


@pytest.mark.parametrize("clip_norm, gradient", [(1.0, 1.0), (0.0, 3.75), (10.0, 3.75)])
def test_the_gradient_is_clipped_to_its_norm(clip_norm, gradient):
    _, network = step(AdversarialIteration(clip_norm=clip_norm))
    assert AdversarialIteration().clip_norm == 1
    torch.testing.assert_close(network.weight.grad, torch.tensor([gradient]), rtol=1e-5, atol=1e-5)


def test_a_discriminator_does_not_shorten_the_steps_of_the_network():
    class Wrong(OneWeight):
        def __init__(self, adversary: bool) -> None:
            super().__init__(adversary=False)
            self.adversary = torch.nn.Linear(1, 1, bias=False)
            self.adversary.cgrl = _cgrl()

        def forward(self, *arguments):
            logits, aligned, *_ = super().forward(*arguments)
            return logits, aligned, 0.5 * aligned.sum() + 1000 * self.adversary.weight.sum(), None

    for clip_norm in (1.0, 10.0):
        _, network = step(AdversarialIteration(clip_norm=clip_norm), make=Wrong)
        share = 1.0 if clip_norm == 1 else 3.75 + 0.5
        torch.testing.assert_close(network.weight.grad, torch.tensor([share]), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(network.adversary.weight.grad.norm(), torch.tensor(clip_norm), rtol=1e-5, atol=1e-5)


def test_a_loss_that_is_not_finite_names_the_images():
    """Each once, of the samples of the batch."""
    names = ["b.png", "a.png", "b.png", "c.png"]
    known = MetaTensor(torch.zeros(4, 3, 4, 4), meta={"filename_or_obj": names})
    for image, told in ((None, r"\?"), (known, "a.png, b.png, c.png")):
        with pytest.raises(FloatingPointError, match=rf"nan in iteration 7 \(images: {told}\)"):
            step(AdversarialIteration(auxiliary_weight=float("inf")), number=7, image=image)


def test_gradients_are_compared_where_features_are_aligned():
    """A task that pulls along one axis with 3, and an adversary that pulls with 1 along it and 1 across it."""
    aligned = torch.zeros(2, requires_grad=True)
    found = iteration._gradient_relation(3 * aligned[0], aligned.sum(), aligned)
    assert found == pytest.approx({"task": 3, "adversarial": 2**0.5, "cosine": 0.5**0.5})
    for number in range(1, 21):  # epochs of five steps
        found = step(AdversarialIteration(), True, number)[0]["gradients"]
        assert bool(found) == (number in (1, 6, 11, 16)), "in the first step of an epoch"


def test_stored_features_have_their_channels_last_and_the_network_takes_them_first():
    stored = [torch.rand(4, 3, 2, 5), torch.rand(4, 6, 4, 7)]
    _, network = step(AdversarialIteration(), features=stored)
    for given, taken in zip(stored, network.features):
        torch.testing.assert_close(taken, torch.einsum("bhwc->bchw", given))


def test_dice_is_of_the_pixels_that_are_more_probable_than_not():
    logits = torch.tensor([[[-0.5, 0.5, 9.0]], [[-9.0, -0.5, 0.0]], [[-1.0, -1.0, 1.0]]])
    truth = torch.tensor([[[0.0, 1.0, 1.0]], [[0.0, 0.0, 0.0]], [[1.0, 0.0, 1.0]]])
    torch.testing.assert_close(iteration._hard_dice(logits, truth), torch.tensor([1.0, 1.0, 2 / 3]))
