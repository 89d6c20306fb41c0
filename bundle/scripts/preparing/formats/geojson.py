from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from scripts.errors import DataError
from scripts.files import read_json
from scripts.preparing.layouts import Sample
from scripts.preparing.polygons import Finding, Instances, Outline, rasterise

__all__ = ["read_labels"]

REGION = 0.5  # share of the image; no annotation of one nucleus fills so much


def read_labels(sample: Sample, shape: Sequence[int]) -> Instances:
    """
    Nuclei of a GeoJSON file as QuPath writes it: a FeatureCollection, a list of features or one feature.

    Polygons (with holes) and multi-polygons are drawn; of a QuPath cell its ``nucleusGeometry``. Other geometries,
    outlines that are no points, and regions around nuclei (QuPath's classes with an asterisk, and annotations that fill
    more than half of the image) are findings.

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
        properties = feature.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        name = str(feature.get("id") or properties.get("name") or f"feature {number}")
        labels = _classes(properties.get("classification"))
        if classes is not None and not labels & set(classes):
            names = ", ".join(sorted(labels)) or None
            findings.append(Finding("other class", name, f"class '{names}' is not asked for"))
            continue
        geometry = feature.get("nucleusGeometry") or feature.get("geometry") or {}
        kind = geometry.get("type") if isinstance(geometry, dict) else None
        coordinates = geometry.get("coordinates") if isinstance(geometry, dict) else None
        polygons = {"Polygon": [coordinates], "MultiPolygon": coordinates}.get(kind)
        if polygons is None:
            findings.append(Finding("not an outline", name, f"geometry {kind} has no area"))
            continue
        try:
            rings = [[np.array(ring, float).reshape(len(ring), -1)[:, :2] for ring in polygon] for polygon in polygons]
            rings = [polygon for polygon in rings if polygon and polygon[0].size]
            if any(not np.isfinite(ring).all() for polygon in rings for ring in polygon):
                raise ValueError("not finite")
        except (ValueError, IndexError, TypeError):
            findings.append(
                Finding("unreadable outline", name, "its coordinates are no points; it is not drawn", "error")
            )
            continue
        if not rings:
            findings.append(Finding("not an outline", name, "it has no coordinates"))
            continue
        if _is_region(properties, rings, shape):
            findings.append(Finding("region", name, "it is a region around nuclei, and is not drawn"))
            continue
        outlines.append(Outline(name, [r[0] for r in rings], [hole for r in rings for hole in r[1:]]))
    instances = rasterise(outlines, shape, float(sample.options.get("pixel_centre", 0.5)), path)
    return Instances(instances.label, findings + instances.findings)


def _classes(classification: object) -> set[str]:
    """Names of a classification: QuPath's object or its text, a name, or a list of names."""
    if isinstance(classification, str):
        try:
            parsed = json.loads(classification)
        except (ValueError, RecursionError):
            return {classification}
        classification = parsed if isinstance(parsed, dict) else classification
    if isinstance(classification, dict):
        names = classification.get("name") or classification.get("names") or []
        classification = [names, *names] if isinstance(names, list) else names
    names = classification if isinstance(classification, list) else [classification]
    return {name for name in names if isinstance(name, str)}


def _is_region(properties: Mapping, rings: Sequence[Sequence[np.ndarray]], shape: Sequence[int]) -> bool:
    """Whether it is no nucleus: QuPath's classes with an asterisk, or an annotation that fills most of the image."""
    if any(name.endswith("*") for name in _classes(properties.get("classification"))):
        return True
    corners = np.concatenate([polygon[0] for polygon in rings])
    sides = np.minimum(corners.max(0), shape[1::-1]) - np.maximum(corners.min(0), 0)
    covers = float(np.clip(sides, 0, None).prod()) / (shape[0] * shape[1])
    return properties.get("objectType") == "annotation" and covers > REGION


def _features(content: object, path: str) -> Iterator[dict]:
    """Features of a collection, a list, or one alone, and of collections within collections."""
    left = [content]
    while left:
        one = left.pop()
        kind = one.get("type") if isinstance(one, dict) else None
        if kind == "FeatureCollection":
            one = one.get("features")
        if isinstance(one, list):
            left += reversed(one)
        elif kind == "Feature":
            yield one
        else:
            raise DataError(path, "it is no GeoJSON of features", "Export it from QuPath as GeoJSON.")
