from __future__ import annotations

import os
from pathlib import Path

from ignite.engine import Engine, Events
from scripts.files import write_json
from scripts.phases import PHASES, Phases

__all__ = ["TimedSteps", "TimeTold"]

# phases in their order, and how they are told; waiting is told as a part of the steps
_TOLD = {
    "starting": "starting",
    "checking": "checking data",
    "labelling": "labelling images without labels",
    "encoding": "encoding features",
    "steps": "training steps",
    "validating": "validating",
    "recording": "recording",
    "report": "report",
}


class TimedSteps:
    """
    Tells :data:`PHASES` of a training's steps, the waiting for their data, its validations and, when it is completed,
    its report; what is between these is ``recording``: curves, checkpoints, MLflow. List it before all other handlers.

    (Ignite's profilers know an event's handlers as a whole, of one engine, and nothing of what comes before it.)

    Args:
        validator: the engine of the validations.
        phases: takes it down.
    """

    def __init__(self, validator: Engine | None = None, phases: Phases = PHASES) -> None:
        self.validator, self.phases = validator, phases

    def attach(self, engine: Engine) -> None:
        when = {
            Events.STARTED: "recording",
            Events.GET_BATCH_STARTED: "waiting",
            Events.GET_BATCH_COMPLETED: "steps",
            Events.EPOCH_COMPLETED: "recording",
            Events.COMPLETED: "report",
        }
        for event, phase in when.items():
            engine.add_event_handler(event, self._enter, phase)
        if self.validator is not None:
            self.validator.add_event_handler(Events.STARTED, self._validation_started)
            self.validator.add_event_handler(Events.COMPLETED, lambda engine: self.phases.enter(self._before))

    def _enter(self, engine: Engine, phase: str) -> None:
        self.phases.enter(phase)

    def _validation_started(self, engine: Engine) -> None:
        self._before = self.phases.enter("validating")


class TimeTold:
    """
    When a training is completed, prints where its time went, writes it as ``phases.json`` and adds it to
    ``engine.state.metrics``: ``seconds/<phase>`` for each phase, ``seconds/waiting`` for the part of the steps that
    waited for data, ``seconds/total``. Of a training that was gone on with it is the time of all its processes, as far
    as their checkpoints tell; how many is ``processes`` in the file. List it behind the reports, before what files
    metrics.

    Args:
        path: the file.
        phases: of :class:`TimedSteps`.
    """

    def __init__(self, path: str | os.PathLike, phases: Phases = PHASES) -> None:
        self.path, self.phases = Path(path), phases

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        passed = self.phases.seconds()
        waiting = passed.pop("waiting", 0.0)
        passed["steps"] = passed.get("steps", 0.0) + waiting
        seconds = {name: passed.get(name, 0.0) for name in _TOLD}
        total = sum(seconds.values())
        told = {name: f"{words} {seconds[name]:.0f} s ({seconds[name] / total:.0%})" for name, words in _TOLD.items()}
        if not seconds["labelling"]:
            told.pop("labelling")
        told["steps"] += f", of these {waiting:.0f} s waiting for data"
        whose = "this process" if self.phases.processes == 1 else f"{self.phases.processes} processes"
        print(f"The {total:.0f} s of {whose} until now: {', '.join(told.values())}.")
        about = {**seconds, "waiting": waiting, "total": total}
        write_json(self.path, {**about, "processes": self.phases.processes})
        engine.state.metrics.update({f"seconds/{name}": value for name, value in about.items()})
        self.phases.enter("recording")
