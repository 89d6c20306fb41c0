from __future__ import annotations

import numpy as np
import pytest
from scripts.nuclei.metric_table import METRICS, metric_of, units_of
from scripts.nuclei.metrics import image_metrics


def test_every_figure_of_an_image_is_in_the_table():
    label = np.zeros((20, 20), int)
    label[2:9, 2:9] = 1
    scores = image_metrics(label > 0, label > 0, label, label, mpp=0.25)
    assert set(scores) <= set(METRICS) and set(units_of(list(scores))) == set(scores)


@pytest.mark.parametrize(
    "name, arrow", [("dice", "dice ↑"), ("hd95_um", "hd95_um ↓"), ("merged", "merged ↓"), ("n_true", "n_true"),
                    ("undefined", "undefined ↓"), ("mine", "mine")],
)  # fmt: skip
def test_the_direction_is_that_of_the_figure(name, arrow):
    assert metric_of(name).arrow == arrow


def test_fractions_have_three_decimals_and_distances_one():
    assert metric_of("aji").text(0.12345) == "0.123" and metric_of("hd_px").text(0.12345, "+") == "+0.1"
