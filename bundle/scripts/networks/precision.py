"""How the arithmetic in which a network segments is called in summaries."""

from __future__ import annotations

import torch
from scripts.networks.exported import OnnxNetwork, TorchScriptNetwork
from scripts.networks.runtime import OpenVinoNetwork
from torch import nn

__all__ = ["arithmetic"]


def arithmetic(network: nn.Module, device: torch.device | str, amp: bool) -> str:
    """
    What products are computed in: ``float32``, ``bfloat16``, ``float16``, or ``bfloat16 in the encoder``; and by
    what, if not PyTorch: ``bfloat16 by OpenVINO``.

    Args:
        network: an ``AMASAM``, or an export.
        device: where it runs.
        amp: whether in mixed precision.
    """
    if isinstance(network, OpenVinoNetwork):
        return f"{network.precision} by OpenVINO"
    kind = torch.device(device).type
    if isinstance(network, OnnxNetwork) or isinstance(network, TorchScriptNetwork) and kind == "cpu":
        return "float32"
    if amp:
        return str(torch.get_autocast_dtype(kind)).removeprefix("torch.")
    encoder = getattr(getattr(network, "image_encoder", None), "precision", "float32")
    return encoder if encoder == "float32" else f"{encoder} in the encoder"
