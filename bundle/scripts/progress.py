"""
Bars of a run. Ignite's ``ProgressBar`` is one for each epoch, with no time to go for the whole training, nor where the
number of readable images is known only at the end (``inferring``).
"""

from __future__ import annotations

from ignite.engine import Engine, Events
from tqdm import tqdm

__all__ = ["ImageProgress", "TrainingProgress"]


class TrainingProgress:
    """One bar over all iterations of the training, with its time to go, and one line for each validated epoch."""

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)
        engine.add_event_handler(Events.COMPLETED, self._close)
        self._bar: tqdm | None = None

    def _epoch_started(self, engine: Engine) -> None:
        if self._bar is None:
            total = engine.state.max_epochs * engine.state.epoch_length
            # opened here, not at the start, because resuming moves the first iteration
            self._bar = tqdm(total=total, initial=engine.state.iteration, desc="training", unit="it", mininterval=1.0)

    def _iteration_completed(self, engine: Engine) -> None:
        output = engine.state.output
        output = output[0] if isinstance(output, list) else output
        self._bar.set_postfix(epoch=engine.state.epoch, loss=f"{output['loss'].item():.3f}", refresh=False)
        self._bar.update()

    def _epoch_completed(self, engine: Engine) -> None:
        metrics = engine.state.metrics
        if "val_dice" in metrics:
            shown = {k: v for k, v in metrics.items() if k.startswith("val_") or k in ("train_loss", "domain_accuracy")}
            line = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
            tqdm.write(f"epoch {engine.state.epoch}/{engine.state.max_epochs}  {line}")

    def _close(self, engine: Engine) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class ImageProgress:
    """
    A bar over the images of an evaluation or inference.

    Args:
        total: number of images to come.
        description: what is done to them.
    """

    def __init__(self, total: int, description: str) -> None:
        self.total, self.description = total, description

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: self._bar.update())
        # before other handlers of that event print their tables
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: self._bar.close())

    def _started(self, engine: Engine) -> None:
        self._bar = tqdm(total=self.total, desc=self.description, unit="image")
