"""The mean teacher on numbers that are known."""

from __future__ import annotations

import pytest
import torch
from fakes import TinyEncoder
from scripts.networks.ama_sam import AMASAM
from scripts.networks.hr_decoder import HRDecoder
from scripts.training.averaged_weights import AveragedWeights
from scripts.training.losses import SegmentationLoss
from scripts.training.teacher import MeanTeacher, confident_part, teacher_ramp


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


@pytest.mark.parametrize("targets", ["hv", "distance", "border", "foreground"])
def test_pixels_of_which_the_teacher_is_not_sure_have_no_gradient(targets):
    channels = {"hv": 3, "distance": 2, "border": 2, "foreground": 1}[targets]
    told = torch.rand(2, channels, 16, 16)
    told[:, 0] = 0.6  # a nucleus, perhaps
    told[:, 0, 8:] = 0.4  # background, perhaps
    told[0, 0, :4], told[0, 0, 8:12] = 0.95, 0.02
    logits = torch.randn(2, channels, 16, 16, requires_grad=True)
    student, target, share = confident_part(logits, told, 0.9)
    sure = torch.zeros(2, 16, 16, dtype=torch.bool)
    sure[0, :4] = sure[0, 8:12] = True
    assert share == pytest.approx(8 / 32)
    assert torch.equal(target[:, 0], sure & (told[:, 0] > 0.5))
    assert torch.equal(target[:, 1:], told[:, 1:] * sure[:, None])
    losses = SegmentationLoss(targets)(student, target)
    assert losses.isfinite().all()
    losses.sum().backward()
    assert logits.grad[:, 0][sure].all() and not logits.grad.transpose(0, 1)[:, ~sure].any()


def test_nuclei_and_background_are_believed_alike():
    """Sure of nine tenths of the background and of a quarter of the nuclei: the surest quarter of each."""
    told = torch.cat([torch.linspace(0, 0.111, 8000), torch.linspace(0.501, 0.999, 2000)]).view(1, 1, 100, 100)
    sure_of = (told[told > 0.5] >= 0.875).float().mean()
    student, target, share = confident_part(torch.zeros_like(told), told, 0.875)
    believed = student == 0
    assert share == pytest.approx(sure_of.item(), abs=1e-3) and 0.2 < share < 0.3
    assert believed[told > 0.5].float().mean() == pytest.approx(share, abs=1e-3)
    assert believed[told <= 0.5].float().mean() == pytest.approx(share, abs=1e-3)
    assert told[believed & (told > 0.5)].min() >= 0.875 and told[believed & (told <= 0.5)].max() < 0.111 * 0.3
    for one_kind in (torch.full_like(told, 0.01), torch.full_like(told, 0.99)):
        assert confident_part(torch.zeros_like(told), one_kind, 0.875)[2] == 0, "nothing to hold it against"


def test_a_loss_is_smaller_where_the_network_agrees_with_its_teacher():
    told = torch.rand(1, 3, 16, 16)
    told[:, 0] = (told[:, 0] > 0.5).float() * 0.98 + 0.01
    same, other = (SegmentationLoss("hv")(*confident_part(x.logit(), told, 0.9)[:2]) for x in (told, 1 - told))
    assert same < other


def test_the_teacher_sees_images_as_they_are_and_is_the_average():
    network = _network().train()
    teacher = MeanTeacher(network, [True, False], 1.0, confidence=0.51)
    image = torch.rand(2, 3, 64, 64) * 255
    features = teacher.averaged.average.image_encoder(image)
    teacher.averaged.update()
    with torch.no_grad():
        expected = network.decoder(features, image)[0].sigmoid()
    _, target, _ = teacher(image, features, torch.zeros(2, 3, 64, 64))
    torch.testing.assert_close(target, confident_part(expected, expected, 0.51)[1])
    assert target.any()
    with torch.no_grad():
        for p in network.decoder.parameters():
            p.zero_()
    assert torch.equal(teacher(image, features, torch.zeros(2, 3, 64, 64))[1], target), "not the network of now"


def test_the_weight_grows_to_its_end():
    teacher = MeanTeacher(_network(), [False, True], 2.0, ramp=0.5)
    strengths = [teacher.strength(p / 10) for p in range(11)]
    assert strengths == sorted(strengths) and strengths[0] < 0.02 and strengths[5:] == [2.0] * 6
    assert teacher_ramp(0.0, 0.0) < 0.01 and teacher_ramp(1e-3, 0.0) == 1
