from __future__ import annotations

import copy
import csv
import io
import json
import uuid
from collections.abc import Iterable

import numpy as np
from scripts.nuclei.measures import Nucleus

__all__ = ["GEOJSON_END", "GEOJSON_START", "NucleusFormat", "csv_text"]

GEOJSON_START = '{"type": "FeatureCollection", "features": [\n'
GEOJSON_END = "\n]}\n"
COLOUR = (255, 225, 0)  # as in the overlays
# attribute of Nucleus, name in GeoJSON and tables, power of the unit of length (None: has no unit)
MEASURES = (
    ("area", "area", 2),
    ("perimeter", "perimeter", 1),
    ("circularity", "circularity", None),
    ("solidity", "solidity", None),
    ("eccentricity", "eccentricity", None),
    ("major", "major_axis", 1),
    ("minor", "minor_axis", 1),
    ("haematoxylin", "haematoxylin_od", None),
    ("probability", "probability", None),
    ("uncertainty", "uncertainty", None),
)
SPREAD = ("spread", "view_spread", None)


class NucleusFormat:
    """
    Writes nuclei as QuPath's GeoJSON detections and as rows of a table.

    Coordinates are pixels of the image file (of a slide: level 0), continuous, with 0 at its upper left corner.
    QuPath 0.4 and later open the file by drag and drop. Measurements are named as the columns of the table, unit
    included, and with ``id``, which both have, a nucleus of one is found in the other and in the label map.

    Args:
        source: name of the image; with a nucleus' number it makes the UUID that QuPath wants of each object.
        mpp: micrometres per pixel of the array the nuclei were found in, or None: then lengths are in its pixels.
        scale: pixels of the image file for each pixel of that array.
        offset: (x, y) of the array's corner, in its own pixels.
        class_name: QuPath's class of the detections.
        with_spread: whether the nuclei tell their spread over views.
    """

    def __init__(
        self,
        source: str,
        mpp: float | None = None,
        scale: float = 1.0,
        offset: tuple[float, float] = (0.0, 0.0),
        class_name: str = "Nucleus",
        with_spread: bool = False,
    ) -> None:
        self.source = source
        self.mpp = mpp
        self.scale = scale
        self.offset = offset
        self.class_name = class_name
        self.measures = (*MEASURES, SPREAD) if with_spread else MEASURES

    def at(self, offset: tuple[float, float]) -> NucleusFormat:
        """The same for an array that lies elsewhere."""
        moved = copy.copy(self)
        moved.offset = offset
        return moved

    def centroid(self, nucleus: Nucleus) -> tuple[float, float]:
        """(x, y) in pixels of the image file."""
        x, y = ((value + start) * self.scale for value, start in zip((nucleus.x, nucleus.y), self.offset))
        return round(x, 2), round(y, 2)

    def ring(self, nucleus: Nucleus) -> np.ndarray:
        """(N, 2) of (x, y): its outline in pixels of the image file, without the repetition of the first point."""
        return ((nucleus.polygon + self.offset) * self.scale).round(2)

    def feature(self, nucleus: Nucleus, number: int) -> str:
        """One GeoJSON feature, on one line."""
        ring = self.ring(nucleus).tolist()
        content = {
            "type": "Feature",
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self.source}#{number}")),
            "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]},
            "properties": {
                "objectType": "detection",
                "classification": {"name": self.class_name, "color": COLOUR},
                "centroid": self.centroid(nucleus),
                "measurements": {"id": number, **dict(zip(self._names(), self._values(nucleus)))},
            },
        }
        return json.dumps(content, ensure_ascii=False, separators=(",", ":"))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of what :meth:`row` gives."""
        return ("id", "x_px", "y_px", "class", *self._names())

    def row(self, nucleus: Nucleus, number: int) -> tuple:
        """One row of the table; ``id`` is the number, which in a label map is the nucleus' value."""
        return (number, *self.centroid(nucleus), self.class_name, *self._values(nucleus))

    def _names(self) -> list[str]:
        unit = "px" if self.mpp is None else "um"
        return [f"{name}_{unit}{'2' if power == 2 else ''}" if power else name for _, name, power in self.measures]

    def _values(self, nucleus: Nucleus) -> list[float]:
        length = self.mpp or 1.0
        return [round(float(getattr(nucleus, name)) * length ** (power or 0), 4) for name, _, power in self.measures]


def csv_text(rows: Iterable[tuple]) -> str:
    """Rows as lines of CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
