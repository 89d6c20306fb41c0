from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scripts.inference.tiling import TileInferer
from scripts.inference.views import disagreement, view_network
from scripts.nuclei.targets import make_targets


class Recorder(torch.nn.Module):
    """Gives back what it sees, in two channels, and remembers the sizes and values it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: set[tuple[int, int]] = set()
        self.lowest = float("inf")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sizes.add(tuple(x.shape[2:]))
        self.lowest = min(self.lowest, x.min().item())
        return torch.cat([x.mean(1, keepdim=True), x[:, :1]], dim=1)


def picture(*size: int) -> torch.Tensor:
    """Random (1, 3, H, W) RGB without any black."""
    return 50 + 200 * torch.rand((1, 3, *size), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "size, tile",
    [
        ((64, 64), (64, 64)),
        ((200, 150), (64, 64)),
        ((65, 64), (64, 64)),
        ((50, 40), (64, 64)),
        ((20, 31), (32, 32)),
        ((200, 33), (64, 64)),
        ((90, 7), (64, 32)),
        ((1, 1), (32, 32)),
    ],
)
def test_any_size_comes_back_as_it_was(size, tile):
    network, image = Recorder(), picture(*size) / 50
    output = TileInferer(roi_size=64)(image, network)
    assert output.shape == (1, 2, *size)
    assert TileInferer(roi_size=64, views=2)(image, Recorder()).shape == (1, 3, *size)
    torch.testing.assert_close(output[:, 1], image[:, 0], rtol=1e-3, atol=1e-3)
    assert network.sizes == {tile}, "tiles are as small as the image allows, and multiples of 32"
    assert network.lowest >= 1, "the network saw a black border"


@pytest.mark.parametrize(
    "size, tile, count",
    [(160, 96, 2), (128, 128, 1), (129, 96, 2), (224, 128, 2), (225, 128, 3), (260, 128, 3), (1000, 128, 11)],
)
def test_tiles_are_as_few_and_then_as_small_as_suffices(size, tile, count):
    """Sides of at most 128 with 32 in common at least: nothing is looked at more often than that demands."""
    places = []

    def network(x):
        places.append((int(x[0, 0, 0, 0]), x.shape[3]))
        return x[:, :2] * 1

    columns = torch.arange(float(size)).repeat(1, 3, 32, 1)
    TileInferer(roi_size=128, overlap=0.25, sw_batch_size=1)(columns, network)
    places.sort()
    assert {side for _, side in places} == {tile} and len(places) == count
    assert all(left + tile - right >= 32 for (left, _), (right, _) in zip(places, places[1:]))


def test_an_image_may_be_smaller_than_what_tiles_have_in_common():
    network, image = Recorder(), picture(20, 300)
    output = TileInferer(roi_size=128, overlap=0.5)(image, network)
    torch.testing.assert_close(output[:, 1], image[:, 0])
    assert network.sizes == {(32, 128)}


def test_padding_mirrors_the_image():
    seen = []
    TileInferer(roi_size=64)(picture(30, 32), lambda x: seen.append(x.clone()) or x * 1)
    torch.testing.assert_close(seen[0][0, :, 0], seen[0][0, :, 2])
    torch.testing.assert_close(seen[0][0, :, 31], seen[0][0, :, 29])


def test_a_local_network_has_no_seams():
    """Away from the tiles' edges a network of small reach answers as if it had seen the whole image."""
    torch.manual_seed(0)
    network, image = torch.nn.Conv2d(3, 2, 3, padding=1).eval(), picture(150, 170)
    with torch.no_grad():
        whole = network(image)
        tiled = TileInferer(roi_size=64, overlap=0.5)(image, network)
        hard = TileInferer(roi_size=64, overlap=0.0, mode="constant")(image, network)
    seam = (slice(None), slice(None), slice(10, 140), slice(10, 160))
    assert (tiled - whole)[seam].abs().mean() < 0.1 * (hard - whole)[seam].abs().mean()


@pytest.mark.parametrize("amp", [False, True])
def test_mixed_precision_is_the_networks_alone(amp):
    seen = []

    def network(x):
        seen.append(torch.is_autocast_enabled("cpu"))
        return (x @ torch.ones(64, 64))[:, :2]

    output = TileInferer(roi_size=64, amp=amp)(picture(64, 64), network)
    assert set(seen) == {amp} and output.dtype == torch.float32
    assert not torch.is_autocast_enabled("cpu")


def test_views_are_averaged_and_tell_their_spread():
    """A network that answers by position: turned views cancel what is odd in it, and differ most at the edges."""

    def ramp(x):
        return x[:, :1] * 0 + torch.linspace(-4, 4, x.shape[3])

    inner = slice(None), slice(None), slice(None), slice(2, 62)  # enlarging and shrinking round the ramp's ends off
    probability = ramp(torch.zeros(1, 1, 64, 64)).sigmoid()
    for views in (2, 4):
        output = TileInferer(roi_size=64, views=views)(picture(64, 64), ramp)
        torch.testing.assert_close(output[:, :1], torch.zeros(1, 1, 64, 64), atol=0.02, rtol=0)
        torch.testing.assert_close(output[:, 1:][inner], (probability - 0.5).abs()[inner], atol=0.02, rtol=0)


@pytest.mark.parametrize("views", [2, 4])
def test_the_first_view_is_the_image_and_others_are_larger(views):
    seen = []
    image = picture(64, 96)
    TileInferer(roi_size=96, views=views)(image, lambda x: seen.append(x) or x * 1)
    assert len(seen) == views and torch.equal(seen[0], image)
    sizes = [tuple(x.shape[2:]) for x in seen]
    assert sizes == [(64, 96)] * (views // 2) + [(96, 128)] * (views // 2), "multiples of 32, at least 1.25 times"
    assert all(0 <= x.min() and x.max() <= 255 for x in seen)


@pytest.mark.parametrize("views", [0, 3, "2"])
def test_views_that_cannot_be_are_refused(views):
    with pytest.raises(ValueError, match="views must be one of 1, 2, 4, got"):
        TileInferer(roi_size=64, views=views)


def test_meta_data_and_own_settings_survive():
    inferer = TileInferer(roi_size=64, sw_batch_size=2)
    output = inferer(MetaTensor(picture(20, 20), meta={"filename_or_obj": "a.png"}), Recorder())
    assert output.meta["filename_or_obj"] == "a.png"
    assert inferer.roi_size == (64, 64), "a small image must not shrink the tile of the next one"


def test_a_tile_the_network_cannot_take_is_refused():
    with pytest.raises(ValueError, match="multiple of size_multiple, got 100 and 32"):
        TileInferer(roi_size=100)


@pytest.mark.parametrize("views", [2, 4])
def test_views_turn_the_places_of_pixels_over(views):
    """A network that is right on every view: its mean is nearly right too, for enlarging blurs the rims of nuclei."""
    label = np.kron(np.array([[1, 2, 0], [3, 0, 4]], np.int32), np.ones((32, 32), np.int32))

    class Right(torch.nn.Module):
        targets = "hv"

        def forward(self, x):
            target = torch.as_tensor(make_targets(x[0, 0].round().numpy().astype(np.int32), "hv"))
            return target.clamp(0.01, 0.99).logit()[None]

    image = torch.as_tensor(label).float().expand(1, 3, *label.shape)
    told, right = view_network(Right(), views)(image)[0], Right()(image)[0]
    inside = torch.as_tensor(np.kron(np.ones((2, 3), bool), np.pad(np.ones((22, 22), bool), 5)))
    torch.testing.assert_close(told[1:3, inside].sigmoid(), right[1:3, inside].sigmoid(), atol=0.2, rtol=0)
    assert told[3, inside].max() < 0.02, "no spread"


def test_an_image_is_disputed_for_its_nuclei_and_not_for_having_many():
    few, many = torch.full((2, 10, 10), -20.0), torch.full((2, 10, 10), -20.0)
    for answer, rows in ((few, 2), (many, 8)):
        answer[0, :rows], answer[1] = 20.0, 0.0
        answer[1, :rows] = 0.1
    assert disagreement(few) == pytest.approx(disagreement(many)) == pytest.approx(0.1)
    assert disagreement(torch.stack([few[0], torch.zeros(10, 10)])) == 0
    assert disagreement(torch.stack([few[0] * 0 - 20, few[1]])) == pytest.approx(1.0), "next to no nuclei, but unsure"
