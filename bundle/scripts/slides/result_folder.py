"""One slide's folder of results: finished, begun by other settings, or somebody else's."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from scripts.errors import DataError
from scripts.files import is_store, read_json
from scripts.owned import OwnFiles, remove_own_folder
from scripts.slides.journal import JOURNAL
from scripts.slides.nuclei_output import OUTPUTS, STREAM
from scripts.slides.tile_overlays import TILE_OVERLAYS

__all__ = ["ResultFolder", "check_folders", "file_stamp", "read_summary"]

UNFINISHED = (JOURNAL, STREAM)  # go when the results are whole
FILES = (*OUTPUTS.values(), "tiles.csv", "overview.jpg", "summary.json", "unread.csv", *UNFINISHED)
ANOTHER = "Choose another output_dir"


class ResultFolder:
    """
    The folder of one slide's results, and the two beside it by which it is whole whenever it exists.

    Results grow in ``.<name>.unfinished``. Once they are whole, an earlier result is put aside as ``.<name>.old``, the
    new one gets its name and the old one is removed. A run that is killed in between is mended by the next one, see
    :meth:`restore`. Only what we wrote is ever renamed or removed.

    Args:
        folder: of the results; it need not exist.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        self.unfinished = self.folder.with_name(f".{self.folder.name}.unfinished")
        self.old = self.folder.with_name(f".{self.folder.name}.old")

    def check(self, slide: str | os.PathLike) -> None:
        """
        Changes nothing.

        Args:
            slide: whose results are to come here.

        Raises:
            DataError: when one of the three folders holds anything that we did not write, or is the result of another
                slide. What a user puts among finished results stands in the way only of replacing them.
        """
        for folder in (self.folder, self.unfinished, self.old):
            others = _files(folder).others()
            if others and not (folder == self.folder and _is_result(folder)):
                what = f"results of {slide} belong here, but {_relative(others[0], folder)} is not one"
                raise DataError(folder, what, f"{ANOTHER}, or move it away; nothing of it was touched")
        summary = _summary(self.folder)
        if summary is None or os.path.abspath(summary["slide"]) == os.path.abspath(slide):
            return
        if not os.path.exists(slide) or summary["settings"].get("file") != file_stamp(slide):
            raise DataError(self.folder, f"it holds the results of another slide, {summary['slide']}", ANOTHER)

    def restore(self) -> None:
        """Mend what a kill between the renames left: the earlier result gets its name again, or goes."""
        if self.old.exists() and not self.folder.exists():
            self.old.rename(self.folder)
        remove_own_folder(_files(self.old))

    def finished(self, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """The summary of a finished run with the same settings."""
        summary = _summary(self.folder)
        return summary if summary and summary["settings"] == json.loads(json.dumps(settings, default=str)) else None

    def begin(self, resume: bool = True) -> Path:
        """
        The folder to write into; with ``resume`` what an unfinished run wrote is there.

        Raises:
            DataError: when earlier results cannot be replaced, because something else lies among them.
        """
        self._check_replaceable()
        if not resume:
            self.discard()
        files = _files(self.unfinished)
        files.add([*FILES, *TILE_OVERLAYS])
        files.remove_partial()
        return self.unfinished

    def discard(self) -> None:
        """Remove what is unfinished."""
        remove_own_folder(_files(self.unfinished))

    def publish(self) -> None:
        """Give the unfinished folder, which is whole now, its name, in the place of an earlier result."""
        self._check_replaceable()
        if self.folder.exists():
            self.folder.rename(self.old)
        self.unfinished.rename(self.folder)
        for name in UNFINISHED:
            (self.folder / name).unlink()
        remove_own_folder(_files(self.old))

    def _check_replaceable(self) -> None:
        if others := _files(self.folder).others():
            what = "it was not written by this bundle and would be removed with the earlier results"
            raise DataError(others[0], what, f"Move it away and run this again, or {ANOTHER.lower()}")


def check_folders(slides: Iterable[tuple[str, Path]], output_dir: str | os.PathLike) -> None:
    """
    Before work starts: whether all results have a place where nothing else is.

    Args:
        slides: of each its path and the folder of its results.
        output_dir: the folder of those folders.

    Raises:
        DataError: naming the first folder that lies in a slide's own data or in another slide's results, or that
            holds something else, see :meth:`ResultFolder.check`.
    """
    output_dir = Path(output_dir)
    for slide, folder in slides:
        data = Path(slide).resolve() if is_store(slide) else Path(slide).with_suffix("").resolve()
        target = folder.resolve()
        in_folder = is_store(slide) or Path(slide).suffix.lower() == ".mrxs"  # a.mrxs has its pixels in a/
        if in_folder and (target == data or data in target.parents):
            raise DataError(folder, f"this is where the data of {slide} lie", ANOTHER)
        for parent in folder.parents[: len(folder.relative_to(output_dir).parts)]:
            if _is_result(parent):
                raise DataError(parent, f"it holds the results of a slide, and those of {slide} do not go in", ANOTHER)
        ResultFolder(folder).check(slide)


def file_stamp(path: str | os.PathLike) -> list[int]:
    """By which a slide is known again wherever it lies: size in bytes, time of its last change in ns."""
    if is_store(path):  # of a store, that of the file that says what is in it
        path = next((file for name in ("zarr.json", ".zattrs") if (file := Path(path, name)).is_file()), path)
    about = os.stat(path)
    return [about.st_size, about.st_mtime_ns]


def _is_result(folder: Path) -> bool:
    """Whether a folder is a slide's finished result."""
    return read_summary(folder) is not None


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Content of the ``summary.json`` of a slide's finished result; None of any other folder."""
    return _summary(folder) if "summary.json" in _files(folder) else None


def _files(folder: Path) -> OwnFiles:
    return OwnFiles(folder, FILES if _is_earlier(folder) else ())


def _is_earlier(folder: Path) -> bool:
    """Whether a version before 0.4.1, which kept no list, wrote results here: by its journal or its summary."""
    try:
        with (folder / JOURNAL).open("rb") as file:
            return "settings" in json.loads(file.readline())
    except (OSError, ValueError, TypeError):
        return _summary(folder) is not None


def _summary(folder: Path) -> dict[str, Any] | None:
    try:
        summary = read_json(folder / "summary.json")
        return summary if {"slide", "nuclei", "tiles"} <= set(summary) and "file" in summary["settings"] else None
    except (DataError, TypeError, KeyError):
        return None


def _relative(path: Path, folder: Path) -> str:
    return "this" if path == folder else f"'{path.relative_to(folder)}'"
