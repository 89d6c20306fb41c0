from __future__ import annotations

import os
from typing import NamedTuple

import pydicom

__all__ = ["DicomFile", "read_dicom_file"]

TAGS = ["SeriesInstanceUID", "ImageType"]


class DicomFile(NamedTuple):
    """
    What one file of a DICOM series is.

    Args:
        series: its ``SeriesInstanceUID``.
        tissue: whether it is a level of the slide, and not its label, overview or thumbnail.
    """

    series: str
    tissue: bool


def read_dicom_file(path: str | os.PathLike) -> DicomFile | None:
    """From the file's header; None if it is no DICOM file, or one without a series: opening it tells what is wrong."""
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=TAGS)
        series, kind = header.get("SeriesInstanceUID"), header.get("ImageType") or []
    except Exception:  # pydicom has as many as there are ways for a file to be none
        return None
    return DicomFile(str(series), "VOLUME" in list(kind)[2:3] or len(kind) < 3) if series else None
