from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from scripts.networks import fused
from scripts.networks.fused import Pointwise, convolution, linear

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _weights(*shape):
    return torch.randn(*shape) / shape[1] ** 0.5, torch.randn(shape[0])


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("shape", [(5, 24), (2, 7, 24), (2, 3, 4, 24)])
def test_linear_is_linear(shape, gelu):
    x, (weight, bias) = torch.randn(shape), _weights(40, 24)
    expected = F.linear(x, weight, bias)
    torch.testing.assert_close(linear(x, weight, bias, gelu=gelu), F.gelu(expected) if gelu else expected)


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("kernel, stride, groups", [(1, 1, 1), (3, 2, 1), (3, 1, 8)])
def test_convolution_is_convolution(kernel, stride, groups, gelu):
    x, (weight, bias) = torch.randn(2, 8, 12, 10), _weights(16, 8 // groups, kernel, kernel)
    expected = F.conv2d(x, weight, bias, stride, kernel // 2, 1, groups)
    result = convolution(x, weight, bias, stride, kernel // 2, groups, gelu=gelu)
    torch.testing.assert_close(result, F.gelu(expected) if gelu else expected)


@pytest.mark.skipif(not ONEDNN, reason="this PyTorch has no oneDNN")
def test_onednn_runs_where_it_may_and_only_there():
    x, (weight, _) = torch.randn(4, 8), _weights(8, 8)
    assert fused.onednn_applies(x, weight)
    assert not fused.onednn_applies(x.double(), weight.double())
    assert not fused.onednn_applies(x, weight.clone().requires_grad_())
    with torch.autocast("cpu", torch.bfloat16):
        assert not fused.onednn_applies(x, weight)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not fused.onednn_applies(x, weight)


@pytest.mark.parametrize("scripted", [False, True])
def test_a_pointwise_convolution_is_one(scripted):
    module, x = Pointwise(8, 16), torch.randn(2, 8, 12, 10)
    run = torch.jit.script(module) if scripted else module
    with torch.no_grad():
        torch.testing.assert_close(run(x), F.conv2d(x, module.weight))
    assert torch.equal(run(x), F.conv2d(x, module.weight)), "training computes as it did"
    assert list(module.state_dict()) == ["weight"] and module.weight.shape == (16, 8, 1, 1)


@pytest.mark.skipif(not ONEDNN, reason="this PyTorch has no oneDNN")
def test_no_convolution_of_inference_takes_the_slow_path():
    """On one thread PyTorch runs 1x1 convolutions of few images by a loop of its own, ``_slow_conv2d_forward``."""
    x, (weight, bias), module = torch.randn(1, 8, 12, 10), _weights(16, 8, 1, 1), Pointwise(8, 16)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile, torch.no_grad():
            convolution(x, weight, bias, 1, 0, 1)
            module(x)
    finally:
        torch.set_num_threads(threads)
    assert not [event.key for event in profile.key_averages() if "slow" in event.key]


def test_mixed_precision_on_a_cpu_rounds_linear_layers_and_leaves_convolutions_alone():
    x, (weight, bias), module = torch.randn(2, 8, 12, 10), _weights(16, 8, 3, 3), Pointwise(8, 16)
    tokens, (flat, offset) = torch.randn(2, 7, 8), _weights(16, 8)
    with torch.no_grad():
        exact = convolution(x, weight, bias, 1, 1, 1, gelu=True)
        expected = [F.linear(tokens, flat, offset), F.gelu(F.linear(tokens, flat, offset)), module(x)]
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(convolution(x, weight, bias, 1, 1, 1, gelu=True), exact)
            rounded = [linear(tokens, flat, offset), linear(tokens, flat, offset, gelu=True), module(x)]
    for a, b in zip(rounded, expected):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a.float(), b, atol=3e-2, rtol=2e-2)


@pytest.mark.skipif(not ONEDNN, reason="this PyTorch has no oneDNN")
def test_attention_is_attention():
    q, k, v, bias = torch.randn(5, 8), torch.randn(7, 8), torch.randn(7, 8), torch.randn(5, 7)
    expected = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=bias[None])[0]
    torch.testing.assert_close(fused.attend_rows(q, k, v.T.contiguous(), bias), expected)


def test_gradients_flow_where_they_are_wanted():
    x, (weight, bias) = torch.randn(4, 8, requires_grad=True), _weights(8, 8)
    linear(x, weight, bias, gelu=True).sum().backward()
    assert x.grad.abs().sum() > 0
    image = torch.randn(1, 4, 6, 6, requires_grad=True)
    convolution(image, *_weights(4, 4, 3, 3), 1, 1, 1, gelu=True).sum().backward()
    assert image.grad.abs().sum() > 0


def test_exports_hold_only_public_operators():
    sizes = ((8, 8), (8, 8, 1, 1), (8,))

    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flat, self.kernel, self.bias = (torch.nn.Parameter(torch.randn(*n), False) for n in sizes)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = convolution(x, self.kernel, self.bias, 1, 0, 1, gelu=True)
            return linear(x.permute(0, 2, 3, 1), self.flat, self.bias, gelu=True)

    module, x = Two(), torch.randn(1, 8, 4, 4)
    for exported in (torch.jit.script(module), torch.jit.trace(module, x)):
        assert "mkldnn" not in str(exported.inlined_graph)
        torch.testing.assert_close(exported(x), module(x))
