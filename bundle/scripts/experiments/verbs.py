"""Verbs of the bundle as processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from scripts.ending import ENDS_WITH_STDIN
from scripts.experiments.run_progress import last_line
from scripts.files import sha256_of, write_json

__all__ = ["BundleVerb", "VerbFailed", "VerbKilled"]

_REASON_LENGTH = 1000
_LOOK = 1.0  # seconds between two looks at the log of a running verb


class VerbFailed(RuntimeError):
    """A verb's process ended with an error; the message is the last thing it said."""


class VerbKilled(VerbFailed):
    """A signal ended it, as the system's when memory is full."""


class BundleVerb:
    """
    A verb of this bundle, run as ``python -m monai.bundle run`` in a process of its own.

    So no run inherits anything from an earlier one: random state, memory, threads, or what a crash leaves behind. The
    process ends with the one that started it, however that ends.

    Args:
        verb: e.g. ``training``.
        config_file: its config.
        settings: keys of that config, the same for all runs; they belong to what a run is.
        places: further keys that say where things lie, not what they are: folders, devices.
    """

    def __init__(
        self, verb: str, config_file: str, settings: Mapping[str, Any], places: Mapping[str, Any] | None = None
    ) -> None:
        self.verb, self.config_file = verb, str(config_file)
        self.settings, self.places = dict(settings), dict(places or {})

    def identity(self, settings: Mapping[str, Any], config: str | None) -> dict[str, Any]:
        """What a run with these settings is made of, apart from places: plain values, and the config's content."""
        content = {} if config is None else {"config": sha256_of(config)[:16]}
        # as it comes back from JSON, so that what is stored can be compared
        return json.loads(json.dumps({**self.settings, **settings, **content}, sort_keys=True, default=str))

    def run(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        config: str | None = None,
        threads: int | None = None,
        progress: Callable[[str], None] = lambda line: None,
    ) -> None:
        """
        Run the verb and wait for it. Several threads may do so at once.

        Args:
            folder: takes ``<verb>_settings.json``, which is the last config file of the run and can be run by hand,
                and ``<verb>.log``, all that it prints, appended.
            settings: keys of this run.
            config: config file between the verb's own and the settings.
            threads: of the process on the CPU; None leaves that to PyTorch.
            progress: gets, about once a second, the last line that the verb has printed; what it raises ends the verb.

        Raises:
            VerbFailed: with the reason, when the process fails; VerbKilled, when a signal ended it.
        """
        overlay = folder / f"{self.verb}_settings.json"
        write_json(overlay, {**self.places, **self.settings, **settings}, default=str)
        files = [self.config_file, *([] if config is None else [config]), str(overlay)]
        command = [sys.executable, "-m", "monai.bundle", "run", self.verb, "--config_file", repr(files)]
        with (folder / f"{self.verb}.log").open("a+", encoding="utf-8", errors="replace") as log:
            log.seek(0, 2)
            start = log.tell()
            env = {**os.environ, ENDS_WITH_STDIN: "1"}
            if threads is not None:
                env["OMP_NUM_THREADS"] = str(threads)
            options = {"stdout": log, "stderr": subprocess.STDOUT, "stdin": subprocess.PIPE, "env": env}
            code = self._wait(command, lambda: progress(last_line(Path(log.name), start)), **options)
            log.seek(start)
            if code < 0:
                hint = " (out of memory?)" if code == -9 else ""
                raise VerbKilled(f"{self.verb}: killed by signal {-code}{hint}")
            if code:
                raise VerbFailed(f"{self.verb}: {_reason(log.read(), code)}")

    def _wait(self, command: list[str], look: Callable[[], None], **options: Any) -> int:
        look()
        with subprocess.Popen(command, **options) as process:  # nosec B603 # no shell; our own verbs
            try:
                while (code := _ended(process)) is None:
                    look()
            finally:
                process.kill()  # does nothing to one that has ended
        return code


def _ended(process: subprocess.Popen) -> int | None:
    """A process' exit code; None if it still runs after a while."""
    try:
        return process.wait(_LOOK)
    except subprocess.TimeoutExpired:
        return None


def _reason(printed: str, code: int) -> str:
    """The last error printed, see ``setup_run``, else the last line."""
    _, failed, error = printed.rpartition("\nError: ")
    lines = printed.strip().splitlines()
    reason = error.strip() if failed else (lines[-1] if lines else "")
    return (reason or f"exit code {code}")[:_REASON_LENGTH]
