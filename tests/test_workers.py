"""What the tasks of slides and experiments have in common on a Dask cluster."""

from __future__ import annotations

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
