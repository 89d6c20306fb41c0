"""A part of each labelled image is kept from training, to judge by."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from scripts.data.domain_folders import domain_list
from scripts.data.domains import load_items
from scripts.data.holding_out import CutSpan, training_span, validation_items


def test_training_and_validation_share_no_pixel_and_miss_none(synthetic):
    domains = domain_list(synthetic, "synthetic_pink")
    trained = training_span(load_items(domains, "training"), 0.25)
    judged = validation_items(domains, 0.25)
    own = [item for item in trained if item["domain"] == 0]
    assert [item["image"] for item in own] == [item["image"] for item in judged], "each image of the primary"
    assert not any("span" in item for item in trained if item["domain"] > 0), "auxiliaries stay whole"
    image = torch.arange(50 * 80.0).reshape(1, 50, 80)
    for picture in (image, image.transpose(1, 2)):
        parts = [
            CutSpan("image")({"image": MetaTensor(picture), "span": item["span"]})["image"]
            for item in (own[0], judged[0])
        ]
        assert [max(part.shape) for part in parts] == [60, 50], "three quarters of the longer side"
        seen = torch.cat([part.flatten() for part in parts])
        assert torch.equal(seen.sort().values, torch.arange(50 * 80.0))


def test_nothing_is_held_out_unless_asked_for(synthetic):
    domains = domain_list(synthetic, "synthetic_pink")
    items = load_items(domains, "training")
    assert training_span(items, 0.0) == items
    assert validation_items(domains) == load_items(domains[:1], "validation")
    image = torch.zeros(3, 4, 5)
    assert CutSpan("image")({"image": image})["image"] is image
    with pytest.raises(ValueError, match="held_out must be at least 0 and below 1, got 1.5"):
        training_span(items, 1.5)
