"""The files of a DICOM series to which DICOM results refer."""

from __future__ import annotations

from typing import NamedTuple

import pydicom
from scripts.errors import DataError
from scripts.slides.dicom_files import read_dicom_file
from scripts.slides.slide import Slide

__all__ = ["DicomSource", "find_source"]

# the standard demands that they are there; they may be empty, so a file that lacks one does not know it
MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID", "ContainerIdentifier")
NEEDED_OF_LEVEL = ("TotalPixelMatrixOriginSequence", "ImageOrientationSlide", "SharedFunctionalGroupsSequence")


class DicomSource(NamedTuple):
    """
    What results of a DICOM series are about.

    Args:
        base: header of level 0, whose pixels outlines count.
        level: header of the level that the network saw.
        ratio: level-0 pixels for each pixel of that level.
    """

    base: pydicom.Dataset
    level: pydicom.Dataset
    ratio: float


def find_source(slide: Slide, scale: float) -> DicomSource:
    """
    Args:
        slide: opened from one file of the series.
        scale: level-0 pixels for each pixel of the network.

    Raises:
        DataError: when the slide is no DICOM series, or lacks what results must tell of it.
    """
    about = read_dicom_file(slide.path)
    if about is None:
        hint = "Leave dicom_ann and dicom_seg out of outputs"
        raise DataError(slide.path, "it is no DICOM series, to which DICOM results could refer", hint)
    level = slide.level_of(scale)
    found = {}
    for path in sorted(slide.path.parent.iterdir()):
        file = read_dicom_file(path) if path.is_file() else None
        if file is not None and file.series == about.series and file.tissue:
            found.setdefault(file.size, path)
    for needed in (0, level):
        if slide.sizes[needed] not in found:
            width, height = slide.sizes[needed]
            what = f"no file beside it is the series' level of {width}x{height} pixels"
            raise DataError(slide.path, what, "Keep the files of a series in one folder")
    headers = [pydicom.dcmread(found[slide.sizes[each]], stop_before_pixels=True) for each in (0, level)]
    for header, names in zip(headers, (NEEDED, (*NEEDED, *NEEDED_OF_LEVEL))):
        if missing := [name for name in names if not header.get(name)]:
            what = f"a file of its series lacks {', '.join(missing)}, which DICOM results must repeat"
            raise DataError(slide.path, what, "Leave dicom_ann and dicom_seg out of outputs")
        for name in MAY_BE_EMPTY:
            if name not in header:
                setattr(header, name, None)
    return DicomSource(*headers, slide.downsamples[level])
