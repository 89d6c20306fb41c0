from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from ignite.engine import Engine, Events
from scripts.processes import gather

__all__ = ["EpochMetrics"]


class EpochMetrics:
    """
    Turns an epoch's iterations, and its validation, into ``engine.state.metrics`` for CSV, curves and MLflow; those of
    all processes, and in each of them.

    Args:
        domain_names: names by domain index, primary first.
        validator: its metrics are taken over in the epochs in which it ran.

    Metrics: ``train_loss``, ``train_segmentation_loss``, ``train_dice_<domain>`` (training crops), ``learning_rate``;
    with an adversary ``lambda``, ``domain_loss``, ``domain_accuracy`` (mean of the recalls of each domain, so
    unequal domains count alike), ``domain_accuracy_chance`` (1 / K), ``gradient_task``, ``gradient_adversarial`` and
    ``gradient_cosine`` at the aligned features.
    """

    def __init__(self, domain_names: Sequence[str], validator: Engine | None = None) -> None:
        self.domain_names, self.validator = list(domain_names), validator
        self._reset()

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)

    def _reset(self) -> None:
        self._values: dict[str, list[float]] = defaultdict(list)
        self._correct: dict[int, list[float]] = defaultdict(list)

    def _epoch_started(self, engine: Engine) -> None:
        self._reset()
        engine.state.metrics.clear()
        if self.validator is not None:
            self.validator.state.metrics.clear()

    def _iteration_completed(self, engine: Engine) -> None:
        output = engine.state.output
        output = output[0] if isinstance(output, list) else output
        self._values["train_loss"].append(output["loss"].item())
        self._values["train_segmentation_loss"].append(output["segmentation_loss"].item())
        domains = output["domain"].tolist()
        for domain, dice in zip(domains, output["dice"].tolist()):
            if math.isfinite(dice):  # not of a domain without labels
                self._values[f"train_dice_{self.domain_names[domain]}"].append(dice)
        if output["domain_loss"] is not None:
            self._values["domain_loss"].append(output["domain_loss"].item())
            if output["judged"] is not None:  # by a discriminator
                for domain, judged in zip(domains, output["judged"].tolist()):
                    self._correct[domain].append(float(judged == domain))
            self._values["lambda"] = [output["lambda"]]
            for name, value in output["gradients"].items():
                self._values[f"gradient_{name}"].append(value)

    def _epoch_completed(self, engine: Engine) -> None:
        metrics = engine.state.metrics
        values, correct = _joined(self._values), _joined(self._correct)
        metrics.update({name: sum(numbers) / len(numbers) for name, numbers in sorted(values.items())})
        if correct:
            recalls = [sum(judged) / len(judged) for judged in correct.values()]
            metrics["domain_accuracy"] = sum(recalls) / len(recalls)
            metrics["domain_accuracy_chance"] = 1.0 / len(self.domain_names)
        metrics["learning_rate"] = engine.optimizer.param_groups[0]["lr"]
        if self.validator is not None:
            metrics.update(self.validator.state.metrics)


def _joined(lists: dict) -> dict:
    """The lists of all processes by key, each domain's and metric's in one."""
    parts = gather(dict(lists))
    return {key: [value for part in parts for value in part.get(key, [])] for part in parts for key in part}
