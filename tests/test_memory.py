"""Freed memory is kept: large tensors stop costing the system's time."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# 40 tensors of 64 MB, one after the other: how many of their 16384 pages were touched for the first time
COUNT = """
import resource, torch
from scripts.memory import keep_freed_memory
done = keep_freed_memory()
torch.zeros(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(40):
    torch.ones(2**24)
print(done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.fixture
def count(bundle_root, monkeypatch):
    def count(**environment: str) -> tuple[bool, int]:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        command = [sys.executable, "-c", COUNT]
        done, faults = subprocess.run(
            command, cwd=bundle_root, capture_output=True, text=True, check=True
        ).stdout.split()
        return done == "True", int(faults)

    return count


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's malloc")
def test_pages_are_touched_once_unless_the_user_sets_malloc(count):
    done, kept = count()
    assert done and kept < 15 * 16384, "the heap grows for a few of them, and then no more"
    done, default = count(MALLOC_ARENA_TEST="8")  # as glibc has it, so nothing else changes
    assert not done and default > 2 * kept


def test_every_verb_keeps_freed_memory(bundle_root, monkeypatch):
    from scripts import setup_run

    called = []
    monkeypatch.setattr(setup_run, "keep_freed_memory", lambda: called.append(True))
    setup_run.setup_run(0, bundle_root / "configs" / "train.json")
    assert called


def test_another_c_library_is_no_error(monkeypatch):
    from scripts import memory

    for name in ("GLIBC_TUNABLES", "MALLOC_ARENA_TEST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert memory.keep_freed_memory() is False
