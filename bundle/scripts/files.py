from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["atomic_path", "sha256_of", "write_table"]


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """
    Write aside, then rename: yields a temporary path beside ``path`` that becomes ``path`` only if the block succeeds.

    A reader, or a run killed in the middle, therefore never sees a half-written file. The temporary name keeps the
    suffix, because many writers choose the format by it. Missing parent folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_table(path: str | os.PathLike, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """
    Write rows as CSV, whole or not at all.

    Args:
        path: the file.
        rows: values by column; what a row lacks stays empty.
        columns: the first columns; those that rows have besides follow as they come.
    """
    names = list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def sha256_of(path: str | os.PathLike) -> str | None:
    """Checksum (hex) of a file's content, None if there is no such file."""
    if not Path(path).is_file():
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
