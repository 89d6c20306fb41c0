"""Regions, and the distances of features that are controls of the adversary."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scripts.errors import DataError
from scripts.networks.alignment_losses import DISTANCES, DomainDiscrepancy, alignment_loss, coral, mmd
from scripts.networks.domain_adversary import DomainAdversary
from scripts.networks.regions import ALIGNED_BY, region_shares


@pytest.mark.parametrize("by", ALIGNED_BY)
def test_the_regions_share_each_point_out(by):
    foreground = (torch.rand(2, 1, 64, 48) > 0.8).float()
    shares = region_shares(foreground, (16, 12), by)
    assert shares.shape == (2, ALIGNED_BY[by], 16, 12) and shares.min() >= 0
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(2, 16, 12))


def test_the_border_reaches_two_pixels_to_either_side_of_an_edge():
    foreground = torch.zeros(1, 1, 16, 16)
    foreground[..., :8] = 1  # to the image's border, which is no edge
    inner, border, background = region_shares(foreground, (16, 16), "class")[0, :, 0]
    assert inner.tolist() == [1] * 6 + [0] * 10 and background.tolist() == [0] * 10 + [1] * 6
    assert border.tolist() == [0] * 6 + [1] * 4 + [0] * 6


def test_coral_is_the_published_formula():
    x, y = torch.randn(200, 5), torch.randn(300, 5) @ torch.randn(5, 5)
    found = coral(x, y, torch.full((1, 200), 1 / 200), torch.full((1, 300), 1 / 300))
    difference = np.cov(x.numpy().T, bias=True) - np.cov(y.numpy().T, bias=True)
    assert found.item() == pytest.approx((difference**2).sum() / (4 * 25), rel=1e-4)
    assert coral(x, x, *(torch.full((1, 200), 1 / 200),) * 2) == 0


def test_mmd_is_the_published_formula():
    x, y = torch.randn(20, 4, dtype=torch.double), torch.randn(30, 4, dtype=torch.double) + 1
    both = torch.cat([x, y])
    squared = torch.cdist(both, both) ** 2
    kernel = torch.stack([torch.exp(-squared / (squared.mean() * 2.0**k)) for k in range(-2, 3)]).mean(0)
    expected = kernel[:20, :20].mean() + kernel[20:, 20:].mean() - 2 * kernel[:20, 20:].mean()
    weights = [torch.full((1, n), 1 / n, dtype=torch.double) for n in (20, 30)]
    torch.testing.assert_close(mmd(x, y, *weights), expected[None])
    assert mmd(x, x, weights[0], weights[0]).abs() < 1e-12


@pytest.mark.parametrize("kind", DISTANCES)
def test_points_of_no_weight_do_not_count(kind):
    x, y = torch.randn(6, 3), torch.randn(6, 3)
    weights = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1]]) / torch.tensor([[3], [4]])
    moved = torch.cat([x[:3], x[3:].flip(0)])
    first, second = (DISTANCES[kind](points, y, weights, weights) for points in (x, moved))
    assert torch.allclose(first[0], second[0], atol=1e-6) and first.shape == (2,)
    if kind == "coral":
        assert torch.allclose(first[:1], coral(x[:3], y[:3], weights[:1, :3], weights[:1, :3]), atol=1e-6)


@pytest.mark.parametrize("kind", DISTANCES)
@pytest.mark.parametrize("aligned_by", ALIGNED_BY)
def test_small_steps_bring_auxiliaries_to_the_primary_which_stays(kind, aligned_by):
    domain = torch.tensor([0, 0, 1, 2])
    scale = torch.tensor([1.0, 1.0, 3.0, 0.5])[:, None, None, None]
    features = (torch.randn(4, 6, 16, 16) * scale + scale).requires_grad_()
    foreground = (torch.rand(4, 1, 64, 64) > 0.5).float()
    align = DomainDiscrepancy(kind, (0.0, 1.0, 1.0), aligned_by)
    align.cgrl.strength = 1.0
    first, judged = align(features, domain, foreground)
    assert judged is None and first > 0
    (gradient,) = torch.autograd.grad(first, features)
    assert not gradient[domain == 0].any() and gradient[2].any() and gradient[3].any()
    with torch.no_grad():
        step = 0.1 * first / gradient.square().sum()
        assert align(features - step * gradient, domain, foreground)[0] < first
    align.cgrl.strength = 0.0
    assert not torch.autograd.grad(align(features, domain, foreground)[0], features)[0].any()


def test_a_batch_that_lacks_a_domain_or_a_region_is_compared_by_what_it_has():
    align = DomainDiscrepancy("mmd", (0.0, 1.0, 1.0))
    features, empty = torch.randn(3, 4, 8, 8, requires_grad=True), torch.zeros(3, 1, 32, 32)
    assert align(features, torch.tensor([0, 0, 2]), empty)[0] > 0
    nothing = align(features, torch.tensor([1, 1, 2]), empty)[0]
    assert nothing == 0 and nothing.requires_grad


def test_each_name_gives_what_it_says():
    assert isinstance(alignment_loss("adversary", 4, (0.0, 1.0)), DomainAdversary)
    for kind in DISTANCES:
        assert not list(alignment_loss(kind, 4, (0.0, 1.0)).parameters())
        with pytest.raises(DataError, match="spectral_norm"):
            alignment_loss(kind, 4, (0.0, 1.0), spectral_norm=True)
    with pytest.raises(ValueError, match="adversary or one of mmd, coral"):
        alignment_loss("wasserstein", 4, (0.0, 1.0))
    with pytest.raises(ValueError, match="aligned_by must be one of image, region, class"):
        alignment_loss("adversary", 4, (0.0, 1.0), aligned_by="pixel")
