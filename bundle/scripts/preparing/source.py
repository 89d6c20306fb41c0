"""What a user downloaded, as a folder: archives are unpacked."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from monai.apps.utils import extractall
from scripts.errors import DataError
from scripts.files import walk_files

__all__ = ["Source", "check_archive", "fingerprint", "list_folder", "open_source"]

MAX_EXTRACTED = 100 * 2**30  # bytes; the largest published set, PanNuke, unpacks to about 40 GiB
MAX_MEMBERS = 1_000_000
# packed size times this; stacks of sparse float64 masks reach about 50, a zip bomb 1000
MAX_RATIO = 300
SMALL = 2**28  # bytes; below that the ratio does not matter
IGNORED = ("__MACOSX", ".DS_Store", "Thumbs.db")


@dataclass(frozen=True)
class Source:
    """
    The files that a user downloaded.

    Args:
        path: the folder or zip file the user named.
        files: paths on disk by their name within the source, with ``/``.
        archives: the zip files that were unpacked, by name.
    """

    path: Path
    files: dict[str, Path]
    archives: dict[str, Path]


def open_source(source: str | os.PathLike, work_dir: str | os.PathLike, unpack: bool = True) -> Source:
    """
    Open a folder, a zip file, or a folder of zip files, unpacking what is packed.

    Args:
        source: what the user downloaded. Of a folder all files count. Zip files within zip files are left alone.
        work_dir: where zip files are unpacked to, each in a folder of its own; a whole one found there is used.
        unpack: also zip files directly in the folder.

    Raises:
        DataError: when there is nothing, or an archive is damaged or unsafe, see :func:`check_archive`.
    """
    source, work_dir = Path(source), Path(work_dir)
    _check_exists(source)
    files = {} if source.is_file() else list_folder(source)
    archives = [source] if source.is_file() else [p for name, p in files.items() if unpack and _is_archive(name)]
    for archive in archives:
        folder = _unpack(archive, check_archive(archive), work_dir)
        prefix = "" if source.is_file() else f"{archive.stem}/"
        files.update({prefix + name: path for name, path in list_folder(folder).items()})
    return Source(source, files, {archive.name: archive for archive in archives})


def fingerprint(source: str | os.PathLike) -> str:
    """
    A text that changes when the content of a source does: names, sizes and checksums in a zip file; names, sizes and
    times in a folder.

    Raises:
        DataError: as :func:`open_source`.
    """
    source = Path(source)
    _check_exists(source)
    if source.is_file():
        about = [f"{info.filename}\0{info.file_size}\0{info.CRC}" for info in check_archive(source)]
    else:
        stats = {name: path.stat() for name, path in list_folder(source).items()}
        about = [f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}" for name, stat in stats.items()]
    return hashlib.sha256("\n".join(about).encode()).hexdigest()


def list_folder(folder: Path) -> dict[str, Path]:
    """All files in a folder and below, by relative name with ``/``; what operating systems leave behind is not."""
    files = ((path.relative_to(folder), path) for path in walk_files(folder))
    return {name.as_posix(): path for name, path in files if not set(name.parts) & set(IGNORED)}


def check_archive(path: str | os.PathLike) -> list[zipfile.ZipInfo]:
    """
    The members of a zip file, if it is safe to unpack.

    Raises:
        DataError: when it is no zip file; when a member would land outside the folder it is unpacked into, is a link
            or is encrypted; when it would unpack to more than any published set, to an implausible multiple of its
            size, or to more than the disk holds.
    """
    path = Path(path)
    hint = "Do not use it; get the archive again from its official address."
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(
            path, f"it cannot be read as a zip file ({error})", "Download it again, or unpack it."
        ) from error
    for info in members:
        name = PurePosixPath(info.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or ":" in info.filename.split("/")[0]:
            raise DataError(path, f"member '{info.filename}' would be written outside the folder", hint)
        if stat.S_ISLNK(info.external_attr >> 16):
            raise DataError(path, f"member '{info.filename}' is a link", hint)
        if info.flag_bits & 1:
            raise DataError(path, f"member '{info.filename}' is encrypted", "Unpack it and give the folder as source.")
    total, packed = sum(info.file_size for info in members), max(path.stat().st_size, 1)
    if len(members) > MAX_MEMBERS or total > MAX_EXTRACTED or (total > SMALL and total > MAX_RATIO * packed):
        what = f"{len(members)} members of {total / 2**30:.1f} GiB from {packed / 2**20:.1f} MiB look like a zip bomb"
        raise DataError(path, what, f"{hint} If you trust it, unpack it yourself and give the folder as source.")
    return members


def _unpack(archive: Path, members: Iterable[zipfile.ZipInfo], work_dir: Path) -> Path:
    content = "\n".join(f"{info.filename} {info.file_size} {info.CRC}" for info in members)
    folder = work_dir / f"{archive.stem}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    work_dir.mkdir(parents=True, exist_ok=True)
    needed, free = sum(info.file_size for info in members), shutil.disk_usage(work_dir).free
    if needed > free:
        hint = f"Make room in {work_dir}, or unpack it elsewhere and give the folder as source."
        raise DataError(archive, f"it unpacks to {needed / 2**30:.1f} GiB, the disk has {free / 2**30:.1f} GiB", hint)
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(6)}.partial")
    partial.mkdir()  # new: what is removed below is ours
    try:
        extractall(archive, partial, file_type="zip", has_base=False)
        partial.rename(folder)
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, EOFError) as error:
        raise DataError(archive, f"it cannot be unpacked ({error})", "Download it again.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _check_exists(source: Path) -> None:
    if not source.exists():
        raise DataError(source, "there is no such file or folder", "Set source to what you downloaded.")


def _is_archive(name: str) -> bool:
    return "/" not in name and name.lower().endswith(".zip")
