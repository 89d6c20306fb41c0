from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scripts.errors import DataError
from scripts.preparing.formats.aperio_xml import parse_xml
from scripts.preparing.layouts import Sample
from scripts.preparing.polygons import Finding, Instances, Outline, rasterise

__all__ = ["read_labels"]

DRAWN = ("polygon", "spline", "rectangle")


def read_labels(sample: Sample, shape: Sequence[int]) -> Instances:
    """
    Nuclei of an ASAP file: ``ASAP_Annotations/Annotations/Annotation/Coordinates/Coordinate`` with ``Order, X, Y``.

    Points, dots and measurements are counted as findings, not drawn. A spline is drawn by its corner points.

    Options:
        pixel_centre: see :func:`rasterise`; default 0.5, the origin being the corner of the first pixel.
        groups: names of the groups (``PartOfGroup``) that are nuclei; default all.

    Raises:
        DataError: when the file is no such XML.
    """
    (path,) = sample.labels
    groups = sample.options.get("groups")
    outlines, findings = [], []
    for number, annotation in enumerate(parse_xml(path, "ASAP_Annotations").iter("Annotation")):
        name = annotation.get("Name") or f"Annotation {number}"
        if groups is not None and annotation.get("PartOfGroup") not in groups:
            findings.append(Finding("other group", name, f"group '{annotation.get('PartOfGroup')}' is not asked for"))
            continue
        if (kind := annotation.get("Type", "Polygon")).lower() not in DRAWN:
            findings.append(Finding("not an outline", name, f"type {kind} has no area"))
            continue
        try:
            points = [(float(c.get("Order", i)), float(c.attrib["X"]), float(c.attrib["Y"]))
                      for i, c in enumerate(annotation.iter("Coordinate"))]  # fmt: skip
        except (KeyError, ValueError) as error:
            raise DataError(path, f"'{name}' has a coordinate without numbers", "Correct the file.") from error
        ring = np.array([(x, y) for _, x, y in sorted(points, key=lambda point: point[0])]).reshape(-1, 2)
        outlines.append(Outline(name, [ring]))
    instances = rasterise(outlines, shape, float(sample.options.get("pixel_centre", 0.5)), path)
    return Instances(instances.label, findings + instances.findings)
