"""The mean teacher on numbers that are known."""

from __future__ import annotations

import pytest
import torch
from fakes import TinyEncoder
from scripts.networks.ama_sam import AMASAM
from scripts.networks.hr_decoder import HRDecoder
from scripts.training.averaged_weights import AveragedWeights
from scripts.training.teacher import MeanTeacher, consistency, teacher_ramp


def _network(targets: str = "hv") -> AMASAM:
    channels = {"hv": 3, "distance": 2, "border": 2, "foreground": 1}[targets]
    return AMASAM(TinyEncoder(), HRDecoder((4, 6, 8), (4, 8, 16), size="light", out_channels=channels), targets)


def test_the_average_forgets_how_training_began_and_then_looks_back_as_far_as_it_is_told():
    network = torch.nn.Linear(1, 1, bias=False)
    averaged, expected = AveragedWeights(network, decay=0.5), 0.0
    for step in range(20):
        with torch.no_grad():
            network.weight.fill_(step + 1.0)
        averaged.update()
        keep = 0.0 if step == 0 else min(0.5, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * (step + 1)
        assert averaged.average.weight.item() == pytest.approx(expected, rel=1e-5)
    again = AveragedWeights(torch.nn.Linear(1, 1, bias=False), decay=0.5)
    again.load_state_dict(averaged.state_dict())
    again.network.load_state_dict(network.state_dict())
    for one in (averaged, again):
        one.update()
    assert again.average.weight.item() == averaged.average.weight.item()


def test_the_average_shares_the_frozen_encoder_and_is_not_trained_by_the_optimizer():
    network = _network()
    before = [p.clone() for p in network.image_encoder.parameters()]
    averaged = AveragedWeights(network)
    for _ in range(3):
        averaged.update()
    for frozen, shared, was in zip(
        network.image_encoder.parameters(), averaged.average.image_encoder.parameters(), before
    ):
        assert shared is frozen and torch.equal(frozen, was)
    trained = {id(p) for p in network.parameters() if p.requires_grad}
    assert not trained & {id(p) for p in averaged.average.parameters()}
    assert set(averaged.state_dict()["weights"]) == {n for n, p in network.named_parameters() if p.requires_grad}
    assert not averaged.average.training


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_the_loss_is_least_where_the_network_says_what_its_teacher_does(channels):
    """So a teacher that is unsure pulls neither way, and one sample does not teach another."""
    told = torch.rand(2, channels, 16, 16) * 0.9 + 0.05
    logits = told.logit().requires_grad_()
    consistency(logits, told).sum().backward()
    torch.testing.assert_close(logits.grad, torch.zeros_like(told), atol=1e-6, rtol=0)
    least = consistency(told.logit(), told)
    for wrong in (told.logit() + 0.5, told.logit() - 0.5):
        assert (consistency(wrong, told) > least).all()
    one = torch.cat([told[:1].logit(), told[1:].logit() + 1])
    assert consistency(one, told)[0] == least[0] and least.shape == (2,)


def test_where_the_teacher_sees_no_nucleus_places_do_not_count():
    told = torch.rand(1, 3, 16, 16)
    told[:, 0, 8:] = 0
    logits = torch.randn(1, 3, 16, 16, requires_grad=True)
    consistency(logits, told).sum().backward()
    assert not logits.grad[:, 1:, 8:].any() and logits.grad[:, 1:, :8].all() and logits.grad[:, 0].all()


def test_the_teacher_sees_images_as_they_are_and_is_the_average():
    network = _network().train()
    teacher = MeanTeacher(network, [True, False], 1.0)
    image = torch.rand(2, 3, 64, 64) * 255
    features = teacher.averaged.average.image_encoder(image)
    teacher.averaged.update()
    with torch.no_grad():
        told = network.decoder(features, image)[0].sigmoid()
    loss = teacher(image, features, torch.zeros(2, 3, 64, 64))
    torch.testing.assert_close(loss, consistency(torch.zeros(2, 3, 64, 64), told))
    with torch.no_grad():
        for p in network.decoder.parameters():
            p.zero_()
    assert torch.equal(teacher(image, features, torch.zeros(2, 3, 64, 64)), loss), "not the network of now"


def test_the_weight_grows_to_its_end():
    teacher = MeanTeacher(_network(), [False, True], 2.0, ramp=0.5)
    strengths = [teacher.strength(p / 10) for p in range(11)]
    assert strengths == sorted(strengths) and strengths[0] < 0.02 and strengths[5:] == [2.0] * 6
    assert teacher_ramp(0.0, 0.0) < 0.01 and teacher_ramp(1e-3, 0.0) == 1
