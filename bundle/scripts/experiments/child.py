from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.cluster import still_wanted
from scripts.errors import DataError
from scripts.experiments.run_progress import last_line
from scripts.experiments.verbs import BundleVerb, VerbFailed, VerbKilled
from scripts.files import read_json, unused_path, write_json

__all__ = ["Child", "NotWanted", "run_on_worker"]

_STATE, _CHECKPOINT = "state.json", "checkpoint.pt"


class NotWanted(RuntimeError):
    """Nobody waits for this run any longer."""


@dataclass(frozen=True)
class Child:
    """
    The two verbs of a planned run, ready to be run, here or by a worker that sees the same paths.

    Args:
        folder: of the child's files.
        training, evaluating: the verbs.
        identity: what the training is made of, see :meth:`BundleVerb.identity`.
        train, evaluate: settings of this run of theirs.
        config: config file of the training besides its own.
        threads: of a verb's process on the CPU; None leaves that to PyTorch.
    """

    folder: Path
    training: BundleVerb
    evaluating: BundleVerb
    identity: Mapping[str, Any]
    train: Mapping[str, Any]
    evaluate: Mapping[str, Any]
    config: str | None = None
    threads: int | None = None

    @property
    def logs(self) -> list[Path]:
        """Of the verbs, in their order."""
        return [self.folder / f"{verb.verb}.log" for verb in (self.training, self.evaluating)]

    def last_words(self, since: float) -> str:
        """The last line that a verb has printed since a time, wherever it runs."""
        written = [log for log in self.logs if log.is_file() and log.stat().st_mtime >= since]
        return last_line(max(written, key=lambda log: log.stat().st_mtime)) if written else ""

    def run(self, tell: Callable[[str], None] = lambda line: None) -> None:
        """
        Train, from the checkpoint if there is one, and evaluate.

        Args:
            tell: gets, again and again, the last line that a verb has printed.

        Raises:
            VerbFailed: when a verb fails.
            DataError: when the folder holds a training of somebody else's.
        """
        self._train(tell)
        self.evaluating.run(self.folder, self.evaluate, threads=self.threads, progress=tell)

    def _train(self, tell: Callable[[str], None]) -> None:
        """Train, go on training, or do nothing where the folder holds the trained model already."""
        state_file, checkpoint = self.folder / _STATE, self.folder / _CHECKPOINT
        state = read_json(state_file) if state_file.is_file() else {}
        if "settings" not in state and (
            foreign := [file for file in (checkpoint, self.folder / "model.pt") if file.exists()]
        ):
            hint = "Give the experiment another name or output_dir, or move it away"
            raise DataError(foreign[0], "it was not written by an experiment and would be replaced", hint)
        if state.get("settings") != self.identity:
            _lay_aside(checkpoint, "of_other_settings")  # and never finished
            state = {"settings": self.identity, "trained": False}
            write_json(state_file, state)
        try:
            # a finished one: killed between the end of the training and the last line below
            trained = state["trained"] or (checkpoint.is_file() and _finished(checkpoint))
        except DataError:
            _lay_aside(checkpoint, "unreadable")
            trained = False
        if trained and (self.folder / "model.pt").is_file():
            return
        settings = {**self.train, "resume": checkpoint.is_file()}
        try:
            self.training.run(self.folder, settings, self.config, self.threads, tell)
        except VerbFailed as error:
            if not settings["resume"]:
                raise
            told = f"{error} (it went on from {checkpoint}: without that file it is begun anew)"
            raise type(error)(told) from error
        write_json(state_file, {**state, "trained": True})


def run_on_worker(child: Child) -> str | None:
    """
    Run a child in a task of :func:`scripts.cluster.on_cluster`.

    Returns:
        why it failed, if it did.

    Raises:
        VerbKilled, OSError: where memory or disk were full: another worker may have more.
        NotWanted: when its experiment ended.
    """

    def look(line: str) -> None:
        if not still_wanted():
            raise NotWanted(child.folder.name)

    try:
        child.run(look)
    except VerbKilled:
        raise
    except (VerbFailed, DataError) as error:
        return str(error)
    return None


def _finished(checkpoint: Path) -> bool:
    # here, for it takes torch, and a worker that only waits for its verbs begins without in a tenth of the time
    from scripts.training.checkpoints import read_checkpoint

    return read_checkpoint(checkpoint).get("finished", False)


def _lay_aside(checkpoint: Path, why: str) -> None:
    """Out of the way and not away: it may be hours of training."""
    if checkpoint.is_file():
        os.replace(checkpoint, unused_path(checkpoint.with_stem(f"{checkpoint.stem}_{why}")))
