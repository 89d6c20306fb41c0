from __future__ import annotations

from pathlib import Path

import torch
from monai.bundle import ConfigWorkflow
from torch import nn


class TinyEncoder(nn.Module):
    """A frozen encoder's interface on three random convolutions, so that tests of the rest need no SAM."""

    channels, strides, size_multiple, backbone_type = (4, 6, 8), (4, 8, 16), 16, "tiny"

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, c, s, stride=s) for c, s in zip(self.channels, self.strides))
        self.requires_grad_(False)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        features: list[torch.Tensor] = []
        for layer in self.layers:
            features.append(layer(image / 255.0))
        return features


def randomised(module: nn.Module) -> nn.Module:
    """Random values also where initialisation gives zeros and ones (norms, attention biases, positions)."""
    state = {k: torch.rand_like(v) + 0.1 if v.is_floating_point() else v for k, v in module.state_dict().items()}
    weights = {k: torch.randn_like(v) * 0.1 for k, v in state.items() if v.is_floating_point() and v.ndim > 1}
    module.load_state_dict(state | weights)
    return module


def open_verb(bundle_root: Path, config: str, kind: str, **overrides) -> ConfigWorkflow:
    """The workflow of a real config with overrides, initialised and ready to run."""
    workflow = ConfigWorkflow(
        config_file=str(bundle_root / "configs" / f"{config}.json"),
        workflow_type=kind,
        bundle_root=str(bundle_root),
        logging_file=False,
        **overrides,
    )
    workflow.initialize()
    return workflow
