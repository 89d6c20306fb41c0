from __future__ import annotations

import logging
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from scripts.errors import DataError
from scripts.preparing.source import sha256_of
from tqdm import tqdm

__all__ = ["download_dataset", "fetch"]

logger = logging.getLogger(__name__)

TIMEOUT = 60  # seconds without any byte
CHUNK = 2**20


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


def fetch(url: str, path: str | os.PathLike, sha256: str | None = None) -> Path:
    """
    Fetch one file, going on where an earlier attempt broke off.

    The bytes so far are kept in ``<path>.part``; the file gets its name only when it is whole and its checksum is
    right. Without a known checksum the computed one is told, for the user to compare and to keep.

    Raises:
        DataError: when the server cannot be reached, or the checksum is another.
    """
    path = Path(path)
    if path.is_file():
        _check(path, url, sha256)
        return path
    part = path.with_name(f"{path.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        _transfer(url, part)
    except (urllib.error.URLError, OSError, ValueError) as error:
        hint = "Run the same command again to go on, or fetch the file by hand and set source to it."
        raise DataError(url, f"the download broke off ({error})", hint) from error
    _check(part, url, sha256)
    part.replace(path)
    return path


def _transfer(url: str, part: Path) -> None:
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is left to send
            return
        raise
    with response:
        resumed = response.status == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise OSError("the server sent another part of the file than asked for")
        length = response.headers.get("Content-Length")
        total = None if length is None else int(length) + (have if resumed else 0)
        with (
            part.open("ab" if resumed else "wb") as file,
            tqdm(total=total, initial=have if resumed else 0, unit="B", unit_scale=True, desc=part.stem) as bar,
        ):
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and (size := part.stat().st_size) != total:
        raise OSError(f"{size} of {total} bytes came")


def _check(path: Path, url: str, sha256: str | None) -> None:
    computed = sha256_of(path)
    if sha256 is None:
        logger.warning(
            "%s: no published checksum is known to us, so that it is the right file is not verified. sha256 %s; "
            "give it as sha256 to have the next download checked.", url, computed,
        )  # fmt: skip
    elif computed != sha256.lower():
        hint = f"Delete {path} and try again; if it stays so, the file was published anew: compare and set sha256."
        raise DataError(path, f"its sha256 is {computed}, not {sha256}", hint)
