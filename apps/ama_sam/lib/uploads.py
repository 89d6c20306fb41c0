from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastapi import UploadFile
from scripts.data.readers import IMAGE_SUFFIXES, file_suffix
from scripts.errors import DataError
from scripts.slides.listing import SLIDE_SUFFIXES

__all__ = ["stored"]

SUFFIXES = tuple(dict.fromkeys((*IMAGE_SUFFIXES, *SLIDE_SUFFIXES, ".xml")))


@contextmanager
def stored(upload: UploadFile | None) -> Iterator[Path | None]:
    """A file that was sent, in a folder of its own for the time of the request; of its name only the format is kept."""
    if upload is None:
        yield None
        return
    if (suffix := file_suffix(upload.filename or "")) not in SUFFIXES:
        raise DataError("file", f"format '{suffix[:20]}' is not known", f"Send one of {', '.join(SUFFIXES)}.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"upload{suffix}")
        with path.open("wb") as file:
            shutil.copyfileobj(upload.file, file)
        yield path
