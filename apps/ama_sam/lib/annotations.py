from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import quoteattr

from scripts.nuclei.geojson import COLOUR

__all__ = ["read_features", "write_asap", "write_dsa"]


def read_features(geojson: Path) -> Iterator[dict]:
    """Features of a file that ``scripts.nuclei.geojson`` wrote, one at a time: it has one on each line."""
    with geojson.open(encoding="utf-8") as lines:
        for line in lines:
            if line.startswith('{"type":"Feature"'):
                yield json.loads(line.rstrip().rstrip(","))


def write_asap(geojson: Path, path: Path, label: str, name: str) -> None:
    """ASAP XML as QuPath's MONAI Label extension reads it: a polygon for each nucleus, in the pixels of the image."""
    colour = "#{:02x}{:02x}{:02x}".format(*COLOUR)
    kind = f"Name={quoteattr(label)} PartOfGroup={quoteattr(label)} Color={quoteattr(colour)}"
    with path.open("w", encoding="utf-8") as file:
        file.write(f'<?xml version="1.0"?>\n<ASAP_Annotations>\n<Annotations Name={quoteattr(name)}>\n')
        for feature in read_features(geojson):
            points = feature["geometry"]["coordinates"][0][:-1]
            corners = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}" />' for i, (x, y) in enumerate(points))
            file.write(f'<Annotation {kind} Type="Polygon"><Coordinates>{corners}</Coordinates></Annotation>\n')
        group = f'<Group Name={quoteattr(label)} PartOfGroup="None" Color={quoteattr(colour)} />'
        file.write(f"</Annotations>\n<AnnotationGroups>{group}</AnnotationGroups>\n</ASAP_Annotations>\n")


def write_dsa(geojson: Path, path: Path, label: str, name: str) -> None:
    """Annotation JSON of the Digital Slide Archive: a closed polyline for each nucleus, in the pixels of the image."""
    style = {"type": "polyline", "closed": True, "group": label, "label": {"value": label}}
    style |= {"lineColor": "rgb({}, {}, {})".format(*COLOUR), "lineWidth": 2.0}
    with path.open("w", encoding="utf-8") as file:
        file.write(f'{{"name": {json.dumps(name)}, "elements": [')
        for number, feature in enumerate(read_features(geojson)):
            points = [[x, y, 0] for x, y in feature["geometry"]["coordinates"][0][:-1]]
            file.write((",\n" if number else "\n") + json.dumps({**style, "points": points}))
        file.write("\n]}\n")
