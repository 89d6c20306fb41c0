from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from scripts.data.readers import file_suffix
from scripts.errors import DataError
from scripts.files import is_store

__all__ = ["output_names"]


def output_names(
    files: Sequence[str | os.PathLike], root: str | os.PathLike | None = None, folders: bool = False
) -> dict[str, str]:
    """
    A name for the outputs of each file, different for all: its path below ``root`` without the suffix.

    Files that differ only in suffix get it appended (``a.png``, ``a.tif`` become ``a_png``, ``a_tif``), and a number
    where that is not enough. Upper and lower case count as equal, as some file systems have it. The order of the files
    does not matter.

    Args:
        files: paths.
        root: by default the deepest folder that holds all of them.
        folders: each name is that of a folder. None lies in another one then: beside ``a/b.tif``, which becomes
            ``a/b``, ``a.tif`` becomes ``a_tif``. Dots at the beginning, which hide a folder, are left out.

    Returns:
        {absolute path: name}.

    Raises:
        DataError: when a file is not below ``root``.
    """
    given = [Path(os.path.abspath(file)) for file in files]
    paths = sorted(set(given))
    if not paths:
        return {}
    if root is not None and (Path(root).is_file() or is_store(root)):
        root = Path(root).parent
    root = Path(os.path.abspath(root) if root is not None else os.path.commonpath([path.parent for path in paths]))
    outside = [path for path in paths if not path.is_relative_to(root)]
    if outside:
        raise DataError(outside[0], f"is not below the root folder {root}", "Give a root that holds all files.")
    suffixes = {path: path.name[len(path.name) - len(file_suffix(path)) :] for path in paths}
    stems = {path: path.relative_to(root).as_posix()[: -len(end) or None] for path, end in suffixes.items()}
    if folders:
        stems = {path: "/".join(part.lstrip(".") or "_" for part in stem.split("/")) for path, stem in stems.items()}
    counts = Counter(stem.casefold() for stem in stems.values())
    # what a name must not be: the names given so far and, of folders, those in which others lie
    taken = {str(parent) for stem in counts for parent in PurePosixPath(stem).parents} if folders else set()
    clear = {stem for stem, count in counts.items() if count == 1 and stem not in taken}
    taken |= clear
    names = {}
    for path, stem in stems.items():
        name = stem
        if stem.casefold() not in clear:
            with_suffix = name = f"{stem}_{suffixes[path].lstrip('.')}"
            number = 2
            while name.casefold() in taken:
                name, number = f"{with_suffix}_{number}", number + 1
            taken.add(name.casefold())
        names[path] = name
    return {str(path): names[path] for path in given}
