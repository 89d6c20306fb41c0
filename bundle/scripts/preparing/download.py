from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from scripts.download import fetch
from scripts.errors import DataError

__all__ = ["download_dataset"]


def download_dataset(
    name: str, entry: Mapping, folder: str | os.PathLike, sha256: str | Mapping[str, str] | None = None
) -> Path:
    """
    Fetch the files of a data set into a folder, each once, checked by sha256.

    Args:
        name: the data set's name, for messages.
        entry: its description, see :func:`load_datasets`.
        folder: where to put the files.
        sha256: checksum of the set's only file, or checksums by file name, for files of which none is known; it goes
            before a known one, should a file have been published anew.

    Returns:
        the folder, or the file if there is only one.

    Raises:
        DataError: when the set has no open address, a file cannot be fetched, or its checksum is another.
    """
    files = entry.get("download") or []
    if not files:
        how = entry.get("get") or f"See {entry.get('home', 'its publication')}."
        raise DataError(name, "it has no address that is open to everybody", f"{how} Then set source to what you got.")
    if isinstance(sha256, str):
        if len(files) > 1:
            names = ", ".join(file["file"] for file in files)
            raise DataError("sha256", f"'{name}' has several files", f"Give a table of checksums for {names}.")
        sha256 = {files[0]["file"]: sha256}
    paths = []
    for file in files:
        expected = (sha256 or {}).get(file["file"]) or file.get("sha256")
        paths.append(fetch(file["url"], Path(folder) / file["file"], expected))
    return paths[0] if len(paths) == 1 else Path(folder)
