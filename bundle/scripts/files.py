from __future__ import annotations

import codecs
import csv
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from scripts.errors import DataError

__all__ = [
    "LEFT",
    "atomic_folder",
    "atomic_path",
    "bundle_version",
    "finished_name",
    "has_columns",
    "is_store",
    "read_json",
    "read_text",
    "remove_partial",
    "sha256_of",
    "unused_path",
    "walk_files",
    "write_json",
    "write_table",
]


logger = logging.getLogger(__name__)

LEFT = 3600.0  # seconds after which nobody writes a file any longer, where several processes may
_PARTIAL = re.compile(r"\.(?P<stem>.+)\.[0-9a-f]{12}\.partial(?P<suffix>\.[^.]*)?")


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """
    Write aside, then rename: yields a temporary path beside ``path`` that becomes ``path`` only if the block succeeds.

    A reader, or a run killed in the middle, therefore never sees a half-written file. The temporary name keeps the
    suffix, because many writers choose the format by it. Missing parent folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # random, for two containers that share a disk may both be process 1
    partial = path.with_name(f".{path.stem}.{secrets.token_hex(6)}.partial{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """As :func:`atomic_path` for a folder; none with anything in it may be there when the block ends."""
    path = Path(path)
    partial = path.with_name(f".{path.stem}.{secrets.token_hex(6)}.partial{path.suffix}")
    try:
        partial.mkdir(parents=True)
        yield partial
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def is_store(path: str | os.PathLike) -> bool:
    """Whether a folder counts as one file: a store of zarr, by its name."""
    return os.fspath(path).lower().endswith(".zarr") and os.path.isdir(path)


def finished_name(name: str) -> str | None:
    """The name that a temporary file of :func:`atomic_path` was to get, None for any other file."""
    found = _PARTIAL.fullmatch(name)
    return found and found["stem"] + (found["suffix"] or "")


def remove_partial(folder: Path, of: Callable[[str], bool], older_than: float = 0.0) -> None:
    """
    Remove what a kill left of files that were being written directly in a folder.

    Args:
        folder: it need not exist.
        of: whether it may be removed, by the name of the file that it was to become.
        older_than: seconds since it was last written to; :data:`LEFT` where another process may be writing now.
    """
    for path in folder.glob(".*.partial*"):
        with suppress(FileNotFoundError):  # that other process has finished it
            name = finished_name(path.name)
            ours = name and of(name) and (path.is_file() or is_store(path)) and not path.is_symlink()
            if ours and path.stat().st_mtime <= time.time() - older_than:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def unused_path(path: str | os.PathLike) -> Path:
    """The path, or where it is taken, one with a number: ``model.pt``, ``model_2.pt`` ..."""
    path = Path(path)
    number, unused = 2, path
    while unused.exists():
        number, unused = number + 1, path.with_stem(f"{path.stem}_{number}")
    return unused


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


def has_columns(path: str | os.PathLike, columns: Sequence[str]) -> bool:
    """Whether a file is a CSV table of exactly these columns."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return next(csv.reader(file), None) == list(columns)
    except (OSError, ValueError, csv.Error):
        return False


def write_json(path: str | os.PathLike, content: Any, default: Callable[[Any], Any] | None = None) -> None:
    """
    Write plain values as JSON, whole or not at all.

    Args:
        path: the file.
        content: the values.
        default: gives a plain value for one that is not.

    Raises:
        ValueError: for NaN or infinity, which JSON does not have.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False, default=default)
    with atomic_path(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike) -> Any:
    """The content of a JSON file; DataError when it cannot be read."""
    try:
        return json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(path, f"the file cannot be read as JSON ({error})", "Correct or replace it.") from error


def read_text(path: str | os.PathLike) -> str:
    """Text of a file in UTF-8 or UTF-16; editors on Windows write a mark first that tells which."""
    content = Path(path).read_bytes()
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if marked else "utf-8-sig")


def walk_files(folder: str | os.PathLike, stores: bool = False) -> Iterator[Path]:
    """
    Files in a folder and below, by name; hidden ones are passed over. Links to folders are followed, each real folder
    once, so that loops end; a folder that cannot be read is warned of. With ``stores`` a store of zarr is one file.
    """
    seen: set[tuple[int, int]] = set()

    def tell(error: OSError) -> None:
        logger.warning("%s: the folder cannot be read (%s)", error.filename, error.strerror)

    for parent, folders, names in os.walk(folder, followlinks=True, onerror=tell):
        about = os.stat(parent)
        if (about.st_dev, about.st_ino) in seen:
            folders.clear()
            continue
        seen.add((about.st_dev, about.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if stores:
            names += [name for name in folders if is_store(os.path.join(parent, name))]
            folders[:] = [name for name in folders if name not in names]
        yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))


def sha256_of(path: str | os.PathLike) -> str | None:
    """Checksum (hex) of a file's content, None if there is no such file."""
    if not Path(path).is_file():
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bundle_version(bundle_root: str | os.PathLike) -> str:
    """Version of the bundle, as its metadata says; DataError when they cannot be read."""
    return str(read_json(Path(bundle_root) / "configs" / "metadata.json")["version"])
