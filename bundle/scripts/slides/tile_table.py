from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scripts.nuclei.measures import Nucleus
from scripts.out_of_domain.reference import UNUSUAL
from scripts.out_of_domain.scoring import DomainDistance
from scripts.slides.pipeline import ReadTile
from scripts.slides.tiles import Tile, TissueMap

__all__ = ["TILE_COLUMNS", "domain_summary", "tile_domain", "tile_row", "uncertain_area"]

# x to height is the tile's core in level-0 pixels; the last three are a DomainScore
DOMAIN_COLUMNS = ("out_of_domain", "domain_distance", "nearest_domain")
TILE_COLUMNS = ("x", "y", "width", "height", "nuclei", "uncertainty", *DOMAIN_COLUMNS)


def uncertain_area(nuclei: Sequence[Nucleus]) -> tuple[float, int]:
    """Uncertainty of nuclei times their areas, and their area, in pixels: sums of these give the mean over pixels."""
    return sum(nucleus.uncertainty * nucleus.area for nucleus in nuclei), sum(nucleus.area for nucleus in nuclei)


def tile_row(tile: Tile, scale: float, record: Mapping[str, Any]) -> tuple:
    """Values of :data:`TILE_COLUMNS`, from a tile's record; ``scale`` is level-0 pixels for each of the network's."""
    left, top, right, bottom = (round(side * scale) for side in tile.core)
    uncertain, area = record["uncertain"]
    domain = record["domain"] or {}
    values = record["nuclei"], round(uncertain / area, 4) if area else "", *(domain.get(n, "") for n in DOMAIN_COLUMNS)
    return (left, top, right - left, bottom - top, *values)


def tile_domain(
    read: ReadTile, tissue: TissueMap, scale: float, domain_distance: DomainDistance | None
) -> dict[str, Any] | None:
    """How far a tile's tissue lies from the training domains, glass left out; None where that is not known."""
    if read.distances is None:
        return None
    left, top, side = read.tile.square
    rows, columns = read.distances.shape[:2]
    y, x = (np.linspace(start, start + side, parts + 1) * scale for start, parts in ((top, rows), (left, columns)))
    shares = [[tissue.share(x[c], y[r], x[c + 1], y[r + 1]) for c in range(columns)] for r in range(rows)]
    score = domain_distance.score(read.distances, torch.tensor(shares))
    return None if score is None else score.values()


def domain_summary(domains: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Median score over tiles, the share of unusual ones, and the domain that most are nearest to."""
    if not domains:
        return {}
    scores = np.array([domain["out_of_domain"] for domain in domains])
    return {
        "out_of_domain": round(float(np.median(scores)), 4),
        "unusual_tiles": round(float((scores > UNUSUAL).mean()), 4),
        "nearest_domain": Counter(domain["nearest_domain"] for domain in domains).most_common(1)[0][0],
    }
