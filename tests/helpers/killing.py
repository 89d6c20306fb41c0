"""
Runs verbs in processes of their own that get a signal at a known step; run as a script, for it forks.

    python killing.py CASES.json

Each case is ``{"verb", "config", "settings", "log"}``, run as ``python -m monai.bundle run VERB`` would, its output in
the file ``log``; with ``"kill": {"step", "path", "nth", "signal"}`` it gets a signal at the nth of its steps of that
kind on such a path: ``os.rename`` and ``open`` before they happen, ``os.fsync`` (without a path) behind it. With
``"count"`` the steps are counted into that file instead. Prints the exit codes as JSON. The libraries are loaded once,
and a process knows its own steps: neither load nor speed matters.
"""

from __future__ import annotations

import fnmatch
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

BUNDLE = Path(__file__).resolve().parents[2] / "bundle"
STEPS = ("os.rename", "open", "os.fsync")


def run_verbs(cases: Sequence[dict]) -> list[int]:
    """Exit codes of the cases, negative ones of signals."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(cases, file)
        file.flush()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        program = [sys.executable, __file__, file.name]
        done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def case(verb: str, config: str, log: Path, kill: dict | None, settings: dict) -> dict:
    """A case of :func:`run_verbs`, of one of the bundle's configs."""
    settings = {key: str(value) for key, value in settings.items()}
    return {"verb": verb, "config": config, "settings": settings, "log": str(log), "kill": kill}


def kill_at(step: str, path: str = "*", nth: int = 1, number: int = signal.SIGKILL) -> dict:
    return {"step": step, "path": path, "nth": nth, "signal": int(number)}


def _watch(kill: dict | None, count: str | None) -> None:
    if kill is None and count is None:
        return
    seen = {"killed": 0, **dict.fromkeys(STEPS, 0)}
    main = os.getpid()

    def step(kind: str, path: str) -> None:
        if os.getpid() != main:  # a process that this one started
            return
        seen[kind] += 1
        if count is not None:
            return
        if kind == kill["step"] and fnmatch.fnmatch(path, kill["path"]):
            seen["killed"] += 1
            if seen["killed"] == kill["nth"]:
                os.kill(main, kill["signal"])

    def hook(event: str, arguments: tuple) -> None:
        if event == "os.rename":
            step(event, str(arguments[1]))
        elif event == "open" and isinstance(arguments[0], (str, os.PathLike)) and arguments[2] & os.O_ACCMODE:
            step(event, str(arguments[0]))

    sync = os.fsync

    def counted(descriptor: int) -> None:
        sync(descriptor)
        step("os.fsync", "")

    os.fsync = counted
    sys.addaudithook(hook)
    if count is not None:
        import atexit

        atexit.register(lambda: Path(count).write_text(json.dumps(seen)) if os.getpid() == main else None)


def _run(case: dict) -> None:
    log = os.open(case["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored where tests run in the background
    arguments = {"config_file": str(BUNDLE / "configs" / case["config"]), "bundle_root": str(BUNDLE)}
    given = [part for key, value in {**arguments, **case["settings"]}.items() for part in (f"--{key}", str(value))]
    sys.argv = ["monai.bundle", "run", case["verb"], *given]
    _watch(case.get("kill"), case.get("count"))
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)


def _load() -> None:
    sys.path[:0] = [str(BUNDLE), str(Path(__file__).parent)]
    import fakes  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import monai.bundle  # noqa: F401
    import slides  # noqa: F401


if __name__ == "__main__":
    _load()
    codes = []
    for one in json.loads(Path(sys.argv[1]).read_text()):
        pid = os.fork()
        if pid == 0:
            _run(one)
            sys.exit(0)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    print(json.dumps(codes))
