"""Which files in a folder are ours: only these are replaced or removed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from scripts.errors import DataError
from scripts.files import atomic_folder, finished_name, is_store, remove_partial

__all__ = ["LIST", "LOCK", "OwnFiles", "own_among", "remove_own_folder"]

LIST = ".ama_sam_files"  # in a folder: "+name" for each file there that we wrote, "-name" once we removed it
LOCK = ".ama_sam.lock"  # in a folder while a process writes there, see ``scripts.lock``
LEFT_BY_SYSTEMS = (".DS_Store", "Thumbs.db", "desktop.ini")  # nobody's, and always there


class OwnFiles:
    """
    The files in a folder that this bundle wrote: nothing else there is ever replaced or removed.

    They are listed in the folder itself, so that they are known again when it is moved. A file is listed before it is
    written: what a kill leaves behind is ours.

    Args:
        folder: it need not exist.
        earlier: names that a version before 0.4.1, which kept no list, is known to have written there; where there is
            a list they do not count.
    """

    def __init__(self, folder: str | os.PathLike, earlier: Iterable[str] = ()) -> None:
        self.folder = Path(folder)
        self._listed = self._read()
        self._earlier = frozenset() if (self.folder / LIST).exists() else frozenset(earlier)

    def __contains__(self, name: str) -> bool:
        """Whether we wrote a file; ``name`` is its path within the folder, with ``/``."""
        if name not in self._listed and name not in self._earlier:
            self._listed = self._read()  # another process may write there too
        return name in self._listed or name in self._earlier

    def __iter__(self) -> Iterator[str]:
        self._listed = self._read()
        return iter(sorted(self._listed | self._earlier))

    def check(self, names: Iterable[str]) -> None:
        """
        Before work starts: DataError if one of the files to be written is there and not ours, or the folder is none.
        """
        if os.path.lexists(self.folder) and not self.folder.is_dir():
            raise DataError(self.folder, "it is a file, and results need a folder", "Choose another output_dir.")
        for name in names:
            known = name in self._listed or name in self._earlier  # there may be many, and the disk far away
            if not known and os.path.lexists(self.folder / name) and name not in self:
                hint = "Choose another output_dir, or move the file away."
                raise DataError(self.folder / name, "it was not written by this bundle and would be replaced", hint)
            if name.endswith(".zarr"):
                self._check_store(name)

    def path(self, name: str) -> Path:
        """Of a file to write: from now on it is ours. DataError as :meth:`check`."""
        self.check([name])
        self.add([name])
        return self.folder / name

    @contextmanager
    def store(self, name: str) -> Iterator[Path]:
        """
        A folder to write as a whole: yields a temporary one, which at the end takes the place of an earlier one of
        ours. All files in it are listed. DataError as :meth:`check`.
        """
        self.check([name])
        with atomic_folder(self.folder / name) as partial:
            yield partial
            self.remove(name)
            self.add([name, *(f"{name}/{file.relative_to(partial).as_posix()}" for file in _files_in(partial))])

    def add(self, names: Iterable[str]) -> None:
        """List files; the folder is made if missing."""
        # a name of several lines is not listed: it will not be known again
        names = (name for name in dict.fromkeys([*sorted(self._earlier), *names]) if "\n" not in name)
        if new := [name for name in names if name not in self._listed]:
            self._append("".join(f"+{name}\n" for name in new))
            self._listed.update(new)
            self._earlier = frozenset()

    def remove(self, name: str) -> None:
        """
        Remove a file or store if it is ours, and leave it if not; DataError where a store of ours holds a file that is
        not.
        """
        path = self.folder / name
        if not (os.path.lexists(path) and name in self):
            return
        self._check_store(name)
        gone = [name]
        self.add(gone)
        if path.is_dir() and not path.is_symlink():
            gone += [f"{name}/{file.relative_to(path).as_posix()}" for file in _files_in(path)]
            shutil.rmtree(path)
        else:
            path.unlink()
        self._append("".join(f"-{name}\n" for name in gone))  # the next file of that name may be another's
        self._listed.difference_update(gone)

    def _check_store(self, name: str) -> None:
        path = self.folder / name
        if path.is_dir() and (others := self._others_in(path)):
            hint = "Move it away, or choose another output_dir."
            raise DataError(others[0], "it was not written by this bundle and would be removed", hint)

    def _others_in(self, path: Path) -> list[Path]:
        """Files that are not ours in a folder that is in this one."""
        return [file for file in _files_in(path) if file.relative_to(self.folder).as_posix() not in self]

    def remove_partial(self, folders: Iterable[str] = (), older_than: float = 0.0) -> None:
        """
        Remove what a kill left of files that were being written, in a folder with a list, in its sub-folders with
        listed files and in those named. Another process may be writing there only where ``older_than`` is
        ``files.LEFT``.
        """
        if not (self.folder / LIST).is_file():
            return
        names = {".", *folders, *(os.path.dirname(name) for name in self)}
        for folder in sorted(self.folder / name for name in names):
            remove_partial(folder, lambda name: True, older_than)

    def others(self) -> list[Path]:
        """What lies directly in the folder, or in a store of ours, and is not ours; other folders are not."""
        if self.folder.is_symlink():
            return [self.folder]
        try:
            found = sorted(self.folder.iterdir())
        except FileNotFoundError:
            return []
        except NotADirectoryError:
            return [self.folder]
        return [other for path in found for other in self._strange(path)]

    def _strange(self, path: Path) -> list[Path]:
        if not path.is_dir():
            return [] if self._harmless(path.name) else [path]
        whole = finished_name(path.name)
        if is_store(path) and whole is not None and whole in self:
            return []
        return self._others_in(path) if path.name in self and not path.is_symlink() else [path]

    def _harmless(self, name: str) -> bool:
        whole = finished_name(name) or name  # a temporary file of one of ours
        return name == LIST or name in LEFT_BY_SYSTEMS or whole in self

    def _append(self, lines: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LIST).open("ab+") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 1, 0))
            if size and file.read() != b"\n":
                lines = f"\n{lines}"  # after a line that a kill or a full disk cut short
            file.write(os.fsencode(lines))  # at once, for other processes append as well

    def _read(self) -> set[str]:
        try:
            text = os.fsdecode((self.folder / LIST).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return set()
        listed: dict[str, bool] = {}
        for line in text.split("\n")[:-1]:  # a line without its end was cut short by a kill
            listed[line[1:]] = line.startswith("+")
        return {name for name, ours in listed.items() if ours}


def remove_own_folder(files: OwnFiles) -> None:
    """
    Remove a folder with all its files, if it is there and all of them are ours.

    Raises:
        DataError: naming what is not ours; nothing is removed then.
    """
    if others := files.others():
        raise DataError(others[0], "it was not written by this bundle and would be removed", "Move it away.")
    if not files.folder.exists():
        return
    files.add(files)  # so that it is known again when the removal is interrupted
    for path in sorted(files.folder.iterdir(), key=lambda path: path.name == LIST):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    files.folder.rmdir()


def own_among(files: Iterable[Path], verb_file: str = "") -> set[Path]:
    """
    Those of the files that we wrote, whichever folder is looked at: lists in all folders above them are read, by the
    paths as given and, where these go through links, by the real ones.

    Args:
        files: paths, absolute or not.
        verb_file: only lists with this name count, such as that of the config that one verb writes.
    """

    @cache
    def listed(folder: Path) -> set[str]:
        try:
            names = set(OwnFiles(folder))
        except PermissionError:  # another user's, in a folder above that is shared
            return set()
        return names if not verb_file or verb_file in names else set()

    def ours(file: Path) -> bool:
        places = {Path(os.path.abspath(file)), file.resolve()}
        above = [(path, folder) for path in places for folder in path.parents if listed(folder)]
        return any(path.relative_to(folder).as_posix() in listed(folder) for path, folder in above)

    return {file for file in files if ours(file)}


def _files_in(folder: Path) -> list[Path]:
    """All files in a folder and below, hidden ones too."""
    return sorted(Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
