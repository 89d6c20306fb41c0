from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence

import numpy as np
from scripts.errors import DataError
from scripts.preparing.layouts import Sample
from scripts.preparing.polygons import Finding, Instances, Outline, rasterise

__all__ = ["microns_per_pixel", "parse_xml", "read_labels"]


def read_labels(sample: Sample, shape: Sequence[int]) -> Instances:
    """
    Nuclei of an Aperio ImageScope file: ``Annotations/Annotation/Regions/Region/Vertices/Vertex`` with ``X``, ``Y``.

    Options:
        pixel_centre: see :func:`rasterise`; default 0, which is how the label maps in circulation for MoNuSeg and
            Kumar were drawn (their integer vertices are pixels of the nucleus).

    Raises:
        DataError: when the file is no such XML.
    """
    (path,) = sample.labels
    root = parse_xml(path, "Annotations")
    outlines, findings = [], []
    for region in root.iter("Region"):
        name = f"Region {region.get('Id', len(outlines) + 1)}"
        try:
            ring = [(float(vertex.attrib["X"]), float(vertex.attrib["Y"])) for vertex in region.iter("Vertex")]
        except (KeyError, ValueError) as error:
            raise DataError(path, f"{name} has a vertex without numbers X and Y", "Correct the file.") from error
        if region.get("NegativeROA") == "1":
            # ImageScope's way to say "not here"; no published nucleus is one
            findings.append(Finding("negative region", name, "it marks no nucleus and is not drawn"))
            continue
        outlines.append(Outline(name, [np.array(ring).reshape(-1, 2)]))
    instances = rasterise(outlines, shape, float(sample.options.get("pixel_centre", 0.0)), path)
    return Instances(instances.label, findings + instances.findings)


def microns_per_pixel(sample: Sample) -> float | None:
    """What the file says of the resolution, if it says it."""
    with open(sample.labels[0], encoding="utf-8", errors="replace") as file:
        found = re.search(r'<Annotations[^>]*\bMicronsPerPixel="([\d.]+)"', file.read(4096))
    return float(found.group(1)) or None if found else None


def parse_xml(path: str, root_tag: str) -> ElementTree.Element:
    """
    The root of an XML file.

    Raises:
        DataError: when it is damaged or has another root.
    """
    try:
        root = ElementTree.parse(path).getroot()  # nosec B314 # see tests/trust/test_bombs.py
    except (ElementTree.ParseError, OSError, UnicodeError) as error:
        raise DataError(path, f"the file cannot be read as XML ({error})", "Copy it again from its source.") from error
    if root.tag != root_tag:
        raise DataError(path, f"its root is <{root.tag}>, not <{root_tag}>", "Choose the data set of this format.")
    return root
