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
