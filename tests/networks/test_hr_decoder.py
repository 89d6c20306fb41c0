from __future__ import annotations

import pytest
import torch
from fakes import TinyEncoder
from scripts.networks.ama_sam import AMASAM
from scripts.networks.hr_decoder import SIZES, HRDecoder


def _features(batch, channels, strides, height, width):
    return [torch.randn(batch, c, height // s, width // s) for c, s in zip(channels, strides)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "channels, strides, height, width, out_channels",
    [
        ((4, 6, 8), (4, 8, 16), 64, 96, 2),  # hierarchical, as vit_t
        ((5, 5, 8), (16, 16, 16), 32, 32, 1),  # plain ViT: every feature at stride 16
        ((8,), (16,), 1024, 1024, 2),  # the paper's size, from SAM's neck alone
        ((4, 6, 8), (8, 16, 32), 64, 96, 3),  # of an encoder that sees the image at half its resolution
        ((5, 8), (32, 32), 64, 64, 2),
    ],
)
def test_logits_have_the_resolution_of_the_input(size, channels, strides, height, width, out_channels):
    decoder = HRDecoder(channels, strides, size=size, out_channels=out_channels)
    image = torch.rand(1, 3, height, width) * 255
    logits, aligned = decoder(_features(1, channels, strides, height, width), image)
    assert logits.shape == (1, out_channels, height, width)
    assert aligned.shape == (1, decoder.aligned_channels, height // 16, width // 16)


@pytest.mark.parametrize("size", ["standard", "quarter"])
def test_exported_logits_are_the_same(size):
    decoder = HRDecoder((4, 8), (8, 16), size=size, out_channels=3).eval()
    features, image = _features(2, (4, 8), (8, 16), 64, 96), torch.rand(2, 3, 64, 96) * 255
    before = image.clone()
    logits = decoder(features, image)[0]
    assert torch.equal(image, before)
    torch.testing.assert_close(torch.jit.script(decoder)(features, image)[0], logits, atol=1e-5, rtol=1e-5)
    traced = torch.jit.trace(decoder, (features, image), check_trace=False)
    torch.testing.assert_close(traced(features, image)[0], logits, atol=1e-5, rtol=1e-5)
    if size == "standard":
        assert logits.is_contiguous(), "which is what reads them next wants"


@pytest.mark.parametrize(
    "strides, stride", [*(((8, 16), s) for s in (4, 8, 16)), *(((16, 32), s) for s in (8, 16, 32))]
)
def test_the_stride_seen_by_the_adversary_is_a_setting(strides, stride):
    decoder = HRDecoder((4, 8), strides, aligned_stride=stride)
    _, aligned = decoder(_features(1, (4, 8), strides, 64, 64), torch.rand(1, 3, 64, 64))
    assert aligned.shape == (1, decoder.aligned_channels, 64 // stride, 64 // stride)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"in_channels": (4, 8), "strides": (16,)}, "differ in length"),
        ({"in_channels": (4,), "strides": (8,)}, "strides"),
        ({"in_channels": (4,), "strides": (16,), "aligned_stride": 2}, "aligned_stride"),
        ({"in_channels": (4,), "strides": (32,), "aligned_stride": 4}, "aligned_stride.*8, 16, 32"),
        ({"in_channels": (4, 8), "strides": (4, 32)}, "strides"),
        ({"in_channels": (4,), "strides": (16,), "out_channels": 0}, "out_channels"),
        ({"in_channels": (4,), "strides": (16,), "size": "huge"}, "light, standard, wide"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        HRDecoder(**arguments)


@pytest.mark.parametrize("size", SIZES)
def test_the_mask_is_not_interpolated(size):
    """Detail finer than any encoder feature reaches the logits, as no mask interpolated from stride 4 would let it."""
    torch.manual_seed(0)
    network = AMASAM(TinyEncoder(), HRDecoder((4, 6, 8), (4, 8, 16), size=size)).eval()
    logits = network(torch.rand(1, 3, 64, 64) * 255)[:, :1]
    coarse = torch.nn.functional.avg_pool2d(logits, 4)
    interpolated = torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear", align_corners=False)
    assert (logits - interpolated).std() > 0.3 * logits.std()


@pytest.mark.parametrize("size", SIZES)
def test_every_trainable_parameter_gets_a_gradient_and_no_frozen_one(size):
    network = AMASAM(TinyEncoder(), HRDecoder((4, 6, 8), (4, 8, 16), size=size))
    network(torch.rand(2, 3, 64, 64) * 255).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.decoder.parameters())
    assert all(p.grad is None for p in network.image_encoder.parameters())


@pytest.mark.parametrize("size", SIZES)
def test_samples_do_not_influence_each_other(size):
    """Domains share batches, so the logits of one image must not depend on the others."""
    torch.manual_seed(0)
    network = AMASAM(TinyEncoder(), HRDecoder((4, 6, 8), (4, 8, 16), size=size)).train()
    images = torch.rand(3, 3, 64, 64) * 255
    torch.testing.assert_close(network(images)[1:2], network(images[1:2]))


@pytest.mark.parametrize("size", SIZES)
def test_scripted_equals_eager(size):
    network = AMASAM(TinyEncoder(), HRDecoder((4, 6, 8), (4, 8, 16), size=size)).eval()
    scripted = torch.jit.script(network)
    for height, width in ((64, 64), (96, 32)):
        image = torch.rand(1, 3, height, width) * 255
        torch.testing.assert_close(scripted(image), network(image))
