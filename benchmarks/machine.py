"""What the benchmarks share: the bundle's configs opened from a script, and this machine's own speed."""

from __future__ import annotations

import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

BUNDLE = Path(__file__).resolve().parents[1] / "bundle"
sys.path.insert(0, str(BUNDLE))


def describe_machine() -> str:
    """Cores, PyTorch, threads: what a figure means nothing without."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    capability = torch.backends.cpu.get_cpu_capability()
    machine = f"{platform.machine()} {capability}, {cores} cores, {torch.get_num_threads()} threads"
    return f"{machine}, torch {torch.__version__}{gpu}"


def matmul_rate(side: int = 2048, repeat: int = 3) -> float:
    """FLOP/s of large single-precision matrix products, now."""
    import torch

    square = torch.randn(side, side)
    square @ square
    start = time.perf_counter()
    for _ in range(repeat):
        square @ square
    return repeat * 2 * side**3 / (time.perf_counter() - start)


def open_config(name: str, kind: str, **overrides):
    """The parser of one of the bundle's configs, initialised, with overrides."""
    from monai.bundle import ConfigWorkflow

    logging.disable(logging.WARNING)
    workflow = ConfigWorkflow(
        config_file=str(BUNDLE / "configs" / f"{name}.json"), workflow_type=kind, bundle_root=str(BUNDLE),
        logging_file=False, **overrides,
    )  # fmt: skip
    workflow.initialize()
    return workflow.parser


def in_turns(steps: dict[str, Callable[[], object]], repeat: int, warm_up: int = 2) -> dict[str, list[float]]:
    """Seconds of each of several things, done in turns, so that other load on the machine meets all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(warm_up + repeat):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def processes_in_turns(commands: dict[str, list[str]], repeat: int) -> tuple[dict[str, list[dict]], dict[str, str]]:
    """
    Like ``in_turns``, each in its own process, which answers every line it reads with one of JSON; one turn warms up.

    Returns:
        The answers of each, and what each printed when its input ended.
    """
    processes = {
        name: subprocess.Popen([sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name, command in commands.items()
    }
    answers: dict[str, list[dict]] = {name: [] for name in commands}
    for _ in range(repeat + 1):
        for name, process in processes.items():
            print("go", file=process.stdin, flush=True)
            answers[name].append(json.loads(process.stdout.readline()))
    last = {name: process.communicate()[0] for name, process in processes.items()}
    return {name: each[1:] for name, each in answers.items()}, last


def peak_memory() -> int:
    """Of this process, in bytes."""
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def ratio(above: list[float], below: list[float]) -> float:
    """Median over the turns of the ratio of two things done in turns."""
    return statistics.median(a / b for a, b in zip(above, below))
