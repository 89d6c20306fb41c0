from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

__all__ = ["Bootstrap"]


@dataclass(frozen=True)
class Bootstrap:
    """
    Percentile bootstrap intervals of means over images: images are drawn with replacement.

    Args:
        resamples: how often.
        confidence: coverage of the interval.
        seed: of the draws.
    """

    resamples: int = 10_000
    confidence: float = 0.95
    seed: int = 0

    def interval(self, values: np.ndarray) -> tuple[float | None, float | None]:
        """Of the mean of (images,) values; (None, None) for a single image, of which no spread is known."""
        if len(values) < 2:
            return None, None
        drawn = stats.bootstrap(
            (values,),
            np.mean,
            n_resamples=self.resamples,
            confidence_level=self.confidence,
            method="percentile",
            random_state=np.random.default_rng(self.seed),
        )
        return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)
