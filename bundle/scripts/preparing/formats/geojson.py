from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scripts.errors import DataError
from scripts.files import read_json
from scripts.preparing.layouts import Sample
from scripts.preparing.polygons import Finding, Instances, Outline, rasterise

__all__ = ["read_labels"]


def read_labels(sample: Sample, shape: Sequence[int]) -> Instances:
    """
    Nuclei of a GeoJSON file as QuPath writes it: a FeatureCollection, a list of features or one feature.

    Polygons (with holes) and multi-polygons are drawn; of a QuPath cell its ``nucleusGeometry``. Other geometries
    are counted as findings.

    Options:
        pixel_centre: see :func:`rasterise`; default 0.5, QuPath's origin being the corner of the first pixel.
        classes: names of the classifications that are nuclei; default all.

    Raises:
        DataError: when the file is no GeoJSON.
    """
    (path,) = sample.labels
    classes = sample.options.get("classes")
    outlines, findings = [], []
    for number, feature in enumerate(_features(read_json(path), path)):
        properties = feature.get("properties") or {}
        name = str(feature.get("id") or properties.get("name") or f"feature {number}")
        label = (properties.get("classification") or {}).get("name")
        if classes is not None and label not in classes:
            findings.append(Finding("other class", name, f"class '{label}' is not asked for"))
            continue
        geometry = feature.get("nucleusGeometry") or feature.get("geometry") or {}
        kind, coordinates = geometry.get("type"), geometry.get("coordinates")
        polygons = {"Polygon": [coordinates], "MultiPolygon": coordinates}.get(kind)
        if polygons is None:
            findings.append(Finding("not an outline", name, f"geometry {kind} has no area"))
            continue
        try:
            rings = [[np.array(ring, float)[:, :2] for ring in polygon] for polygon in polygons]
            outlines.append(Outline(name, [r[0] for r in rings], [hole for r in rings for hole in r[1:]]))
        except (ValueError, IndexError, TypeError) as error:
            raise DataError(path, f"'{name}' has coordinates that are no points", "Correct the file.") from error
    instances = rasterise(outlines, shape, float(sample.options.get("pixel_centre", 0.5)), path)
    return Instances(instances.label, findings + instances.findings)


def _features(content: dict | list, path: str) -> Iterator[dict]:
    if isinstance(content, dict):
        content = content["features"] if content.get("type") == "FeatureCollection" else [content]
    if not isinstance(content, list) or any(not isinstance(f, dict) or f.get("type") != "Feature" for f in content):
        raise DataError(path, "it is no GeoJSON of features", "Export it from QuPath as GeoJSON.")
    yield from content
