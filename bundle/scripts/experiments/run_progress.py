from __future__ import annotations

import re
import sys
import time
from pathlib import Path

from tqdm import tqdm

__all__ = ["RunProgress", "last_line"]

EVERY, EVERY_IN_A_FILE = 2.0, 60.0  # seconds between two lines of progress on a terminal, and where each one stays
TAIL = 4096  # bytes of a log in which its last line is looked for


class RunProgress:
    """
    Says what the runs do beside a bar that counts them: each one's start, and now and then its last words.

    Args:
        bar: of the experiment; on a terminal it shows them, elsewhere they are lines of their own, once a minute.
        total: number of the experiment's runs.
    """

    def __init__(self, bar: tqdm, total: int) -> None:
        self.bar, self.total = bar, total
        self.terminal = sys.stderr.isatty()
        self._next = 0.0

    def started(self, number: int, name: str) -> None:
        """A run begins; ``number`` counts from 1."""
        tqdm.write(f"run {number} of {self.total}: {name}")
        self._next = time.monotonic() + (EVERY if self.terminal else EVERY_IN_A_FILE)

    def tell(self, number: int, name: str, line: str) -> None:
        """The last line that a run's verb has printed."""
        if not line or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + (EVERY if self.terminal else EVERY_IN_A_FILE)
        message = f"run {number} of {self.total}: {name}: {line}"
        if self.terminal:
            self.bar.set_postfix_str(message)
        else:
            tqdm.write(message)


def last_line(log: Path, start: int = 0) -> str:
    """The last line of a log behind a byte, without the drawing of a progress bar; empty if there is none yet."""
    with log.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(start, size - TAIL))
        text = file.read().decode(errors="replace")
    lines = [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]
    return " ".join(re.sub(r"\|[^|]*\|", " ", lines[-1]).split()) if lines else ""
