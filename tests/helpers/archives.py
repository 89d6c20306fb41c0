"""Small archives in the layouts in which data sets were published, made of known instance maps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from scipy import ndimage
from scipy.io import savemat
from skimage.measure import find_contours

HEIGHT, WIDTH = 96, 128  # differ, so that swapped axes are seen
# row, column and radius (even) of octagons; two touch, one is cut by the border where the format allows it
PLACES = ((20, 20, 8), (20, 37, 8), (50, 30, 6), (70, 90, 12), (30, 100, 10), (75, 30, 10), (50, 64, 8), (12, 66, 6))


def octagon_ring(row: int, column: int, radius: int) -> np.ndarray:
    """Vertices (8, 2), x and y, that are pixels of the nucleus."""
    r, h = radius, radius // 2
    around = [(r, -h), (r, h), (h, r), (-h, r), (-r, h), (-r, -h), (-h, -r), (h, -r)]
    return np.array([(column + x, row + y) for x, y in around])


def octagon(row: int, column: int, radius: int, shape=(HEIGHT, WIDTH)) -> np.ndarray:
    """The pixels of that nucleus, by the definition of an octagon rather than by a polygon."""
    y, x = np.abs(np.indices(shape) - np.array([row, column])[:, None, None])
    return (x <= radius) & (y <= radius) & (x + y <= radius + radius // 2)


def known_sample(seed: int = 0, shape=(HEIGHT, WIDTH)) -> tuple[np.ndarray, np.ndarray, list]:
    """An image (H, W, 3) uint8 with dark nuclei, its map (H, W) int32, and the nuclei's places."""
    rng = np.random.default_rng(seed)
    moves = rng.integers(-1, 2, 2)
    places = [(row + moves[0], column + moves[1], radius) for row, column, radius in PLACES]
    places = places[: 5 + seed % 4]
    label = np.zeros(shape, np.int32)
    for number, place in enumerate(places, start=1):
        label[octagon(*place, shape)] = number
    return paint(label, rng), label, places


def paint(label: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A picture of a map: pink ground that differs from seed to seed, violet nuclei."""
    ground = ndimage.gaussian_filter(rng.normal(size=label.shape), 6) * 150
    image = np.stack([225 + 0 * ground, 180 + ground, 210 + 0 * ground], axis=2)
    image[label > 0] = (110, 70, 140)
    return (ndimage.gaussian_filter(image, (0.7, 0.7, 0)) + rng.normal(0, 2, image.shape)).clip(0, 255).astype(np.uint8)


def same_nuclei(label: np.ndarray, known: np.ndarray) -> bool:
    """Whether two maps mark the same nuclei, whatever the ids."""
    if label.shape != known.shape:
        return False
    pairs = np.unique(label.astype(np.int64) << 32 | known.astype(np.int64))  # far quicker than of pairs
    return len(pairs) == len(set(pairs >> 32)) == len(set(pairs & 0xFFFFFFFF)) and 0 in pairs


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, array, photometric="rgb" if array.ndim == 3 else "minisblack")
    else:
        Image.fromarray(array).save(path, compress_level=1)
    return path


def rgba(image: np.ndarray) -> np.ndarray:
    return np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])


def aperio(path: Path, rings, mpp: str = "0.252000") -> None:
    """As ImageScope writes it and MoNuSeg was published."""
    flags = 'Id="1" Name="" ReadOnly="0" NameReadOnly="0" LineColorReadOnly="0" Incremental="0" Type="4"'
    lines = [
        f'<Annotations MicronsPerPixel="{mpp}">',
        f'\t<Annotation {flags} LineColor="65280" Visible="1" Selected="1" MarkupImagePath="" MacroName="">',
        '\t\t<Attributes>\n\t\t\t<Attribute Name="Description" Id="0" Value=""/>\n\t\t</Attributes>',
        "\t\t<Regions>\n\t\t\t<RegionAttributeHeaders>",
        '\t\t\t\t<AttributeHeader Id="9999" Name="Region" ColumnWidth="-1"/>\n\t\t\t</RegionAttributeHeaders>',
    ]
    for number, ring in enumerate(rings, start=1):
        lines.append(f'\t\t\t<Region Id="{number}" Type="0" Zoom="1" Selected="0" ImageLocation="" ImageFocus="0" '
                     f'Text="" NegativeROA="0" InputRegionId="0" Analyze="1" DisplayId="{number}">')  # fmt: skip
        lines.append("\t\t\t\t<Attributes/>\n\t\t\t\t<Vertices>")
        lines += [f'\t\t\t\t\t<Vertex X="{x}" Y="{y}"/>' for x, y in ring]
        lines.append("\t\t\t\t</Vertices>\n\t\t\t</Region>")
    lines.append("\t\t</Regions>\n\t</Annotation>\n</Annotations>")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))


def corner_rings(label: np.ndarray) -> list[np.ndarray]:
    """Outlines of a map's nuclei in coordinates whose origin is the corner of the first pixel (QuPath, ASAP, COCO)."""
    rings = []
    for number in range(1, label.max() + 1):
        ((contour),) = find_contours(np.pad(label == number, 1), 0.5)
        rings.append(contour[:, ::-1] - 1 + 0.5)
    return rings


def geojson(path: Path, rings) -> None:
    features = [
        {"type": "Feature", "id": f"n{number}", "geometry": {"type": "Polygon", "coordinates": [ring.tolist()]},
         "properties": {"objectType": "annotation", "classification": {"name": "Nucleus", "color": [200, 0, 0]}}}
        for number, ring in enumerate(rings)
    ]  # fmt: skip
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def asap(path: Path, rings) -> None:
    lines = ['<?xml version="1.0"?>', "<ASAP_Annotations>", "\t<Annotations>"]
    for number, ring in enumerate(rings):
        lines.append(f'\t\t<Annotation Name="Annotation {number}" Type="Polygon" PartOfGroup="None" Color="#F4FA58">')
        lines.append("\t\t\t<Coordinates>")
        lines += [f'\t\t\t\t<Coordinate Order="{i}" X="{x}" Y="{y}" />' for i, (x, y) in enumerate(ring)]
        lines.append("\t\t\t</Coordinates>\n\t\t</Annotation>")
    path.write_text("\n".join([*lines, "\t</Annotations>", "\t<AnnotationGroups />", "</ASAP_Annotations>"]))


def challenge_text(path: Path, label: np.ndarray) -> None:
    """The CPM challenges' mask files."""
    path.write_text("\n".join([f"{label.shape[1]} {label.shape[0]}", *map(str, label.ravel())]) + "\n")


def runs_down_columns(mask: np.ndarray) -> list[int]:
    """Start (from 1) and length of the runs of a mask, as the Data Science Bowl wrote them."""
    flat = np.concatenate([[0], mask.T.ravel().astype(int), [0]])
    starts, ends = np.flatnonzero(np.diff(flat) == 1), np.flatnonzero(np.diff(flat) == -1)
    return [int(value) for pair in zip(starts + 1, ends - starts) for value in pair]


def coco_counts(mask: np.ndarray) -> list[int]:
    flat = mask.T.ravel().astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat])) != 0)
    return np.diff(np.concatenate([[0], edges, [len(flat)]])).tolist()


def coco_text(counts: list[int]) -> str:
    """The compressed form of run lengths."""
    text = ""
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        while True:
            bits, value = value & 31, value >> 5
            more = not ((value == 0 and not bits & 16) or (value == -1 and bits & 16))
            text += chr((bits | (32 if more else 0)) + 48)
            if not more:
                break
    return text


def hovernet_mat(path: Path, label: np.ndarray) -> None:
    """inst_map and what CoNSeP has beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = np.unique(label)[1:, None]
    centres = np.array([np.argwhere(label == i).mean(0)[::-1] for i in ids[:, 0]])
    savemat(path, {"inst_map": label.astype(np.float64), "type_map": (label > 0).astype(np.float64),
                   "inst_type": np.ones_like(ids), "inst_centroid": centres})  # fmt: skip


def lizard_mat(path: Path, label: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = np.unique(label)[1:, None]
    savemat(path, {"inst_map": label.astype(np.int32), "id": ids, "class": np.ones_like(ids)})
