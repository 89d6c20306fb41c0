"""Whole slides as DICOM series, written with pydicom alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

STUDY, FRAME = "1.2.826.0.1.3680043.8.498.1", "1.2.826.0.1.3680043.8.498.2"
PATIENT = {
    "PatientID": "P-17", "PatientName": "Doe^Jane", "PatientBirthDate": "19500101", "PatientSex": "F",
    "StudyID": "S-1", "StudyDate": "20240102", "StudyTime": "101112", "AccessionNumber": "A-5",
    "ReferringPhysicianName": None,
}  # fmt: skip


def save_dicom(
    path: Path,
    pixels: np.ndarray,
    series: str,
    flavour: str = "VOLUME",
    mpp: float = 0.25,
    tile: int = 64,
    **changes: Any,
) -> Path:
    """
    One file of a whole slide's DICOM series.

    Args:
        path: the file.
        pixels: (H, W, 3) uint8.
        series: its SeriesInstanceUID.
        flavour: ``VOLUME`` of a level, else ``LABEL``, ``OVERVIEW`` or ``THUMBNAIL``.
        mpp: micrometres per pixel.
        tile: side of its tiles, the last of which hang over.
        changes: attributes to set; None removes one.
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
    meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = generate_uid(), ExplicitVRLittleEndian
    about = Dataset()
    about.file_meta = meta
    about.SOPClassUID, about.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    for name, value in PATIENT.items():
        setattr(about, name, value)
    about.StudyInstanceUID, about.SeriesInstanceUID, about.FrameOfReferenceUID = STUDY, series, FRAME
    about.ImageType = ["ORIGINAL", "PRIMARY", flavour, "NONE"]
    about.Modality, about.SeriesNumber, about.InstanceNumber = "SM", 1, 1
    about.Manufacturer, about.ManufacturerModelName = "Maker", "Scanner"
    about.DeviceSerialNumber, about.SoftwareVersions = "1", "1"
    about.ContentDate, about.ContentTime, about.AcquisitionDateTime = "20240102", "101112", "20240102101112"
    about.ContainerIdentifier, about.ContainerTypeCodeSequence = "C-9", [code("433466003", "SCT", "Microscope slide")]
    about.IssuerOfTheContainerIdentifierSequence = []
    specimen = items(
        SpecimenIdentifier="C-9-1", SpecimenUID=generate_uid(), IssuerOfTheSpecimenIdentifierSequence=[],
        SpecimenPreparationSequence=[],
    )  # fmt: skip
    about.SpecimenDescriptionSequence = specimen
    about.SamplesPerPixel, about.PhotometricInterpretation, about.PlanarConfiguration = 3, "RGB", 0
    about.BitsAllocated = about.BitsStored = 8
    about.HighBit, about.PixelRepresentation, about.Rows, about.Columns = 7, 0, tile, tile
    height, width = pixels.shape[:2]
    rows, columns = -(-height // tile), -(-width // tile)
    about.TotalPixelMatrixRows, about.TotalPixelMatrixColumns = height, width
    about.NumberOfFrames, about.DimensionOrganizationType = rows * columns, "TILED_FULL"
    about.TotalPixelMatrixFocalPlanes = about.NumberOfOpticalPaths = 1
    about.ImagedVolumeWidth, about.ImagedVolumeHeight = width * mpp / 1000, height * mpp / 1000
    about.ImagedVolumeDepth, about.FocusMethod, about.ExtendedDepthOfField = 0.001, "AUTO", "NO"
    about.TotalPixelMatrixOriginSequence = items(XOffsetInSlideCoordinateSystem=20, YOffsetInSlideCoordinateSystem=30)
    about.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
    about.VolumetricProperties, about.SpecimenLabelInImage = "VOLUME", "YES" if flavour == "LABEL" else "NO"
    about.BurnedInAnnotation, about.LossyImageCompression, about.PositionReferenceIndicator = "NO", "00", "SLIDE_CORNER"
    measures = items(PixelSpacing=[mpp / 1000, mpp / 1000], SliceThickness=0.001)
    about.SharedFunctionalGroupsSequence = items(
        PixelMeasuresSequence=measures, WholeSlideMicroscopyImageFrameTypeSequence=items(FrameType=about.ImageType),
        OpticalPathIdentificationSequence=items(OpticalPathIdentifier="1"),
    )  # fmt: skip
    about.OpticalPathSequence = items(
        OpticalPathIdentifier="1", IlluminationTypeCodeSequence=[code("111744", "DCM", "Brightfield illumination")],
        IlluminationColorCodeSequence=[code("414298005", "SCT", "Full Spectrum")],
    )  # fmt: skip
    padded = np.pad(pixels, ((0, rows * tile - height), (0, columns * tile - width), (0, 0)), constant_values=255)
    about.PixelData = padded.reshape(rows, tile, columns, tile, 3).swapaxes(1, 2).tobytes()
    about["PixelData"].VR = "OB"
    for name, value in changes.items():
        if value is None:
            delattr(about, name)
        else:
            setattr(about, name, value)
    if pydicom.__version_info__[0] == "2":
        about.is_little_endian, about.is_implicit_VR = True, False
        about.save_as(path, write_like_original=False)
    else:
        about.save_as(path, enforce_file_format=True)
    return path


def items(**attributes: Any) -> Sequence[Dataset]:
    """A sequence of one item."""
    item = Dataset()
    for name, value in attributes.items():
        setattr(item, name, value)
    return [item]


def code(value: str, scheme: str, meaning: str) -> Dataset:
    return items(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)[0]
