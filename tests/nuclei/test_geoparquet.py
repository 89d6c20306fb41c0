"""GeoParquet by the reader that people use for it: what GeoJSON and CSV say, in a file that opens quickly."""

from __future__ import annotations

import json

import geopandas
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import shapely
from results import read_geojson
from scripts.nuclei import geoparquet
from scripts.nuclei.geojson import NucleusFormat
from scripts.nuclei.geoparquet import (
    STREAM_END,
    nuclei_batch,
    nuclei_schema,
    read_stream,
    stream_bytes,
    stream_start,
    write_geoparquet,
)
from scripts.nuclei.measures import describe_nuclei
from scripts.nuclei.nuclei_files import write_nuclei

FORM = NucleusFormat("slide.svs", mpp=0.5, scale=2.0, offset=(100_000, 50))


@pytest.fixture(scope="module")
def nuclei():
    label = np.zeros((60, 80), int)
    label[5:12, 5:14], label[20, 20], label[30:50, 30:45] = 1, 2, 3
    label[30:35, 30:35] = 0
    random = np.random.default_rng(0)
    return describe_nuclei(label, random.random(label.shape), random.integers(0, 255, (3, *label.shape)))


def test_geopandas_reads_what_geojson_and_the_table_say(nuclei, tmp_path):
    paths = [tmp_path / f"a.{end}" for end in ("geojson", "csv", "parquet")]
    write_nuclei(nuclei, FORM, *paths)
    features, table, read = read_geojson(paths[0]), pd.read_csv(paths[1]), geopandas.read_parquet(paths[2])
    assert read.crs is None, "pixels are no place on earth"
    pd.testing.assert_frame_equal(
        pd.DataFrame(read.drop(columns=["geometry", "bbox"], errors="ignore")), table, check_dtype=False, rtol=1e-6
    )
    for feature, shape in zip(features, read.geometry, strict=True):
        assert shapely.geometry.shape(feature["geometry"]).equals_exact(shape, 0)
    assert json.loads(pq.read_metadata(paths[2]).metadata[b"ama_sam"]) == {
        "image": "slide.svs", "unit": "pixel", "mpp": 0.5,
    }  # fmt: skip


def test_a_part_of_a_slide_is_read_without_the_rest(nuclei, tmp_path):
    write_nuclei(nuclei, FORM, parquet=tmp_path / "a.parquet")
    x, y = FORM.centroid(nuclei[1])
    assert list(geopandas.read_parquet(tmp_path / "a.parquet", bbox=(x - 1, y - 1, x + 1, y + 1)).id) == [2]


def test_no_nuclei_are_a_valid_file(tmp_path):
    write_nuclei([], FORM, parquet=tmp_path / "a.parquet")
    read = geopandas.read_parquet(tmp_path / "a.parquet")
    assert len(read) == 0 and set(FORM.columns) < set(read.columns)


def test_a_stream_that_grew_in_pieces_is_one_file_of_row_groups(nuclei, tmp_path, monkeypatch):
    monkeypatch.setattr(geoparquet, "ROW_GROUP", 4)
    schema = nuclei_schema(FORM)
    numbered = list(enumerate(nuclei * 5, start=1))
    with (tmp_path / "s").open("wb") as stream:
        stream.write(stream_start(schema))
        for first in range(0, len(numbered), 3):
            stream.write(stream_bytes(nuclei_batch(FORM, numbered[first : first + 3])))
        stream.write(STREAM_END)
    write_geoparquet(tmp_path / "a.parquet", schema, read_stream(tmp_path / "s"), {})
    assert list(geopandas.read_parquet(tmp_path / "a.parquet").id) == list(range(1, 16))
    assert pq.read_metadata(tmp_path / "a.parquet").num_row_groups == 3
