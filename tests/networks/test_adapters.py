"""Adapters are added components: without training they change nothing, and SAM's own weights never change."""

from __future__ import annotations

import io

import pytest
import torch
from fakes import randomised
from scripts.errors import DataError
from scripts.networks.adapters import ADAPTERS, Adapter, is_adapter, share_frozen, without_adapters
from scripts.networks.ama_sam import AMASAM
from scripts.networks.baselines import UNetDecoder
from scripts.networks.domain_adversary import AdversarialModel, DomainAdversary
from scripts.networks.hr_decoder import HRDecoder
from scripts.networks.loading import load_network, save_model, start_from
from scripts.networks.model_file import read_model_file, write_model_file
from scripts.networks.model_info import described, model_info
from scripts.networks.sam_encoders import AdaptedEncoder, FrozenEncoder, build_encoder, fingerprint, load_backbone
from scripts.training.self_test import AdversaryError, gradient_self_test

KINDS = [kind for kind in ADAPTERS if kind != "none"]


def _pair(backbone: str, adapters: str) -> tuple[FrozenEncoder, AdaptedEncoder]:
    """The frozen encoder and the adapted one, of the same weights."""
    plain = build_encoder(backbone)
    if backbone == "vit_test":
        randomised(plain.backbone)
    load_backbone(plain, plain.state_dict())  # rounds, as any checkpoint is
    adapted = build_encoder(backbone, adapters=adapters)
    load_backbone(adapted, plain.state_dict())
    return plain, adapted


def _trained(encoder: AdaptedEncoder) -> AdaptedEncoder:
    """As if it had been trained: adapters that change something."""
    for module in encoder.modules():
        if isinstance(module, Adapter):
            torch.nn.init.normal_(module.up.weight, std=0.1)
    return encoder


def _network(adapters: str, decoder=HRDecoder) -> AMASAM:
    _, encoder = _pair("vit_test", adapters)
    return AMASAM(encoder, decoder(encoder.channels, encoder.strides))


# ---------------------------------------------------------------- what it computes


@pytest.mark.parametrize("backbone, size", [("vit_test", (64, 96)), ("vit_t", (64, 64)), ("vit_b", (64, 48))])
@pytest.mark.parametrize("adapters", KINDS)
def test_untrained_adapters_leave_the_frozen_network_as_it_is_bit_for_bit(backbone, size, adapters):
    plain, adapted = _pair(backbone, adapters)
    image = torch.rand(2, 3, *size) * 255
    with torch.inference_mode():
        assert all(torch.equal(a, b) for a, b in zip(adapted(image), plain(image), strict=True))
    assert (adapted.channels, adapted.strides) == (plain.channels, plain.strides)
    assert fingerprint(adapted) == fingerprint(plain)


@pytest.mark.parametrize(
    "backbone, adapters, blocks",
    [("vit_t", "late", 8), ("vit_t", "early", 4), ("vit_t", "all", 12), ("vit_b", "late", 6), ("vit_b", "early", 6)],
)
def test_adapters_lie_beside_the_blocks_they_are_named_for(backbone, adapters, blocks):
    with torch.device("meta"):
        encoder = build_encoder(backbone, adapters=adapters)
    assert sum(isinstance(module, Adapter) for module in encoder.modules()) == blocks
    assert all(p.requires_grad == is_adapter(name) for name, p in encoder.named_parameters())


def test_an_unknown_choice_lists_the_known_ones():
    with pytest.raises(ValueError, match="none, late, early, all"):
        build_encoder("vit_test", adapters="middle")


@pytest.mark.parametrize("backbone", ["vit_test", "vit_t", "vit_b"])
@pytest.mark.parametrize("adapters", KINDS)
def test_what_is_stored_ends_where_the_first_adapter_begins(backbone, adapters):
    encoder = _trained(_pair(backbone, adapters)[1])
    image = torch.rand(1, 3, 64, 64) * 255
    with torch.inference_mode():
        begun = encoder.begin(image)
        assert all(torch.equal(a, b) for a, b in zip(encoder.finish(begun), encoder(image), strict=True))
        other = _trained(encoder)
        assert all(torch.equal(a, b) for a, b in zip(other.begin(image), begun, strict=True))
    assert [tuple(x.shape[1:]) for x in begun] == [
        (c, 64 // s, 64 // s) for c, s in zip(encoder.stored_channels, encoder.stored_strides, strict=True)
    ]


def test_a_network_without_its_adapters_is_the_published_one():
    plain, adapted = _pair("vit_test", "all")
    image = torch.rand(1, 3, 64, 64) * 255
    with torch.inference_mode():
        before = [feature.clone() for feature in _trained(adapted)(image)]
        assert all(torch.equal(a, b) for a, b in zip(without_adapters(adapted)(image), plain(image), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(adapted(image), before, strict=True)), "it still has its own"
    assert without_adapters(plain) is plain
    copied = share_frozen(adapted)
    for (name, a), b in zip(adapted.named_parameters(), copied.parameters(), strict=True):
        assert (a is not b) == is_adapter(name), name


# ---------------------------------------------------------------- what training does


def test_training_steps_change_adapters_and_leave_the_encoder_bit_identical():
    network = _network("late")
    model = AdversarialModel(network, DomainAdversary(128, (0.0, 1.0)))
    model.adversary.cgrl.strength = 0.1
    before = {name: value.clone() for name, value in network.image_encoder.state_dict().items()}
    image, domain = torch.rand(4, 3, 64, 64) * 255, torch.tensor([0, 1, 0, 1])
    foreground = torch.zeros(4, 1, 64, 64)
    foreground[:, :, 16:48, 16:48] = 1
    stored = [feature.half() for feature in network.image_encoder.begin(image)]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=0.1)
    model.train()
    for features in (stored, None, stored):
        optimizer.zero_grad()
        logits, _, domain_loss, _ = model(image, domain, foreground, features)
        (logits.square().mean() + domain_loss).backward()
        optimizer.step()
    for name, value in network.image_encoder.state_dict().items():
        assert torch.equal(value, before[name]) != is_adapter(name), name


@pytest.mark.parametrize("adapters", KINDS)
def test_the_gradient_self_test_reaches_the_adapters(adapters):
    def check(network, aligned):
        model = AdversarialModel(network, DomainAdversary(aligned, (0.0, 1.0)))
        foreground = torch.zeros(4, 1, 64, 64)
        foreground[:, :, :32] = 1
        return gradient_self_test(model, torch.rand(4, 3, 64, 64) * 255, torch.tensor([0, 1, 0, 1]), foreground)

    norms = check(_network(adapters), 128)
    assert norms[0] == 0 and norms[1] > 0
    unread = _network(adapters, lambda c, s: UNetDecoder(c, s, widths=(8, 8, 8, 16, 16, 8)))
    with pytest.raises(AdversaryError, match="reaches no adapter"):
        check(unread, 16)


# ---------------------------------------------------------------- model files and exports


@pytest.fixture()
def saved(tmp_path):
    """A model with trained adapters, and its file."""
    network = _network("late").eval()
    _trained(network.image_encoder)
    save_model(tmp_path / "model.pt", network, {"seed": 0}, {"mpp": 0.25, "domains": []})
    return network, tmp_path / "model.pt"


def test_a_model_file_holds_its_adapters_and_says_so(saved):
    network, path = saved
    assert model_info(path).adapters == described(path).adapters == "late"
    image = torch.rand(1, 3, 64, 96) * 255
    loaded = load_network(path)
    with torch.inference_mode():
        assert torch.equal(loaded(image), network(image))
    for name, value in read_model_file(path)["model"].items():
        if name.startswith("image_encoder.") and value.is_floating_point():
            assert value.dtype == (torch.float32 if is_adapter(name) else torch.float16), name


def test_a_file_that_asks_for_other_adapters_than_ours_is_refused(saved):
    _, path = saved
    write_model_file(path, {**read_model_file(path), "adapters": "os.system"})
    with pytest.raises(DataError, match="adapters 'os.system' is none of this version's"):
        load_network(path)
    assert described(path.with_name("none.pt")).adapters is described("model.onnx").adapters is None


def test_a_training_begins_with_a_models_adapters_or_with_untrained_ones(saved, tmp_path):
    network, path = saved
    again = _network("late")
    load_backbone(again.image_encoder, network.state_dict())
    start_from(again, path)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in again.state_dict().items())
    for adapters in ("none", "all"):
        other = _network(adapters)
        load_backbone(other.image_encoder, network.state_dict())
        with pytest.raises(DataError, match=f"adapters late, not {adapters}.*--adapters"):
            start_from(other, path)

    plain = _network("none").eval()
    load_backbone(plain.image_encoder, network.state_dict())
    save_model(tmp_path / "plain.pt", plain, {})
    new = _network("all").eval()
    load_backbone(new.image_encoder, network.state_dict())
    image = torch.rand(1, 3, 64, 64) * 255
    with torch.inference_mode():
        assert torch.equal(start_from(new, tmp_path / "plain.pt")(image), plain(image))


def test_the_encoder_of_a_model_with_adapters_can_be_taken_from_its_file(saved):
    network, path = saved
    for adapters in ("none", "late"):
        encoder = build_encoder("vit_test", adapters=adapters)
        load_backbone(encoder, read_model_file(path)["model"])
        assert fingerprint(encoder) == fingerprint(network.image_encoder)


@pytest.mark.parametrize(
    "backbone, size, adapters", [*(("vit_test", (96, 32), kind) for kind in KINDS), ("vit_b", (64, 48), "late")]
)
def test_scripted_equals_eager_after_saving(backbone, size, adapters):
    encoder = _trained(_pair(backbone, adapters)[1])
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(encoder), buffer)
    buffer.seek(0)
    image = torch.rand(2, 3, *size) * 255
    with torch.inference_mode():
        for eager, script in zip(encoder(image), torch.jit.load(buffer)(image), strict=True):
            torch.testing.assert_close(script, eager, atol=1e-5, rtol=1e-4)


def test_half_precision_arithmetic_gives_nearly_the_same_features_in_full():
    exact = _trained(_pair("vit_test", "late")[1])
    rounded = build_encoder("vit_test", "bfloat16", "late")
    rounded.load_state_dict(exact.state_dict())
    image = torch.rand(1, 3, 64, 64) * 255
    pairs = list(zip(exact(image), rounded(image), strict=True))
    for a, b in pairs:
        assert b.dtype == torch.float32
        assert (a - b).square().mean() < (0.05**2) * a.square().mean()
    assert not torch.equal(*pairs[-1]), "behind linear layers; convolutions stay in single precision on a CPU"
