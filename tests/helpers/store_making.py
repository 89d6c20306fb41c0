"""
Makes MLflow stores in processes that are killed while they do so; run as a script, for it forks.

    python store_making.py FOLDER

Prints as JSON: ``killed``, folders in each of which a run was begun, and killed at another of its steps, which are
counted, so that neither load nor speed matters; ``half_made``, a folder where MLflow alone made a store, killed half
way; ``at_once``, the exit codes of two runs that began at once in a fresh folder, ``together``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import sqlalchemy
from ignite.engine import Engine
from mlflow import MlflowClient
from scripts.tracking.runs import TrackedRun

# at each quarter of all SQL statements; where SQLite files are opened to be copied; where the store gets its name
STEPS, OPENED = 4, (2, 3)


def begin_run(uri: str) -> None:
    engine = Engine(lambda engine, batch: None)
    TrackedRun(uri, "e", "r", {"a": 1}).attach(engine)
    engine.run([0], max_epochs=1)


def count_steps(die_at: tuple[str, int] | None, seen: dict[str, int]) -> None:
    """Count this process' steps by kind, and kill it at one."""

    def step(kind: str) -> None:
        seen[kind] = seen.get(kind, 0) + 1
        if die_at == (kind, seen[kind]):
            os.kill(os.getpid(), signal.SIGKILL)

    @sqlalchemy.event.listens_for(sqlalchemy.Engine, "before_cursor_execute")
    def _(*_) -> None:
        step("sql")

    sys.addaudithook(lambda event, _: step(event) if event in ("sqlite3.connect", "os.rename") else None)


def in_child(action) -> int:
    """Pid of a forked process that runs an action."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    return pid


def count(folder: Path) -> dict[str, int]:
    """How many steps of each kind a run takes that is not killed."""

    def whole() -> None:
        seen: dict[str, int] = {}
        count_steps(None, seen)
        begin_run(f"sqlite:///{folder / 'mlruns.db'}")
        (folder / "steps.json").write_text(json.dumps(seen))

    os.waitpid(in_child(whole), 0)
    return json.loads((folder / "steps.json").read_text())


def kill(folder: Path, begin: Callable[[str], object], moment: tuple[str, int]) -> None:
    def die() -> None:
        count_steps(moment, {})
        begin(f"sqlite:///{folder / 'mlruns.db'}")

    _, status = os.waitpid(in_child(die), 0)
    assert os.WIFSIGNALED(status), f"{folder}: it was to be killed"


def race(folder: Path) -> list[int]:
    ready, go = os.pipe(), os.pipe()

    def start() -> None:
        os.write(ready[1], b".")
        os.read(go[0], 1)
        begin_run(f"sqlite:///{folder / 'mlruns.db'}")

    pids = [in_child(start) for _ in range(2)]
    for _ in pids:
        os.read(ready[0], 1)
    os.write(go[1], b"..")
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def main(folder: Path) -> None:
    def place(name: str) -> Path:
        (folder / name).mkdir()
        return folder / name

    seen = count(place("whole"))
    moments = [("sql", 1 + n * (seen["sql"] - 1) // STEPS) for n in range(STEPS)]
    moments += [("sqlite3.connect", n) for n in OPENED if n <= seen["sqlite3.connect"]]
    moments += [("os.rename", n) for n in (1, 2)[: seen.get("os.rename", 0)]]
    killed = [place(f"{kind}_{n}") for kind, n in moments]
    for where, moment in zip(killed, moments):
        kill(where, begin_run, moment)
    kill(half := place("half_made"), MlflowClient, ("sql", seen["sql"] // 2))
    codes = race(place("together"))
    print(json.dumps({"killed": [str(where) for where in killed], "half_made": str(half), "at_once": codes}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
