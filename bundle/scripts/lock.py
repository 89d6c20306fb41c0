"""One process at a time in a folder that a verb writes into."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from filelock import FileLock, Timeout
from scripts.ending import FULL
from scripts.errors import DataError
from scripts.owned import LOCK, OwnFiles

__all__ = ["only_writer", "run_alone"]

logger = logging.getLogger(__name__)


def run_alone(folder: str | os.PathLike, steps: Sequence[Callable[[], Any]]) -> None:
    """
    The steps of a verb that write into its folder, while no other process can take it; what a kill left half-written
    there goes first. Of several processes that work together the first one holds the folder.

    Args:
        folder: of the results.
        steps: called one after the other.

    Raises:
        DataError: before the first step, see :func:`only_writer`.
    """
    if idist.get_rank() > 0:
        _run(steps)
        return
    with only_writer(folder, inside=True):
        OwnFiles(folder).remove_partial()
        _run(steps)


def _run(steps: Sequence[Callable[[], Any]]) -> None:
    for step in steps:
        step()


@contextmanager
def only_writer(folder: str | os.PathLike, inside: bool = False) -> Iterator[None]:
    """
    Lets no other process write the same results while the block runs.

    The lock is the operating system's, on a file: it ends with the process, however that ends, so a killed run never
    stands in the way of the next one. On disks shared by several machines it is as good as their
    file system's locks.

    Args:
        folder: of the results; it need not exist.
        inside: the file lies in the folder, which is made, and not beside it, where a folder that is to be renamed
            needs it.

    Raises:
        DataError: when another process has it, naming that one; when the file is not a lock of ours; when nothing can
            be written there.
    """
    folder = Path(folder)
    path = folder / LOCK if inside else folder.with_name(f".{folder.name}.lock")
    other = _holder(path)  # before the attempt: opening the file may empty it
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        hint = "Wait until it has ended, or end it, or give this run another --output_dir"
        raise DataError(folder, f"{other} is writing there", hint) from None
    except OSError as error:
        if error.errno in FULL:
            raise
        hint = "Choose another --output_dir"
        raise DataError(folder, f"nothing can be written there ({error.strerror})", hint) from error
    except NotImplementedError:
        logger.warning("%s: its disk has no locks: let no other process write there", folder)
    try:
        path.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}), encoding="utf-8")
        yield
    finally:
        with suppress(OSError):  # where a file that is open cannot be removed, it stays
            path.unlink()
        lock.release()


def _holder(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "another process"
    if not text:  # not yet written
        return "another process"
    try:
        about = json.loads(text)
        return f"process {about['pid']} on {about['host']}"
    except (ValueError, KeyError, TypeError):
        raise DataError(path, "it was not written by this bundle and would be replaced", "Move it away") from None
