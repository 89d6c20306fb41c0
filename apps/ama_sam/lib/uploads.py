from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import tifffile
from fastapi import UploadFile
from scripts.data.readers import IMAGE_SUFFIXES, file_suffix
from scripts.errors import DataError, root_cause
from scripts.slides.listing import SLIDE_SUFFIXES

__all__ = ["check_self_contained", "stored"]

SUFFIXES = tuple(dict.fromkeys((*IMAGE_SUFFIXES, *SLIDE_SUFFIXES, ".xml")))
SEVERAL_FILES = (".mhd", ".mrxs", ".vms", ".vmu")
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# of slides that are no TIFF; OpenSlide goes by what is in a file, whatever its name
SLIDE_STARTS = {".czi": (b"ZISRAWFILE",), ".dcm": (b"DICM",), ".svslide": (*TIFF_STARTS, b"SQLite format 3\0")}
POSTSCRIPT_STARTS = (b"%!PS", b"\xc5\xd0\xd3\xc6")  # Pillow would run Ghostscript, whatever the file's name
LONGEST_HEADER = 2**20  # bytes
LONGEST_NAME = 100  # characters of a client's name that are repeated to it


@contextmanager
def stored(upload: UploadFile | None) -> Iterator[Path | None]:
    """
    A file that was sent, in a folder of its own for the time of the request; of its name only the format is kept.

    What is found wrong with it is told of the name that the client gave.

    Raises:
        DataError: for an unknown format, or a file that is not self-contained.
    """
    if upload is None:
        yield None
        return
    if (suffix := file_suffix(upload.filename or "")) not in SUFFIXES:
        raise DataError("file", f"format '{suffix[:20]}' is not known", f"Send one of {', '.join(SUFFIXES)}.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"upload{suffix}")
        with path.open("wb") as file:
            shutil.copyfileobj(upload.file, file)
        try:
            check_self_contained(path)
            yield path
        except Exception as error:
            cause = root_cause(error)
            if not isinstance(cause, DataError) or str(path) not in str(cause):
                raise
            name = Path(upload.filename).name[:LONGEST_NAME]
            raise DataError(
                *(text.replace(str(path), name) for text in (cause.path, cause.problem, cause.hint))
            ) from None


def check_self_contained(path: Path) -> None:
    """
    Refuse a file that names others as its pixels: whoever sends it may not have this machine's files read.

    Raises:
        DataError: also when the content is of another format than the name says and would be read as that one.
    """
    suffix = file_suffix(path)
    with path.open("rb") as file:
        head = file.read(LONGEST_HEADER)
    if suffix in SEVERAL_FILES:
        raise DataError(path, f"'{suffix}' is a header of several files", "Copy all of them into the studies' folder.")
    starts = SLIDE_STARTS.get(suffix, TIFF_STARTS) if suffix in SLIDE_SUFFIXES else ()
    start = head[128:] if suffix == ".dcm" else head
    if head.startswith(POSTSCRIPT_STARTS) or head and starts and not start.startswith(starts):
        raise DataError(path, f"the file cannot be read (it is no '{suffix}')", "Send what its name says.")
    if (
        (suffix == ".mha" and head and not _has_own_pixels(head))
        or (suffix == ".nrrd" and re.search(rb"data ?file", _nrrd_header(head), re.IGNORECASE))
        or (starts and head.startswith(TIFF_STARTS) and _names_other_tiffs(path))
    ):
        raise DataError(path, "the file names other files as its pixels", "Save everything in one file.")


def _has_own_pixels(head: bytes) -> bool:
    """Whether a MetaImage header ends, where it first says so, with pixels in the file itself."""
    parts = re.split(rb"elementdatafile", head, maxsplit=1, flags=re.IGNORECASE)
    return len(parts) == 2 and parts[0].endswith(b"\n") and re.match(rb" *= *LOCAL\r?\n", parts[1]) is not None


def _nrrd_header(head: bytes) -> bytes:
    """The header of a NRRD file: up to the first empty line."""
    return re.split(rb"\r?\n\r?\n", head, maxsplit=1)[0]


def _names_other_tiffs(path: Path) -> bool:
    """Whether an OME-TIFF lists planes of files with another UUID than its own."""
    try:
        with tifffile.TiffFile(path) as tiff:
            text = tiff.ome_metadata
        root = ElementTree.fromstring(text) if text else None  # nosec B314 # see tests/trust/test_bombs.py
    except Exception as error:  # of damaged files there are many kinds
        raise DataError(path, f"the file cannot be read ({type(error).__name__})", "Copy it again.") from error
    return root is not None and any(e.tag.endswith("UUID") and e.text != root.get("UUID") for e in root.iter())
