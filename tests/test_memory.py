"""Freed memory is kept: large tensors stop costing the system's time."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# how much of a large tensor's memory is still the process' own after the tensor is gone, in pages
KEPT = """
import torch
from scripts.memory import keep_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1])

done = keep_freed_memory()
torch.ones(2**10)
before = resident()
large = torch.ones(2**24)
during = resident()
del large
print(done, (resident() - before) / (during - before))
"""


@pytest.fixture
def kept(bundle_root, monkeypatch):
    def kept(**environment: str) -> tuple[bool, float]:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        command = [sys.executable, "-c", KEPT]
        done, share = subprocess.run(
            command, cwd=bundle_root, capture_output=True, text=True, check=True
        ).stdout.split()
        return done == "True", float(share)

    return kept


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's malloc")
def test_freed_memory_stays_unless_the_user_sets_malloc(kept):
    done, share = kept()
    assert done and share > 0.9
    done, share = kept(MALLOC_ARENA_TEST="8")  # as glibc has it, so nothing else changes
    assert not done and share < 0.1


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
