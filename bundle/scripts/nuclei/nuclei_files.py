from __future__ import annotations

import os

from scripts.files import atomic_path
from scripts.nuclei.geojson import GEOJSON_END, GEOJSON_START, NucleusFormat, csv_text
from scripts.nuclei.geoparquet import nuclei_batch, nuclei_schema, write_geoparquet
from scripts.nuclei.measures import Nucleus

__all__ = ["write_nuclei"]


def write_nuclei(
    nuclei: list[Nucleus],
    form: NucleusFormat,
    geojson: str | os.PathLike | None = None,
    table: str | os.PathLike | None = None,
    parquet: str | os.PathLike | None = None,
) -> None:
    """
    Write the nuclei of an image, numbered from 1, each file whole or not at all; None leaves one out.

    Args:
        nuclei: as found.
        form: how they are written.
        geojson: outlines and measures for QuPath.
        table: measures as CSV.
        parquet: both as GeoParquet.
    """
    numbered = list(enumerate(nuclei, start=1))
    if geojson is not None:
        with atomic_path(geojson) as path:
            features = ",\n".join(form.feature(nucleus, number) for number, nucleus in numbered)
            path.write_text(GEOJSON_START + features + GEOJSON_END, encoding="utf-8")
    if table is not None:
        with atomic_path(table) as path:
            rows = [form.columns, *(form.row(nucleus, number) for number, nucleus in numbered)]
            path.write_text(csv_text(rows), encoding="utf-8", newline="")
    if parquet is not None:
        about = {"image": form.source, "unit": "pixel", "mpp": form.mpp}
        write_geoparquet(parquet, nuclei_schema(form), [nuclei_batch(form, numbered)], about)
