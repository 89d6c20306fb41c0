from __future__ import annotations

import http.client
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock
from scripts.errors import DataError
from scripts.files import sha256_of
from tqdm import tqdm

__all__ = ["fetch"]

logger = logging.getLogger(__name__)

TIMEOUT = 60  # seconds without any byte
CHUNK = 2**20
PART = ".ama_sam.part"  # such as no other program writes: what is wrong is deleted


def fetch(url: str, path: str | os.PathLike, sha256: str | None = None) -> Path:
    """
    Fetch one file with a progress bar, going on where an earlier attempt broke off; nothing if it is there.

    The bytes so far are kept in ``<path>.ama_sam.part``, which gets its name when it is whole and its checksum is
    right, and is deleted when that is another. Without a known checksum the computed one is printed, for the user to
    compare and to keep. Of several processes one fetches, the others wait for it.

    Raises:
        DataError: when the server cannot be reached, or the checksum is another.
    """
    path = Path(path)
    if not url.lower().startswith(("https://", "http://")):
        raise DataError(url, "it is no address on the web", "Give one that begins with https://, or fetch it by hand.")
    if path.is_file():
        _check(path, url, sha256, f"Delete {path} and try again")
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _only_one(path.with_name(f".{path.name}.ama_sam.lock")):
            if not path.is_file():  # it is, where another process was faster
                part = path.with_name(path.name + PART)
                _transfer(url, part)
                _name(part, path, url, sha256)
    except DataError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: the address is none
        hint = f"Run the same command again to go on, or fetch {path} by hand."
        raise DataError(url, f"the download broke off ({error})", hint) from error
    return path


@contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    with FileLock(lock):
        try:
            yield
        finally:
            with suppress(OSError):  # where a file that is open cannot be removed, it stays
                lock.unlink()


def _name(part: Path, path: Path, url: str, sha256: str | None) -> None:
    try:
        _check(part, url, sha256, "Try again")
    except DataError:
        part.unlink()  # going on from wrong bytes would never make it right
        raise
    part.replace(path)


def _transfer(url: str, part: Path) -> None:
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)  # nosec B310 # fetch checked it
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
        name = part.name.removesuffix(PART)
        with (
            part.open("ab" if resumed else "wb") as file,
            tqdm(total=total, initial=have if resumed else 0, unit="B", unit_scale=True, desc=name) as bar,
        ):
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and (size := part.stat().st_size) != total:
        raise OSError(f"{size} of {total} bytes came")


def _check(path: Path, url: str, sha256: str | None, again: str) -> None:
    computed = sha256_of(path)
    if sha256 is None:
        logger.warning(
            "%s: no published checksum is known to us, so that it is the right file is not verified. sha256 %s; "
            "give it as sha256 to have the next download checked.", url, computed,
        )  # fmt: skip
    elif computed != sha256.lower():
        hint = f"{again}; if it stays so, {url} was published anew: compare the checksums."
        raise DataError(path, f"its sha256 is {computed}, not {sha256}", hint)
