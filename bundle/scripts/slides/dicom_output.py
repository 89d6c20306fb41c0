"""Nuclei as DICOM objects, through highdicom."""

from __future__ import annotations

import importlib.util
import logging
import os
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scripts.errors import DataError
from scripts.files import atomic_path
from scripts.nuclei.geoparquet import outlines
from scripts.slides.dicom_source import DicomSource
from skimage.draw import polygon

__all__ = ["DICOM_OUTPUTS", "DicomOutput", "check_dicom"]

DICOM_OUTPUTS = {"dicom_ann": "nuclei_ann.dcm", "dicom_seg": "nuclei_seg.dcm"}
# SNOMED CT's, where it has one; else our own scheme, whose codes are the names of our columns
MEASURES = {
    "area_um2": ("42798000", "SCT", "Area"),
    "perimeter_um": ("131191004", "SCT", "Perimeter"),
    "major_axis_um": ("131187009", "SCT", "Major Axis"),
    "minor_axis_um": ("131188004", "SCT", "Minor Axis"),
}
OWN_SCHEME = "99AMASAM"
UNITS = {"um2": ("um2", "UCUM", "square micrometer"), "um": ("um", "UCUM", "micrometer")}
NO_UNIT = ("1", "UCUM", "no units")
STRUCTURE, NUCLEUS = ("91723000", "SCT", "Anatomical Structure"), ("84640000", "SCT", "Nucleus")
INTELLIGENCE = ("123110", "DCM", "Artificial Intelligence")
NOT_MEASURES = ("id", "x_px", "y_px", "class", "geometry", "bbox")


def check_dicom(outputs: Collection[str]) -> None:
    """Before work starts: DataError if DICOM is asked for and highdicom is not installed."""
    if asked := sorted(set(outputs) & set(DICOM_OUTPUTS)):
        if importlib.util.find_spec("highdicom") is None:
            what = f"{' and '.join(asked)} need highdicom, which is not installed"
            raise DataError("outputs", what, "Install it: pip install -r requirements-dicom.txt")


class DicomOutput:
    """
    Writes the nuclei of a slide that is a DICOM series as DICOM objects of the same study.

    Who was examined, and which specimen, is what highdicom copies from the source: the modules that the standard
    prescribes, no others. Identifiers of the new objects are random, so that no two runs write the same bytes.

    Args:
        source: what the nuclei were found in.
        class_name: label of the nuclei.
        version: of this bundle.
        weights: checksum of the model, if it has a file.
    """

    def __init__(self, source: DicomSource, class_name: str, version: str, weights: str | None) -> None:
        self.source, self.class_name, self.version, self.weights = source, class_name, version, weights

    def write(self, path: str | os.PathLike, output: str, batches: Iterable[pa.RecordBatch]) -> None:
        """
        Write one object, whole or not at all.

        Args:
            path: the file.
            output: key of ``DICOM_OUTPUTS``.
            batches: at least one nucleus, as of :func:`scripts.nuclei.geoparquet.nuclei_schema`.
        """
        logging.getLogger("highdicom").setLevel(logging.WARNING)  # it tells each step
        make = {"dicom_ann": self._annotations, "dicom_seg": self._segmentation}[output]
        with atomic_path(path) as partial:
            make(batches, Path(path).parent).save_as(partial)

    def _annotations(self, batches: Iterable[pa.RecordBatch], folder: Path) -> Any:
        """Microscopy Bulk Simple Annotations: polygons in level 0's own pixels, the n-th is the nucleus of id n."""
        from highdicom.ann import AnnotationGroup, Measurements, MicroscopyBulkSimpleAnnotations
        from highdicom.sr import CodedConcept

        rings: list[np.ndarray] = []
        values: dict[str, list[np.ndarray]] = {}
        for batch in batches:
            rings += (ring.astype(np.float32) for ring in outlines(batch["geometry"]))
            for name in batch.schema.names:
                if name not in NOT_MEASURES:
                    values.setdefault(name, []).append(np.asarray(batch[name]))
        measurements = [
            Measurements(
                CodedConcept(*MEASURES.get(name, (name, OWN_SCHEME, name.replace("_", " ")))),
                np.concatenate(parts),
                CodedConcept(*UNITS.get(name.rpartition("_")[2], NO_UNIT)),
            )
            for name, parts in values.items()
        ]
        group = AnnotationGroup(
            number=1,
            uid=_uid(),
            label=self.class_name,
            annotated_property_category=CodedConcept(*STRUCTURE),
            annotated_property_type=CodedConcept(*NUCLEUS),
            graphic_type="POLYGON",
            graphic_data=rings,
            algorithm_type="AUTOMATIC",
            algorithm_identification=self._algorithm(),
            measurements=measurements,
        )
        return MicroscopyBulkSimpleAnnotations(
            source_images=[self.source.base],
            annotation_coordinate_type="2D",
            pixel_origin_interpretation="VOLUME",
            annotation_groups=[group],
            series_number=901,
            **self._about("Outlines of nuclei"),
        )

    def _segmentation(self, batches: Iterable[pa.RecordBatch], folder: Path) -> Any:
        """Binary segmentation: one segment of all nuclei, in the pixels and tiles of the level that was segmented."""
        from highdicom.seg import Segmentation, SegmentDescription
        from highdicom.sr import CodedConcept

        level = self.source.level
        segment = SegmentDescription(
            segment_number=1,
            segment_label=self.class_name,
            segmented_property_category=CodedConcept(*STRUCTURE),
            segmented_property_type=CodedConcept(*NUCLEUS),
            algorithm_type="AUTOMATIC",
            algorithm_identification=self._algorithm(),
        )
        shape = int(level.TotalPixelMatrixRows), int(level.TotalPixelMatrixColumns)
        # on the disk, for a level may be larger than the memory; without a name, so that a kill leaves nothing
        with tempfile.TemporaryFile(dir=folder) as file:
            pixels = np.memmap(file, np.uint8, "w+", shape=shape)
            for batch in batches:
                for ring in outlines(batch["geometry"]):
                    # polygon() asks whether whole numbers lie inside, and the middle of pixel i is i + 0.5
                    x, y = (ring / self.source.ratio - 0.5).T
                    pixels[polygon(y, x, shape)] = 1
            return Segmentation(
                source_images=[level],
                pixel_array=pixels,
                segmentation_type="BINARY",
                segment_descriptions=[segment],
                tile_pixel_array=True,
                series_number=902,
                **self._about("Pixels of nuclei"),
            )

    def _algorithm(self) -> Any:
        from highdicom import AlgorithmIdentificationSequence
        from highdicom.sr import CodedConcept

        parameters = {"weights": self.weights} if self.weights else None
        return AlgorithmIdentificationSequence(
            "AMA-SAM", CodedConcept(*INTELLIGENCE), self.version, parameters=parameters
        )

    def _about(self, description: str) -> dict[str, Any]:
        return {
            "series_instance_uid": _uid(),
            "sop_instance_uid": _uid(),
            "instance_number": 1,
            "manufacturer": "AMA-SAM",
            "manufacturer_model_name": "ama_sam",
            "software_versions": self.version,
            "device_serial_number": self.weights or "none",
            "series_description": description,
            "content_description": description,
        }


def _uid() -> str:
    from highdicom import UID

    return str(UID())
