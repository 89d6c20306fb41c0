from __future__ import annotations

import pytest
import torch
from fakes import TinyEncoder
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts.errors import DataError
from scripts.networks.adapters import Adapter
from scripts.networks.alignment_losses import aligned_channels, alignment_loss
from scripts.networks.ama_sam import AMASAM
from scripts.networks.domain_adversary import (
    CGRL,
    MODES,
    AdversarialModel,
    DomainAdversary,
    DomainDiscriminator,
    domain_coefficients,
)
from scripts.networks.hr_decoder import HRDecoder
from scripts.networks.sam_encoders import build_encoder
from scripts.training.iteration import adversarial_ramp
from scripts.training.self_test import AdversaryError, gradient_self_test


def _model(coefficients=(0.0, 1.0, 1.0), kind="adversary", **settings):
    torch.manual_seed(0)
    decoder = HRDecoder((4, 6, 8), (4, 8, 16), size="light")
    return AdversarialModel(
        AMASAM(TinyEncoder(), decoder), alignment_loss(kind, decoder.aligned_channels, coefficients, **settings)
    )


def _batch(domains=(0, 0, 1, 2)):
    torch.manual_seed(1)
    foreground = (torch.rand(len(domains), 1, 64, 64) > 0.7).float()
    return torch.rand(len(domains), 3, 64, 64) * 255, torch.tensor(domains), foreground


@settings(max_examples=50, deadline=None)
@given(
    coefficients=st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0]), min_size=1, max_size=4),
    strength=st.floats(0, 3),
    data=st.data(),
)
def test_cgrl_is_identity_forward_and_scales_each_sample_backward(coefficients, strength, data):
    domain = torch.tensor(data.draw(st.lists(st.integers(0, len(coefficients) - 1), min_size=1, max_size=6)))
    layer = CGRL(coefficients)
    layer.strength = strength
    x = torch.randn(len(domain), 3, 2, 2, requires_grad=True)
    y = layer(x, domain)
    assert torch.equal(y, x)
    upstream = torch.randn_like(x)
    y.backward(upstream)
    for i, d in enumerate(domain.tolist()):
        torch.testing.assert_close(x.grad[i], -strength * coefficients[d] * upstream[i])
        if coefficients[d] == 0 or strength == 0:
            assert not x.grad[i].any(), "exactly zero, not merely small"


@pytest.mark.parametrize("mode", [m for m in MODES if m != "single"])
def test_each_mode_gives_every_domain_the_gradient_it_promises(mode):
    model = _model(domain_coefficients(mode, 3))
    model.adversary.cgrl.strength = 1.0
    image, domain, foreground = _batch()
    _, aligned, loss, _ = model(image, domain, foreground)
    norms = torch.autograd.grad(loss, aligned)[0].flatten(1).norm(dim=1)
    primary, auxiliary = MODES[mode]
    assert ((norms[domain == 0] > 0) == (primary != 0)).all()
    assert ((norms[domain != 0] > 0) == (auxiliary != 0)).all()


def test_the_reversed_gradient_hides_the_domain_while_the_discriminator_learns_it():
    """One small step on the loss: features of auxiliaries alone make it worse, the discriminator alone better."""
    image, domain, foreground = _batch((1, 1, 2, 2))
    for part, sign in (("network", 1), ("adversary", -1)):
        model = _model().double()
        model.adversary.cgrl.strength = 1.0
        batch = (image.double(), domain, foreground.double())
        before = model(*batch)[2]
        parameters = [p for p in getattr(model, part).parameters() if p.requires_grad]
        gradients = torch.autograd.grad(before, parameters, allow_unused=True)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients):
                if gradient is not None:
                    parameter -= 1e-3 * gradient
        assert (model(*batch)[2] - before).item() * sign > 0


def test_without_labels_the_nuclei_are_those_that_the_network_finds():
    image, domain, foreground = _batch()
    model = _model()
    model.predicted_regions = True
    with torch.no_grad():
        logits, aligned, loss, _ = model(image, domain, foreground)
        assert torch.equal(model(image, domain, 1 - foreground)[2], loss), "labels are not read"
        found = (logits[:, :1] > 0).float()
        assert 0 < found.mean() < 1
        assert torch.equal(model.adversary(aligned, domain, found)[0], loss)


def test_the_discriminator_learns_from_all_domains_whatever_cgrl_does():
    model = _model((0.0, 0.0, 0.0))
    model(*_batch((0, 0)))[2].backward()
    assert all(p.grad is not None and p.grad.any() for p in model.adversary.discriminator.classify[0][-1].parameters())


def test_the_discriminator_learns_a_small_shift_within_a_hundred_steps():
    """A dead one judges by the batch's proportions, which looks like perfect alignment."""
    torch.manual_seed(0)
    adversary = DomainAdversary(96, (0.0, 1.0, 1.0))
    optimizer = torch.optim.AdamW(adversary.parameters(), 1e-3)
    shift = 0.15 * torch.randn(3, 96, 1, 1)

    def batch():
        domain = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
        return torch.relu(torch.randn(8, 96, 8, 8) + shift[domain]), domain, (torch.rand(8, 1, 8, 8) > 0.8).float()

    for _ in range(100):
        loss = adversary(*batch())[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    recalls = []
    for _ in range(10):
        features, domain, foreground = batch()
        recalls.append((adversary(features, domain, foreground)[1] == domain).float())
    assert torch.stack(recalls).mean(0)[4:].mean() > 0.8


def test_every_domain_of_a_batch_counts_alike():
    adversary = DomainAdversary(3, (0.0, 1.0))
    features, foreground = torch.randn(1, 3, 4, 4), torch.ones(1, 1, 4, 4)
    losses = [adversary(features, torch.tensor([d]), foreground)[0] for d in (0, 1)]
    mixed = adversary(features.expand(4, 3, 4, 4), torch.tensor([0, 0, 0, 1]), foreground.expand(4, 1, 4, 4))[0]
    torch.testing.assert_close(mixed, sum(losses) / 2)


def test_regions_that_do_not_occur_are_left_out():
    discriminator = DomainDiscriminator(3, 2)
    foreground = torch.zeros(2, 1, 8, 8)
    foreground[1] = 1
    logits, weights = discriminator(torch.randn(2, 3, 4, 4), foreground)
    assert logits.shape == (2, 2, 2)
    assert weights.tolist() == [[0, 1], [1, 0]]  # nuclei, background


def test_density_and_scale_of_nuclei_are_not_what_the_discriminator_reads():
    """The same tissue with few or many nuclei looks the same to it, by region; not when averaged over the image."""
    features = torch.randn(1, 3, 1, 2)

    def image(nuclei):  # columns of nuclei, then of background
        foreground = (torch.arange(16) < nuclei).float().expand(1, 1, 16, 16)
        return features[..., :1] * foreground + features[..., 1:] * (1 - foreground), foreground

    assert DomainAdversary(3, [0, 1]).discriminator.aligned_by == "region"
    for aligned_by in ("region", "image"):
        discriminator = DomainDiscriminator(3, 2, aligned_by=aligned_by)
        few, many = (discriminator(*image(n))[0] for n in (2, 12))
        assert torch.allclose(few, many, atol=1e-5) == (aligned_by == "region")


def test_a_region_of_less_than_a_feature_counts():
    _, weights = DomainDiscriminator(3, 2)(
        torch.randn(3, 3, 2, 2), torch.eye(8)[:3, :, None, None].expand(3, 8, 8, 8)[:, :1]
    )
    assert weights.tolist() == [[1, 0], [0, 1], [0, 1]]
    foreground = torch.zeros(1, 1, 8, 8)
    foreground[..., 0, 0] = 1
    assert DomainDiscriminator(3, 2)(torch.randn(1, 3, 2, 2), foreground)[1].tolist() == [[1, 1]]


def test_every_domain_has_a_coefficient():
    assert domain_coefficients("ama", 4) == [0, 1, 1, 1] and domain_coefficients("single", 3) == [0, 0, 0]


def test_ramp_runs_from_zero_to_its_maximum():
    values = [adversarial_ramp(p / 20, 0.3) for p in range(21)]
    assert values[0] == 0 and values == sorted(values)
    assert values[-1] == pytest.approx(0.3, rel=1e-3)
    warmed = [adversarial_ramp(p / 20, 0.3, warmup=0.5) for p in range(21)]
    assert not any(warmed[:11]) and warmed[10:] == pytest.approx(values[::2])


def test_spectral_norm_bounds_how_far_the_discriminator_tells_features_apart():
    discriminator = DomainDiscriminator(3, 2, aligned_by="image", spectral_norm=True)
    x, foreground = torch.randn(64, 3, 2, 2), torch.ones(64, 1, 8, 8)
    for _ in range(50):  # of power iteration
        discriminator(x, foreground)
    with torch.no_grad():
        for layer in discriminator.modules():
            if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
                assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("adapters, stride", [("late", 16), ("early", 4), ("all", 8)])
def test_the_encoder_is_aligned_behind_its_adapters(adapters, stride):
    torch.manual_seed(0)
    encoder = build_encoder("vit_test", adapters=adapters)
    for module in encoder.modules():  # as after some steps; untrained ones pass no gradient to what lies before
        if isinstance(module, Adapter):
            torch.nn.init.normal_(module.up.weight, std=0.1)
    network = AMASAM(encoder, HRDecoder(encoder.channels, encoder.strides, size="light"))
    adversary = alignment_loss("adversary", aligned_channels(network, "encoder", stride), (0.0, 1.0, 1.0))
    model = AdversarialModel(network, adversary, aligned_at="encoder", aligned_stride=stride)
    norms = gradient_self_test(model, *_batch())
    assert norms[0] == 0 and norms[1] > 0
    model.adversary.cgrl.strength = 1.0
    _, aligned, loss, _ = model(*_batch())
    assert aligned.shape[-1] == 64 // stride
    reached = torch.autograd.grad(loss, list(network.decoder.parameters()), allow_unused=True)
    assert all(gradient is None for gradient in reached), "the decoder lies behind what is aligned"


@pytest.mark.parametrize(
    "adapters, stride, told",
    [("none", 16, "aligned_at: nothing in the frozen encoder can be moved"), ("late", 2, "no features at stride 2")],
)
def test_an_encoder_that_cannot_be_aligned_is_refused(adapters, stride, told):
    encoder = build_encoder("vit_test", adapters=adapters)
    network = AMASAM(encoder, HRDecoder(encoder.channels, encoder.strides, size="light"))
    with pytest.raises(DataError, match=told):
        AdversarialModel(network, None, aligned_at="encoder", aligned_stride=stride)


def test_self_test_refuses_an_encoder_aligned_before_its_adapters():
    encoder = build_encoder("vit_test", adapters="late")
    network = AMASAM(encoder, HRDecoder(encoder.channels, encoder.strides, size="light"))
    adversary = alignment_loss("adversary", aligned_channels(network, "encoder", 4), (0.0, 1.0, 1.0))
    with pytest.raises(AdversaryError, match="no trainable layer"):
        gradient_self_test(AdversarialModel(network, adversary, aligned_at="encoder", aligned_stride=4), *_batch())


@pytest.mark.parametrize("mode, domains, message", [("amma", 2, "unknown"), ("ama", 1, "--auxiliary")])
def test_modes_that_cannot_act_are_refused(mode, domains, message):
    with pytest.raises(ValueError, match=message):
        domain_coefficients(mode, domains)


@pytest.mark.parametrize("mode", ["ama", "grl", "signed", "joint"])
@pytest.mark.parametrize(
    "settings",
    [
        {}, {"aligned_by": "image"}, {"aligned_by": "class"}, {"spectral_norm": True}, {"kind": "mmd"},
        {"kind": "coral", "aligned_by": "class"}, {"kind": "mmd", "aligned_by": "image"},
    ],
    ids=str,
)  # fmt: skip
def test_self_test_passes_for_every_mode(mode, settings):
    model = _model(domain_coefficients(mode, 3), **settings)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    norms = gradient_self_test(model, *_batch())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.adversary.training
    if mode == "ama":
        assert norms[0] == 0 and norms[1] > 0 and norms[2] > 0
    assert model.adversary.cgrl.strength == 0 and all(p.grad is None for p in model.parameters())


class _ReadsTheEncoder(torch.nn.Module):
    """The set-up that fails silently: the discriminator reads frozen features."""

    def __init__(self, decoder: torch.nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, features, image):
        return self.decoder(features, image)[0], features[1]


def test_self_test_refuses_a_discriminator_on_frozen_features():
    network = _model().network
    broken = AdversarialModel(
        AMASAM(network.image_encoder, _ReadsTheEncoder(network.decoder)), DomainAdversary(6, (0.0, 1.0, 1.0))
    )
    with pytest.raises(AdversaryError, match="no trainable layer"):
        gradient_self_test(broken, *_batch())


def test_self_test_refuses_a_dead_discriminator():
    model = _model()
    torch.nn.init.zeros_(model.adversary.discriminator.embed[0].weight)
    with pytest.raises(AdversaryError, match="dead"):
        gradient_self_test(model, *_batch())


def test_self_test_refuses_an_encoder_that_trains():
    model = _model()
    model.network.image_encoder.requires_grad_(True)
    with pytest.raises(AdversaryError, match="must be frozen"):
        gradient_self_test(model, *_batch())
