"""The few tiles of a slide that are drawn at full size, for a look."""

from __future__ import annotations

import json
import logging

import numpy as np
from PIL import Image
from scipy import ndimage
from scripts.slides.tile_overlays import TILE_OVERLAYS, choose_tiles
from slides import make_drawing, save_slide, segment_slide


def _chosen(scores, nuclei, kind):
    """Rows of one kind of picture, in order."""
    rows = [{"out_of_domain": str(score), "nuclei": str(count)} for score, count in zip(scores, nuclei)]
    return [index for name, index in choose_tiles(rows).items() if kind in name]


def test_typical_is_the_median_score_and_unusual_the_highest():
    scores = [0.1, 0.5, 0.53, 0.9, 0.99, 0.95, 0.2, 0.3, "", 0.51]
    assert set(_chosen(scores, [5] * 10, "typical")) == {1, 2, 9}
    assert _chosen(scores, [5] * 10, "unusual") == [4, 5, 3]


def test_without_scores_the_number_of_nuclei_tells_and_of_few_tiles_none_is_shown_twice():
    counts = [10, 11, 12, 13, 14, 90, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    assert _chosen([""] * 15, counts, "typical") == [2, 3, 1]
    assert _chosen([""] * 15, counts, "unusual") == [5, 6, 4], "the rim of the tissue, without any, tells nothing"
    assert _chosen([""], [4], "typical") == [0] and _chosen([""], [4], "unusual") == []
    assert choose_tiles([]) == {}


def test_nuclei_are_drawn_on_tiles_of_the_size_the_network_saw_and_the_log_says_where(bundle_root, tmp_path, caplog):
    slide = save_slide(tmp_path / "a.tif", make_drawing(2048, 2048, seed=3), 0.2)  # the network sees 0.25
    with caplog.at_level(logging.INFO):
        folder = segment_slide(bundle_root, slide, tmp_path / "out")
    names = json.loads((folder / "summary.json").read_text())["overlays"]
    assert set(names) <= set(TILE_OVERLAYS) and {"tile_typical_1.jpg", "tile_unusual_1.jpg"} <= set(names)
    for name in names:
        assert (folder / name).is_file() and any(name in record.getMessage() for record in caplog.records)
    pixels = np.asarray(Image.open(folder / "tile_typical_1.jpg")).astype(int)
    assert pixels.shape == (384, 384, 3), "a core: 512 less a margin of 64 at each side"
    yellow = (pixels[..., 0] > 180) & (pixels[..., 1] > 150) & (pixels[..., 2] < 110)
    nucleus = pixels.sum(-1) < 300
    assert yellow.sum() > 100 and nucleus.sum() > 100
    assert ndimage.distance_transform_edt(~nucleus)[yellow].max() <= 3, "outlines lie on their nuclei"
