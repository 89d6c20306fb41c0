"""Where the time of a verb goes: the phase under way, and the seconds of each so far."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

__all__ = ["PHASES", "Phases", "process_age"]

_COMMANDS = ("monai.bundle", "ama_sam", "ama-sam")  # beginnings of the programs that are started for one verb


class Phases:
    """
    One phase after the other, told by whoever begins it; one within another interrupts that, so the seconds of all sum
    to the time by the clock. What earlier processes took of the same work is added, where it goes on.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.begin()

    def begin(self, ago: float = 0.0) -> None:
        """Forget what was: the phase ``starting`` has begun some seconds ago."""
        self._seconds: dict[str, float] = {}
        self.processes = 1
        self._phase, self._since = "starting", self._clock() - ago

    def enter(self, phase: str) -> str:
        """The phase under way ends, another begins; gives the one that ended."""
        now, before = self._clock(), self._phase
        self._seconds[before] = self._seconds.get(before, 0.0) + now - self._since
        self._phase, self._since = phase, now
        return before

    @contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """A block, or as a decorator a function, is a phase; behind it the one before goes on."""
        before = self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    def seconds(self) -> dict[str, float]:
        """Of each phase until now."""
        self.enter(self._phase)
        return dict(self._seconds)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: the seconds until now, and of how many processes."""
        return {"seconds": self.seconds(), "processes": self.processes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Add what a checkpoint says to what this process took so far."""
        for phase, seconds in state["seconds"].items():
            self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds
        self.processes += state["processes"]


def process_age() -> float:
    """Seconds since this process began, if it was begun for one verb; 0 in a notebook or a server."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    program = spec.name if spec else Path(getattr(main, "__file__", None) or "").name
    return time.time() - psutil.Process().create_time() if program.startswith(_COMMANDS) else 0.0


PHASES = Phases()
