"""TorchScript and ONNX files in the place of a network."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from scripts.errors import DataError
from torch import nn

__all__ = ["OnnxNetwork", "TorchScriptNetwork", "read_export"]


def read_export(path: str | os.PathLike, device: torch.device) -> nn.Module:
    """
    A TorchScript (``.ts``) or ONNX (``.onnx``) file as a network, in eval mode.

    Raises:
        DataError: when the file is missing or broken, or onnxruntime is.
    """
    path = Path(path)
    hint = "Make it with the export command in docs/exporting.md"
    if not path.is_file():
        raise DataError(path, "there is no such exported network", hint)
    try:
        return {".ts": TorchScriptNetwork, ".onnx": OnnxNetwork}[path.suffix](path, device).eval()
    except ImportError as e:
        raise DataError(path, "an ONNX network needs onnxruntime", "Run `python -m pip install onnxruntime`") from e
    except Exception as e:
        raise DataError(path, f"it cannot be read as an exported network ({e})", hint) from e


class TorchScriptNetwork(nn.Module):
    """
    A TorchScript file as a module that, like an ONNX one, shows nothing of its parts.

    Args:
        path: the file.
        device: where to run it.
    """

    def __init__(self, path: str | os.PathLike, device: torch.device) -> None:
        super().__init__()
        self.exported = torch.jit.load(str(path), map_location=device)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) RGB in [0, 255] -> logits (B, C, H, W); on a CPU in single precision."""
        # of the network itself some layers stay in single precision there, which an export does not know
        if image.device.type == "cpu":
            with torch.autocast("cpu", enabled=False):
                return self.exported(image)
        return self.exported(image)


class OnnxNetwork(nn.Module):
    """
    An ONNX file as a module, run by onnxruntime.

    Args:
        path: the file; its one input is the image, its first output the logits, both single precision.
        device: a CUDA device is used if the installed onnxruntime has CUDA; results come back to it in any case.
    """

    def __init__(self, path: str | os.PathLike, device: torch.device) -> None:
        super().__init__()
        import onnxruntime  # optional: only those who run an ONNX export have it

        wanted = (
            ["CUDAExecutionProvider", "CPUExecutionProvider"] if device.type == "cuda" else ["CPUExecutionProvider"]
        )
        providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
        self.session = onnxruntime.InferenceSession(str(path), providers=providers)
        self.input_name = self.session.get_inputs()[0].name

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) RGB in [0, 255] -> logits (B, C, H, W) on the same device."""
        array = np.ascontiguousarray(image.detach().cpu().float().numpy())
        logits = self.session.run(None, {self.input_name: array})[0]
        return torch.from_numpy(logits).to(image.device)
