"""What MLflow makes of a logged model where it is loaded: the model's folder has this package as its code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scripts.inference.in_memory import Segmenter

__all__ = ["NucleiModel"]


def _load_pyfunc(data_path: str | os.PathLike) -> NucleiModel:
    """Called by ``mlflow.pyfunc.load_model`` with the folder that ``logged_model.save`` filled."""
    return NucleiModel(Segmenter(Path(data_path) / "inference.json", data_path))


class NucleiModel:
    """Images in, nuclei out, as ``mlflow.pyfunc.load_model`` gives it and ``mlflow models serve`` asks it."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter

    def predict(self, images: np.ndarray, params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """
        Nuclei of each image.

        Args:
            images: (N, H, W, 3) uint8 RGB.
            params: ``mpp``, micrometres per pixel of the images; without it they are taken to be as the model's.

        Returns:
            for each image ``labels``, (H, W) int32 with 0 for background, and ``nuclei``, a list of table rows, whose
            ``id`` is the number in the label map; None stands for what is not known.
        """
        found = [self.segmenter.segment(image, (params or {}).get("mpp")) for image in images]
        return [{"labels": nuclei.labels, "nuclei": _rows(nuclei.table)} for nuclei in found]

    def get_raw_model(self) -> torch.nn.Module:
        """The network: (B, 3, H, W) RGB in [0, 255] -> logits."""
        return self.segmenter.network


def _rows(table: Any) -> list[dict[str, Any]]:
    return table.astype(object).where(table.notna(), None).to_dict("records")
