from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from scripts.errors import DataError

__all__ = ["only_writer"]


@contextmanager
def only_writer(folder: str | os.PathLike) -> Iterator[None]:
    """
    Lets no other process write the same results while the block runs.

    The lock is the operating system's, on a file beside the folder: it ends with the process, however that ends, so a
    killed run never stands in the way of the next one. On disks shared by several machines it is as good as their
    file system's locks.

    Args:
        folder: of the results; it need not exist.

    Raises:
        DataError: when another process has it, naming that one; when the file beside the folder is not a lock of ours.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f".{folder.name}.lock")
    other = _holder(path)  # before the attempt: opening the file may empty it
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        hint = "Wait until it has ended, or end it, or give this run another --output_dir"
        raise DataError(folder, f"{other} is writing there", hint) from None
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
