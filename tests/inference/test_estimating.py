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


def estimate(image, mpp=math.nan, model=MODEL):
    """The item of an image that is read and brought to the model's pixel size, and how often it was."""
    reads = []

    def read(data):
        reads.append(data)
        meta = {"spatial_shape": np.array(image.shape[1:]), "mpp": data["mpp"], "mpp_from": "given"}
        return ToTargetMppd(0.25, keys=["image"])({**data, "image": MetaTensor(image, meta=meta)})

    separate = LogitsToInstancesd(targets="foreground", min_area=4)
    transform = EstimateMppd(read, Darkness().eval(), lambda image, network: network(image), separate, model)
    return transform({"image": "a.png", "mpp": mpp}), len(reads)


def squares(side, count=36):
    tile = np.pad(np.zeros((side, side), np.float32), 4, constant_values=255)
    return np.stack([np.concatenate([tile] * count, axis=1)] * 3)


def test_small_nuclei_are_brought_to_the_size_that_the_model_knows():
    item, reads = estimate(squares(10))
    assert reads == 2 and item["image"].shape[1:] == (36, 2 * 18 * 36)
    assert item["image"].meta["mpp_from"] == "estimated" and item["mpp"] == 0.25
    assert item["image"].meta["mpp_estimate"] == 0.5
    assert estimate(squares(4))[0]["image"].shape[1] == 24, "never more than twice"


@pytest.mark.parametrize("side, count, guess", [(19, 36, 0.25 * 20 / 19), (60, 36, 0.25 / 3), (10, 12, math.nan)])
def test_nuclei_of_usual_size_or_larger_or_too_few_change_nothing(side, count, guess):
    item, reads = estimate(squares(side, count))
    assert reads == 1 and item["image"].shape == squares(side, count).shape and math.isnan(item["mpp"])
    assert item["image"].meta["mpp_estimate"] == pytest.approx(guess, nan_ok=True), (
        "what was found is told all the same"
    )


def test_a_known_pixel_size_is_not_doubted():
    item, reads = estimate(squares(10), mpp=0.25)
    assert reads == 1 and item["image"].meta["mpp_from"] == "given" and math.isnan(item["image"].meta["mpp_estimate"])


def test_a_model_that_does_not_know_its_nuclei_cannot_estimate():
    with pytest.raises(DataError, match="estimate"):
        estimate(squares(10), model=ModelInfo(mpp=0.25))
