from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from scripts.errors import DataError
from scripts.nuclei.geojson import GEOJSON_END, GEOJSON_START, NucleusFormat, csv_text
from scripts.nuclei.geoparquet import (
    STREAM_END,
    nuclei_batch,
    nuclei_schema,
    read_stream,
    stream_bytes,
    stream_start,
    write_geoparquet,
)
from scripts.nuclei.measures import Nucleus
from scripts.nuclei.ome_tiff import write_ome_tiff
from scripts.nuclei.ome_zarr import write_ome_zarr
from scripts.owned import OwnFiles
from scripts.slides.dicom_output import DICOM_OUTPUTS, DicomOutput
from scripts.slides.label_map import slide_label_map

__all__ = ["OUTPUTS", "STREAM", "USUAL", "NucleiOutput"]

STREAM = "nuclei.arrows"  # all nuclei while the slide is unfinished: pictures and GeoParquet are made of it
OUTPUTS = {
    "geojson": "nuclei.geojson",
    "csv": "nuclei.csv",
    "parquet": "nuclei.parquet",
    "ome.tif": "nuclei.ome.tif",
    "ome.zarr": "nuclei.ome.zarr",
    **DICOM_OUTPUTS,
}
LABEL_MAPS = {"ome.tif", "ome.zarr"}
USUAL = ("geojson", "csv", "parquet")


class NucleiOutput:
    """
    The files of a slide's nuclei: what they begin with, what a tile adds, how they end.

    GeoJSON and CSV grow tile by tile. GeoParquet cannot, for its table of contents comes last: tiles add to a stream
    in Arrow's format, of which GeoParquet, label maps and DICOM are made at the end.

    Args:
        form: how nuclei are written; of the slide, wherever a tile lies.
        outputs: which files, keys of ``OUTPUTS``.
        dicom: writes those of ``DICOM_OUTPUTS``, if any is among them.

    Raises:
        DataError: when an output is not known.
    """

    def __init__(self, form: NucleusFormat, outputs: Collection[str], dicom: DicomOutput | None = None) -> None:
        if unknown := set(outputs) - set(OUTPUTS):
            raise DataError("outputs", f"there is no {', '.join(sorted(unknown))}", f"Choose of {', '.join(OUTPUTS)}")
        self.form, self.outputs, self.dicom = form, set(outputs), dicom

    @property
    def heads(self) -> dict[str, bytes]:
        """{file name: what it begins with}."""
        heads = {
            "nuclei.geojson": GEOJSON_START.encode(),
            "nuclei.csv": csv_text([self.form.columns]).encode(),
            STREAM: stream_start(nuclei_schema(self.form)),
        }
        return self._chosen(heads)

    def of_tile(self, nuclei: Sequence[Nucleus], offset: tuple[float, float], before: int) -> dict[str, bytes]:
        """
        What a tile adds to each file.

        Args:
            nuclei: of the tile.
            offset: (x, y) of the tile's corner, in its own pixels.
            before: nuclei of the tiles before it: ids go on.
        """
        form = self.form.at(offset)
        numbered = list(enumerate(nuclei, start=before + 1))
        if not numbered:
            return {}
        texts = {STREAM: stream_bytes(nuclei_batch(form, numbered))}
        if "geojson" in self.outputs:
            features = ",\n".join(form.feature(nucleus, number) for number, nucleus in numbered)
            texts["nuclei.geojson"] = ((",\n" if before else "") + features).encode()
        if "csv" in self.outputs:
            texts["nuclei.csv"] = csv_text(form.row(nucleus, number) for number, nucleus in numbered).encode()
        return texts

    @property
    def tails(self) -> dict[str, bytes]:
        """{file name: what it ends with}, of those that end with anything."""
        return self._chosen({"nuclei.geojson": GEOJSON_END.encode(), STREAM: STREAM_END})

    def finish(self, folder: str | os.PathLike, shape: tuple[int, int], mpp: float, nuclei: int) -> list[str]:
        """
        Write what is made of the whole stream in a folder.

        Args:
            folder: of the files.
            shape: (H, W) of the slide's level 0.
            mpp: of the same.
            nuclei: how many there are; of none there is no DICOM file, which must have one.

        Returns:
            names of the files that were asked for and not written, for want of a nucleus.
        """
        folder = Path(folder)
        if LABEL_MAPS & self.outputs:
            label_map = slide_label_map(folder / STREAM, shape, mpp)
        if "ome.tif" in self.outputs:
            write_ome_tiff(folder / OUTPUTS["ome.tif"], label_map, self.form.source)
        if "ome.zarr" in self.outputs:
            with OwnFiles(folder).store(OUTPUTS["ome.zarr"]) as store:
                write_ome_zarr(store, label_map, self.form.source)
        if "parquet" in self.outputs:
            about = {"image": self.form.source, "unit": "pixel", "mpp": mpp}
            schema = nuclei_schema(self.form)
            write_geoparquet(folder / OUTPUTS["parquet"], schema, read_stream(folder / STREAM), about)
        dicom = sorted(self.outputs & set(DICOM_OUTPUTS))
        for output in dicom if nuclei else ():
            self.dicom.write(folder / OUTPUTS[output], output, read_stream(folder / STREAM))
        return [] if nuclei else [OUTPUTS[output] for output in dicom]

    def _chosen(self, parts: dict[str, bytes]) -> dict[str, bytes]:
        names = {STREAM, *(OUTPUTS[output] for output in self.outputs)}
        return {name: part for name, part in parts.items() if name in names}
