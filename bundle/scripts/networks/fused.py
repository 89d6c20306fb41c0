"""
Products for inference: linear layers and convolutions, with GELU applied while the result is in cache, and attention.

PyTorch gives single-precision products on a CPU to MKL, which uses half the vector width on AMD; oneDNN, which it has
built in for convolutions, uses all of it (twice the speed on Zen 5). The operators are those that ``torch.compile``
emits. On one thread PyTorch gives 1x1 convolutions of few images to neither, but to a loop of its own, half as fast.
Where oneDNN's do not apply (GPU, other precisions, gradients, export), the ordinary ones run; both round like any
single-precision product. GELU is the exact one.

In mixed precision on a CPU linear layers and attention are bfloat16, but convolutions, which are the encoder's first
layers and lie between its stages, stay in single precision: two thirds of the error of bfloat16 come from them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Pointwise", "attend_rows", "convolution", "linear", "onednn_applies", "recorded"]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Tensor:
    """``x @ weight.T + bias``, then optionally GELU: (..., C_in), (C_out, C_in), (C_out,) -> (..., C_out)."""
    if not torch.jit.is_scripting():
        if _mixed(x) and not torch.compiler.is_compiling():
            with torch.autocast("cpu", enabled=False):
                return linear(x.bfloat16(), weight.bfloat16(), None if bias is None else bias.bfloat16(), gelu)
        if onednn_applies(x, weight):
            operator = torch.ops.mkldnn._linear_pointwise
            return operator(x, weight, bias, "gelu" if gelu else "none", [], "none" if gelu else "")
    y = F.linear(x, weight, bias)
    return F.gelu(y) if gelu else y


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int, groups: int, gelu: bool = False
) -> Tensor:
    """2-D convolution, then optionally GELU: (B, C_in, H, W) -> (B, C_out, H', W')."""
    if not torch.jit.is_scripting():
        if _mixed(x):
            with torch.autocast("cpu", enabled=False):
                return convolution(x.float(), weight, bias, stride, padding, groups, gelu)
        if onednn_applies(x, weight):
            operator = torch.ops.mkldnn._convolution_pointwise
            after = ("gelu", [], "none") if gelu else ("none", [], "")
            return operator(x, weight, bias, [padding, padding], [stride, stride], [1, 1], groups, *after)
    y = F.conv2d(x, weight, bias, stride, padding, 1, groups)
    return F.gelu(y) if gelu else y


class Pointwise(nn.Conv2d):
    """A 1x1 convolution without bias, which is a linear layer of each pixel: (B, C_in, H, W) -> (B, C_out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            if _mixed(x) or onednn_applies(x, self.weight):
                return _pointwise(x, self.weight)
        return F.conv2d(x, self.weight)


@torch.jit.unused
def _pointwise(x: Tensor, weight: Tensor) -> Tensor:
    return linear(x.permute(0, 2, 3, 1), weight.flatten(1), None).permute(0, 3, 1, 2)


@torch.jit.unused
def attend_rows(q: Tensor, k: Tensor, v_transposed: Tensor, bias: Tensor) -> Tensor:
    """
    softmax(q k / sqrt(C) + bias) v of one head, where :func:`onednn_applies`.

    Args:
        q: (n, C).
        k: (N, C).
        v_transposed: (C, N).
        bias: (n, N).

    Returns:
        (n, C).
    """
    operator = torch.ops.mkldnn._linear_pointwise
    scores = operator.binary(q * q.shape[1] ** -0.5, bias, k, None, "add")
    return operator(torch.softmax(scores, dim=-1), v_transposed, None, "none", [], "")


@torch.jit.unused
def onednn_applies(x: Tensor, weight: Tensor) -> bool:
    """Whether the product of such tensors may go to oneDNN's own operators."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype
        and (x.dtype == torch.float32 or x.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        and not recorded()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


@torch.jit.unused
def recorded() -> bool:
    """Whether a graph is being made of this call, by tracing or compiling: it takes ordinary operators alone."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


@torch.jit.unused
def _mixed(x: Tensor) -> bool:
    """Whether such a tensor is met in mixed precision on a CPU."""
    on = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    return on and torch.get_autocast_dtype("cpu") == torch.bfloat16
