"""Finished tiles of a slide on disk, from which an interrupted run goes on."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["JOURNAL", "Journal"]

logger = logging.getLogger(__name__)

JOURNAL = "journal.jsonl"


class Journal:
    """
    Files that grow tile by tile and survive a kill: each tile's text is on the disk before the journal says so.

    A run that is killed, or whose disk fills up, leaves at most text that the journal does not know of; the next run
    cuts it off and goes on. Where settings differ from those the journal was begun with, it is begun anew.

    Args:
        folder: of the files, made if missing; ``JOURNAL`` is its own.
        heads: {file name: what it begins with}.
        settings: plain values on which the text depends.
    """

    def __init__(self, folder: str | os.PathLike, heads: Mapping[str, bytes], settings: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._path = self.folder / JOURNAL
        self._settings = json.loads(json.dumps(dict(settings), default=str))
        self._sizes = {name: len(text) for name, text in heads.items()}
        length = self._check()
        begun = length > 0
        self._log = _open_at(self._path, length)
        self._files = {name: _open_at(self.folder / name, self._sizes[name] if begun else 0) for name in heads}
        if not begun:
            for name, text in heads.items():
                self._append(self._files[name], text)
            self._log_line({"settings": self._settings})

    def records(self) -> Iterator[dict]:
        """What was written with the tiles that are finished, in order."""
        with self._path.open("rb") as file:
            for line in _whole_lines(file):
                if "settings" not in (record := json.loads(line)):
                    yield record

    def write(self, texts: Mapping[str, bytes], record: Mapping[str, Any]) -> None:
        """Append a tile's text to the files, and only then its record."""
        for name, text in texts.items():
            self._append(self._files[name], text)
            self._sizes[name] += len(text)
        self._log_line({**record, "sizes": self._sizes})

    def finish(self, tails: Mapping[str, bytes]) -> None:
        """Append the ends of the files and close them; the journal itself goes with its folder."""
        for name, text in tails.items():
            self._append(self._files[name], text)
        self.close()

    def close(self) -> None:
        for file in (*self._files.values(), self._log):
            file.close()

    def _check(self) -> int:
        """Length of the journal that counts, after setting what the files' lengths must be; 0 to begin anew."""
        if not self._path.exists():
            return 0
        length, first = 0, None
        with self._path.open("rb") as file:
            for line in _whole_lines(file):
                first = json.loads(line) if first is None else first
                length += len(line)
                last = line
        if first is None:
            return 0
        old = first["settings"]
        changed = [key for key in {**old, **self._settings} if old.get(key) != self._settings.get(key)]
        if changed:
            logger.warning("%s: begun with other settings (%s), begins anew", self.folder, ", ".join(changed))
            return 0
        self._sizes.update(json.loads(last).get("sizes", {}))
        files = [self.folder / name for name in self._sizes]
        if any(not file.exists() or file.stat().st_size < self._sizes[file.name] for file in files):
            logger.warning("%s: its files are shorter than its journal says, begins anew", self.folder)
            return 0
        return length

    def _log_line(self, content: Mapping[str, Any]) -> None:
        self._append(self._log, json.dumps(content).encode() + b"\n")

    @staticmethod
    def _append(file: BinaryIO, text: bytes) -> None:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _open_at(path: Path, length: int) -> BinaryIO:
    """A file to append to, cut to so many bytes."""
    file = path.open("r+b" if path.exists() else "w+b")
    file.truncate(length)
    file.seek(length)
    return file


def _whole_lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines up to the first one that a kill cut short."""
    for line in file:
        if not line.endswith(b"\n"):
            return
        yield line
