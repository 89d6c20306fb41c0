"""In which arithmetic a network segments: what suits the machine, and how it is called in summaries."""

from __future__ import annotations

import torch
from scripts.networks.exported import OnnxNetwork, TorchScriptNetwork
from torch import nn

__all__ = ["arithmetic", "mixed_by_default"]


def mixed_by_default(device: torch.device | str) -> bool:
    """
    Whether mixed precision is faster there: on a GPU, and on a CPU with units for bfloat16.

    Without such units bfloat16 is computed by others, several times slower than single precision.
    """
    kind = torch.device(device).type
    # of torch's own: a later version may have it under another name, and others than x86 have no such units
    has_units = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)
    return kind == "cuda" or kind == "cpu" and bool(has_units())


def arithmetic(network: nn.Module, device: torch.device | str, amp: bool) -> str:
    """
    What products are computed in: ``float32``, ``bfloat16``, ``float16``, or ``bfloat16 in the encoder``.

    Args:
        network: an ``AMASAM``, or an export.
        device: where it runs.
        amp: whether in mixed precision.
    """
    kind = torch.device(device).type
    if isinstance(network, OnnxNetwork) or isinstance(network, TorchScriptNetwork) and kind == "cpu":
        return "float32"
    if amp:
        return str(torch.get_autocast_dtype(kind)).removeprefix("torch.")
    encoder = getattr(getattr(network, "image_encoder", None), "precision", "float32")
    return encoder if encoder == "float32" else f"{encoder} in the encoder"
