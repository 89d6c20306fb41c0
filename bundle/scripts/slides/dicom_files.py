from __future__ import annotations

import os
from typing import NamedTuple

import pydicom

__all__ = ["DicomFile", "read_dicom_file"]

TAGS = ["SeriesInstanceUID", "ImageType", "Modality", "TotalPixelMatrixColumns", "TotalPixelMatrixRows"]


class DicomFile(NamedTuple):
    """
    What one file of a DICOM series is.

    Args:
        series: its ``SeriesInstanceUID``.
        slide: whether it is a picture of a slide, and not annotations, a segmentation or a report on one.
        tissue: whether it is a level of the slide, and not its label, overview or thumbnail.
        size: (width, height) of the level.
    """

    series: str
    slide: bool
    tissue: bool
    size: tuple[int, int]


def read_dicom_file(path: str | os.PathLike) -> DicomFile | None:
    """From the file's header; None if it is no DICOM file, or one without a series: opening it tells what is wrong."""
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=TAGS)
        series, kind = header.get("SeriesInstanceUID"), list(header.get("ImageType") or [])
        size = int(header.get("TotalPixelMatrixColumns") or 0), int(header.get("TotalPixelMatrixRows") or 0)
        slide = header.get("Modality", "SM") == "SM"
    except Exception:  # pydicom has as many as there are ways for a file to be none
        return None
    return DicomFile(str(series), slide, "VOLUME" in kind[2:3] or len(kind) < 3, size) if series else None
