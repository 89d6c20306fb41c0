from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scripts.data.transforms import ToTargetMppd
from scripts.errors import DataError
from scripts.inference.estimating import EstimateMppd
from scripts.networks.model_info import ModelInfo
from scripts.nuclei.instances import LogitsToInstancesd

MODEL = ModelInfo(mpp=0.25, nucleus_area_px={"a": 400.0})


class Darkness(torch.nn.Module):
    """A network that calls dark pixels nuclei."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, image):
        return (128 - image[:, :1]) * self.scale


def estimate(item, model=MODEL):
    separate = LogitsToInstancesd(targets="foreground", min_area=4)
    return EstimateMppd(Darkness().eval(), lambda image, network: network(image), separate, model)(item)


def squares(side, mpp=math.nan, count=36):
    tile = np.pad(np.zeros((side, side), np.float32), 4, constant_values=255)
    row = np.concatenate([tile] * count, axis=1)
    image = np.stack([row] * 3)
    meta = {"spatial_shape": np.array(row.shape), "mpp": mpp, "mpp_from": "unknown" if math.isnan(mpp) else "given"}
    return {"image": MetaTensor(image, meta=meta), "mpp": mpp}


def test_small_nuclei_are_brought_to_the_size_that_the_model_knows():
    item = estimate(squares(10))
    assert item["mpp"] == item["image"].meta["mpp"] == pytest.approx(0.5)
    assert item["image"].meta["mpp_from"] == "estimated"
    seen = ToTargetMppd(0.25, keys=["image"])(item)
    assert seen["image"].shape[1:] == (36, 2 * 18 * 36)
    assert estimate(squares(4))["mpp"] == pytest.approx(0.5), "never more than twice"


@pytest.mark.parametrize("side, count", [(19, 36), (60, 36), (10, 12)])
def test_nuclei_of_usual_size_or_larger_or_too_few_change_nothing(side, count):
    item = squares(side, count=count)
    assert estimate(item)["image"] is item["image"] and math.isnan(estimate(item)["mpp"])


def test_a_known_pixel_size_is_not_doubted():
    item = squares(10, mpp=0.25)
    assert estimate(item)["image"] is item["image"] and item["image"].meta["mpp_from"] == "given"


def test_a_model_that_does_not_know_its_nuclei_cannot_estimate():
    with pytest.raises(DataError, match="estimate"):
        estimate(squares(10), ModelInfo(mpp=0.25))
