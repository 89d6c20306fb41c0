from __future__ import annotations

import pytest
import torch
from scripts.networks.style import StyleJitter


def batch():
    torch.manual_seed(0)
    scale = torch.tensor([1.0, 2.0, 4.0, 8.0])[:, None, None, None]
    return [torch.randn(4, 6, 8, 8) * scale + scale, torch.randn(4, 3, 4, 4)], 255 * torch.rand(4, 3, 32, 32)


def test_styles_change_and_what_is_where_stays():
    features, image = batch()
    jitter = StyleJitter(1.0)
    torch.manual_seed(1)
    changed, picture = jitter(features, image)
    assert [f.shape for f in changed] == [f.shape for f in features] and picture.shape == image.shape
    assert picture.min() >= 0 and picture.max() <= 255 and (picture - image).abs().mean() > 3
    for before, after in zip(features, changed):
        assert (after.mean((2, 3)) - before.mean((2, 3))).abs().mean() > 0.01
        pattern, new = ((x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True) for x in (before, after))
        torch.testing.assert_close(new.abs(), pattern.abs(), atol=1e-3, rtol=1e-3)
    torch.manual_seed(1)
    again, _ = jitter(features, image)
    assert all(torch.equal(a, b) for a, b in zip(again, changed)), "drawn from torch's generator, which runs seed"


def test_nothing_changes_without_it_or_outside_of_training():
    features, image = batch()
    for jitter in (StyleJitter(0.0), StyleJitter(1.0).eval()):
        same, picture = jitter(features, image)
        assert picture is image and all(a is b for a, b in zip(same, features))


def test_a_single_sample_has_no_spread_to_learn_styles_from():
    features, image = batch()
    alone, _ = StyleJitter(1.0)([f[:1] for f in features], image[:1])
    for before, after in zip(features, alone):
        torch.testing.assert_close(after, before[:1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prob", [-0.1, 1.5])
def test_the_probability_is_one(prob):
    with pytest.raises(ValueError, match="style_jitter"):
        StyleJitter(prob)
