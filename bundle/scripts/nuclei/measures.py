from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from scipy import ndimage
from skimage.color import rgb2hed
from skimage.measure import find_contours, perimeter

__all__ = ["Nucleus", "binary_entropy", "describe_nuclei", "nucleus_means", "outline", "solidity"]

HED_TO_OD = 6.0  # rgb2hed counts in units of log10(1e6): times this it is optical density


@dataclass(frozen=True)
class Nucleus:
    """
    One nucleus, in pixels of the array it was found in. Coordinates are continuous: pixel i covers [i, i + 1].

    Args:
        box: (top, left, bottom, right), the last two exclusive.
        mask: (bottom - top, right - left) bool, its pixels.
        polygon: (N, 2) of (x, y), its outline without the repetition of the first point.
        x: centroid of its pixels.
        y: the same.
        area: pixels.
        perimeter: of the pixels' outline, by skimage.
        eccentricity: of the ellipse of equal second moments, 0 for a circle.
        major: axis of that ellipse, whole length.
        minor: the other axis.
        haematoxylin: mean optical density of the haematoxylin stain, by skimage's colour deconvolution.
        probability: mean foreground probability of its pixels.
        uncertainty: mean binary entropy of that probability in bits: 0 sure, 1 undecided.
        spread: mean standard deviation of it over views, None with one.
    """

    box: tuple[int, int, int, int]
    mask: np.ndarray
    polygon: np.ndarray
    x: float
    y: float
    area: int
    perimeter: float
    eccentricity: float
    major: float
    minor: float
    haematoxylin: float
    probability: float
    uncertainty: float
    spread: float | None = None

    @property
    def circularity(self) -> float:
        """4 pi area / perimeter^2, at most 1: 1 for a disc."""
        return min(4 * np.pi * self.area / self.perimeter**2, 1.0) if self.perimeter else 1.0

    @property
    def solidity(self) -> float:
        """See :func:`solidity`."""
        return solidity(self.polygon)


def describe_nuclei(
    instances: np.ndarray, probability: np.ndarray, image: np.ndarray, spread: np.ndarray | None = None
) -> list[Nucleus]:
    """
    Outline and measure every nucleus of an instance map.

    Sums run once over the pixels of all nuclei, outlines over the box of each: time grows with nuclei and their
    pixels, not with nuclei times the image.

    Args:
        instances: (H, W) integer ids; 0 is background.
        probability: (H, W) foreground probability.
        image: (3, H, W) RGB in [0, 255].
        spread: (H, W) standard deviation of the probability over views, if there were several.

    Returns:
        nuclei in the order of their ids.
    """
    boxes = ndimage.find_objects(instances)
    rows, columns = np.nonzero(instances)
    if not len(rows):
        return []
    ids = instances[rows, columns]
    area = np.bincount(ids)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(ids, values) / np.maximum(area, 1)

    y, x = mean(rows), mean(columns)
    dy, dx = rows - y[ids], columns - x[ids]
    yy, xx, xy = mean(dy * dy), mean(dx * dx), mean(dy * dx)
    # eigenvalues of the second moments, as skimage's regionprops (which needs milliseconds for each nucleus)
    centre, half = (yy + xx) / 2, np.sqrt(((yy - xx) / 2) ** 2 + xy**2)
    large, small = centre + half, np.maximum(centre - half, 0)
    eccentricity = np.sqrt(1 - np.divide(small, large, out=np.ones_like(large), where=large > 0))
    colours = np.clip(image[:, rows, columns], 0, 255).astype(np.uint8).T[None]
    stain = mean(rgb2hed(colours)[0, :, 0] * HED_TO_OD)
    means = nucleus_means(instances, probability, spread)

    nuclei = []
    for index, box in enumerate(boxes, start=1):
        if box is None:
            continue
        mask = instances[box] == index
        top, left = (side.start for side in box)
        nuclei.append(
            Nucleus(
                box=(top, left, box[0].stop, box[1].stop),
                mask=mask,
                polygon=outline(mask) + (left, top),
                x=float(x[index] + 0.5),
                y=float(y[index] + 0.5),
                area=int(area[index]),
                perimeter=float(perimeter(mask)),
                eccentricity=float(eccentricity[index]),
                major=float(4 * np.sqrt(large[index])),
                minor=float(4 * np.sqrt(small[index])),
                haematoxylin=float(stain[index]),
                probability=float(means["probability"][index - 1]),
                uncertainty=float(means["uncertainty"][index - 1]),
                spread=None if spread is None else float(means["view_spread"][index - 1]),
            )
        )
    return nuclei


def nucleus_means(
    instances: np.ndarray, probability: np.ndarray, spread: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """
    What the network claims about each nucleus; arguments as of :func:`describe_nuclei`.

    Returns:
        (N,) for ids 1..N: ``probability``, ``uncertainty`` (entropy in bits) and, with ``spread``, ``view_spread``.
    """
    nucleus = instances > 0
    ids, p = instances[nucleus], probability[nucleus].astype(np.float64)
    values = {"probability": p, "uncertainty": binary_entropy(p)}
    if spread is not None:
        values["view_spread"] = spread[nucleus]
    area = np.maximum(np.bincount(ids, minlength=1)[1:], 1)
    return {name: np.bincount(ids, column, minlength=1)[1:] / area for name, column in values.items()}


def outline(mask: np.ndarray) -> np.ndarray:
    """
    (N, 2) of (x, y): the outline of a mask through the middles of its border's pixel edges, corners only.

    Holes are left out. Pixels that touch by a corner are joined; were they not, the largest part would count.
    """
    contours = find_contours(np.pad(mask, 1).astype(np.float32), 0.5, fully_connected="high")
    points = max(contours, key=lambda c: abs(_signed_area(c)))[:-1]
    after = np.diff(points, axis=0, append=points[:1])
    before = np.roll(after, 1, axis=0)
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return points[turns][:, ::-1] - 0.5  # minus the frame of 1, plus half a pixel to its corner


def solidity(polygon: np.ndarray) -> float:
    """
    Area within an outline (N, 2) over that of its convex hull, above 0 and at most 1.

    1 has no bays. Ellipses drawn in 40 pixels or more have .85 or more, if at most three times as long as wide.
    """
    shape = shapely.Polygon(polygon)
    return min(shape.area / shape.convex_hull.area, 1.0)


def _signed_area(points: np.ndarray) -> float:
    y, x = points.T
    return float(x[:-1] @ y[1:] - x[1:] @ y[:-1]) / 2


def binary_entropy(p: np.ndarray) -> np.ndarray:
    """Entropy in bits of probabilities in [0, 1]: 0 sure, 1 undecided."""
    p = np.clip(p, 1e-7, 1 - 1e-7)
    return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
