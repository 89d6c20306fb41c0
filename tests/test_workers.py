"""What the tasks of slides and experiments have in common on a Dask cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from scripts import cluster
from scripts.cluster import on_cluster, still_wanted
from scripts.errors import DataError

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def scheduler():
    """Address of a scheduler with one worker, in threads of this process."""
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "protocol": "tcp://"}
    with distributed.LocalCluster(**options, dashboard_address=None) as workers:
        yield workers.scheduler_address


def halve(number: int, again: Path) -> float:
    if number == 2 and not again.exists():
        again.touch()
        raise OSError("the disk failed")
    if number % 2:
        raise DataError("number", f"{number} is odd", "Give an even one")
    return number / 2


def wait_for_nobody(begun: Path, ended: Path) -> None:
    begun.touch()
    while still_wanted():
        time.sleep(0.01)
    ended.touch()


def test_each_call_gives_its_result_or_why_there_is_none(scheduler, tmp_path):
    calls = ((number, (number, tmp_path / "again")) for number in (2, 3, 4))
    told = {key: (result, problem) for key, result, problem in on_cluster(scheduler, halve, calls, tmp_path / "out")}
    assert told == {2: (1.0, None), 3: (None, "number: 3 is odd. Give an even one"), 4: (2.0, None)}
    assert not list((tmp_path / "out").iterdir())


def test_a_call_is_made_when_a_worker_is_free(scheduler, tmp_path):
    asked = []

    def calls():
        for number in (4, 6, 8):
            asked.append(number)
            yield number, (number, tmp_path)

    for key, _, _ in on_cluster(scheduler, halve, calls(), tmp_path):
        assert asked[-1] == key, "the next one is not begun before this one is done"


def test_a_task_knows_when_its_client_has_ended(scheduler, tmp_path, monkeypatch):
    """As after Ctrl-C: workers of a scheduler live on."""
    monkeypatch.setattr(cluster, "LOOK", 0.05)
    begun, ended = tmp_path / "begun", tmp_path / "ended"

    def interrupt() -> None:
        if begun.exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(on_cluster(scheduler, wait_for_nobody, [(1, (begun, ended))], tmp_path, meanwhile=interrupt))
    deadline = time.monotonic() + 60
    while not ended.exists():
        assert time.monotonic() < deadline, "it waits for ever"
        time.sleep(0.01)


def test_workers_that_see_another_disk_are_told(scheduler, tmp_path, monkeypatch):
    @contextmanager
    def elsewhere(folder):
        yield folder / "missing"

    monkeypatch.setattr(cluster, "_mark", elsewhere)
    ((_, result, problem),) = on_cluster(scheduler, halve, [(2, (2, tmp_path))], tmp_path)
    assert result is None and f"{tmp_path} of this machine is not that of" in problem
    assert "on disks they share, at the same paths" in problem


INTERRUPTED = """
import os, signal, sys, threading, time
from pathlib import Path
import psutil
sys.path.insert(0, {bundle!r})
from scripts.cluster import on_cluster
from scripts.ending import end_clearly
import pauses

def workers():
    return [child.pid for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]

def interrupt():
    while not (born := workers()):  # what is found is told: a moment later it may be between two states
        time.sleep(0.01)
    print(*born, flush=True)
    os.killpg(0, {number})

end_clearly("The same command goes on.")
begun = Path("begun")
if {opening}:
    threading.Thread(target=interrupt, daemon=True).start()
meanwhile = lambda: interrupt() if begun.exists() and not {opening} else None
for _ in on_cluster("local:2", pauses.pause, [(n, (str(begun),)) for n in range(3)], ".", meanwhile=meanwhile):
    pass
"""
PAUSES = """
import time
from pathlib import Path

def pause(begun):
    Path(begun).touch()
    time.sleep(60)
"""


@pytest.mark.parametrize("opening", [True, False], ids=["while workers are begun", "while they work"])
def test_ctrl_c_ends_in_two_lines_and_without_workers(bundle_root, tmp_path, opening):
    """The terminal sends it to all processes."""
    psutil = pytest.importorskip("psutil")
    (tmp_path / "pauses.py").write_text(PAUSES)
    program = INTERRUPTED.format(bundle=str(bundle_root), number=int(signal.SIGINT), opening=opening)
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    options = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(tmp_path)}, "start_new_session": True}
    pipes = {"capture_output": True, "text": True, "timeout": 120, "check": False}
    done = subprocess.run([sys.executable, "-c", program], **options, **pipes, preexec_fn=heed)
    assert done.returncode != 0
    assert done.stderr.split("\n") == ["", "Interrupted: what was finished is kept.", "The same command goes on.", ""]
    workers = [int(pid) for pid in done.stdout.split()]  # an ended one may be there until it is waited for
    left = [process for process in psutil.process_iter() if process.pid in workers]
    assert workers and not [process for process in left if process.status() != psutil.STATUS_ZOMBIE]
    assert not list(tmp_path.glob(".cluster*"))
