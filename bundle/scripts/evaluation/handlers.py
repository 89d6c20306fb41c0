from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from monai.handlers import IgniteMetricHandler
from monai.metrics import CumulativeIterationMetric
from scripts.nuclei.metrics import hausdorff_distance

__all__ = ["PenalisedHausdorff", "PenalisedHausdorffMetric"]


class PenalisedHausdorffMetric(CumulativeIterationMetric):
    """
    Hausdorff distance in pixels that counts and penalises images where exactly one of the two masks is empty.

    Called with lists of (1, H, W) masks (or batches of them), foreground > 0, so an instance map serves as well.
    ``aggregate`` returns the mean distance; ``get_buffer()`` holds (distance, 1 if penalised) of every image.

    Args:
        percentile: None for the maximum, else e.g. 95.
    """

    def __init__(self, percentile: float | None = None) -> None:
        super().__init__()
        self.percentile = percentile

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor, **kwargs) -> torch.Tensor:
        """(B, 1, H, W) pairs to (B, 2): distance, and 1 where it was undefined."""
        return torch.tensor(
            [hausdorff_distance(pred, true, self.percentile) for pred, true in zip(y_pred, y)], device=y_pred.device
        )

    def aggregate(self) -> torch.Tensor:
        """Mean distance over the images of all processes."""
        return self.get_buffer()[:, 0].mean()


class PenalisedHausdorff(IgniteMetricHandler):
    """
    Ignite metric for a MONAI evaluator's ``key_val_metric`` or ``additional_metrics``.

    Under the name it is attached by, say ``val_hd95``, it leaves the mean distance in pixels in
    ``engine.state.metrics``, and under ``val_hd95_undefined`` the number of images where exactly one mask was empty:
    those enter the mean with the image diagonal instead of vanishing from it.

    Args:
        percentile: None for the maximum, else e.g. 95.
        output_transform: takes ``engine.state.output`` to the pair (predicted masks, labels), as for MONAI's metrics,
            for example ``monai.handlers.from_engine(['pred', 'label'])``.
        save_details: keep every image's (distance, undefined) in ``engine.state.metric_details``.
    """

    def __init__(
        self,
        percentile: float | None = None,
        output_transform: Callable[..., tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]] = lambda x: x,
        save_details: bool = True,
    ) -> None:
        super().__init__(PenalisedHausdorffMetric(percentile), None, output_transform, save_details)

    def compute(self) -> float:
        distance = super().compute()
        self._engine.state.metrics[f"{self._name}_undefined"] = int(self.metric_fn.get_buffer()[:, 1].sum())
        return distance
