from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from scripts.files import atomic_path
from scripts.nuclei.geojson import NucleusFormat
from scripts.nuclei.measures import Nucleus

__all__ = [
    "STREAM_END",
    "nuclei_batch",
    "nuclei_schema",
    "outlines",
    "read_stream",
    "stream_bytes",
    "stream_start",
    "write_geoparquet",
]

ROW_GROUP = 65_536  # nuclei that are in memory at once, in writing and for who reads row group by row group
STREAM_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # of Arrow's stream format
_STREAM = pa.ipc.IpcWriteOptions(compression="zstd")
_BOX = ("xmin", "ymin", "xmax", "ymax")


def nuclei_schema(form: NucleusFormat) -> pa.Schema:
    """Arrow's columns of a table of nuclei: those of ``form.columns``, then ``geometry`` (WKB) and its ``bbox``."""
    kinds = {"id": pa.int64(), "x_px": pa.float64(), "y_px": pa.float64(), "class": pa.string()}
    columns = [(name, kinds.get(name, pa.float32())) for name in form.columns]
    box = pa.struct([(name, pa.float64()) for name in _BOX])
    return pa.schema([*columns, ("geometry", pa.binary()), ("bbox", box)])


def nuclei_batch(form: NucleusFormat, numbered: Sequence[tuple[int, Nucleus]]) -> pa.RecordBatch:
    """(number, nucleus) as rows of :func:`nuclei_schema`: numbers of ``form.row``, outlines of ``form.ring``."""
    schema = nuclei_schema(form)
    if not numbered:
        return pa.RecordBatch.from_pylist([], schema)
    values = list(zip(*(form.row(nucleus, number) for number, nucleus in numbered)))
    rings = [form.ring(nucleus) for _, nucleus in numbered]
    owners = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
    shapes = shapely.polygons(shapely.linearrings(np.concatenate(rings), indices=owners))
    box = pa.StructArray.from_arrays([pa.array(side) for side in shapely.bounds(shapes).T], _BOX)
    columns = [pa.array(column, schema.field(index).type) for index, column in enumerate(values)]
    return pa.RecordBatch.from_arrays([*columns, pa.array(shapely.to_wkb(shapes), pa.binary()), box], schema=schema)


def outlines(geometry: pa.Array) -> list[np.ndarray]:
    """(N, 2) of (x, y) of each outline in a column ``geometry``, without the repetition of its first point."""
    shapes = shapely.from_wkb(geometry.to_numpy(zero_copy_only=False))
    points, owners = shapely.get_coordinates(shapes, return_index=True)
    ends = np.cumsum(np.bincount(owners, minlength=len(shapes)))
    return [points[start : end - 1] for start, end in zip([0, *ends[:-1]], ends)]


def stream_start(schema: pa.Schema) -> bytes:
    """What a file in Arrow's stream format begins with; batches by :func:`stream_bytes` and ``STREAM_END`` follow."""
    return schema.serialize().to_pybytes()


def stream_bytes(batch: pa.RecordBatch) -> bytes:
    """A batch of a stream, to append to a file."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=_STREAM) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()[len(stream_start(batch.schema)) : -len(STREAM_END)]


def read_stream(path: str | os.PathLike) -> Iterator[pa.RecordBatch]:
    """The batches of a file in Arrow's stream format, one after the other."""
    with pa.OSFile(os.fspath(path)) as file, pa.ipc.open_stream(file) as stream:
        yield from stream


def write_geoparquet(
    path: str | os.PathLike, schema: pa.Schema, batches: Iterable[pa.RecordBatch], about: Mapping[str, Any]
) -> None:
    """
    Write nuclei as GeoParquet 1.1, row group by row group, whole or not at all.

    Coordinates are pixels, on no map: the file's ``crs`` is null. ``bbox`` lets readers take a part of a slide
    without the rest.

    Args:
        path: the file.
        schema: of :func:`nuclei_schema`.
        batches: rows in it.
        about: plain values for the file's metadata, as JSON under ``ama_sam``, such as the pixel size.
    """
    covering = {"bbox": {name: ["bbox", name] for name in _BOX}}
    column = {"encoding": "WKB", "geometry_types": ["Polygon"], "crs": None, "edges": "planar", "covering": covering}
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    metadata = {"geo": json.dumps(geo), "ama_sam": json.dumps(dict(about))}
    with (
        atomic_path(path) as partial,
        pq.ParquetWriter(partial, schema.with_metadata(metadata), compression="zstd", write_statistics=True) as writer,
    ):
        held: list[pa.RecordBatch] = []
        rows = 0
        for batch in batches:
            held.append(batch)
            rows += len(batch)
            if rows >= ROW_GROUP:
                writer.write_table(pa.Table.from_batches(held))
                held, rows = [], 0
        if rows:
            writer.write_table(pa.Table.from_batches(held))
