from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fakes import TinyEncoder
from monai.data import MetaTensor
from scripts.inference.flips import flip_network
from scripts.inference.tiling import TileInferer
from scripts.networks.ama_sam import AMASAM
from scripts.networks.hr_decoder import HRDecoder
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
@pytest.mark.parametrize("flips", ["none", "images"])
def test_any_size_comes_back_as_it_was(size, tile, flips):
    network, image = Recorder(), picture(*size) / 50
    output = TileInferer(roi_size=64, flips=flips)(image, network)
    assert output.shape == (1, 2 + (flips != "none"), *size)
    torch.testing.assert_close(output[:, 1], image[:, 0], rtol=1e-3, atol=1e-3)
    assert network.sizes == {tile}, "tiles are as small as the image allows, and multiples of 32"
    assert network.lowest >= 1, "the network saw a black border"


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


def test_flips_of_images_are_averaged_and_tell_their_spread():
    """A network that answers by position: four flips cancel what is odd in it, and differ most at the edges."""
    ramp = torch.linspace(-4, 4, 64).view(1, 1, 1, 64)
    output = TileInferer(roi_size=64, flips="images")(picture(64, 64), lambda x: x[:, :1] * 0 + ramp)
    torch.testing.assert_close(output[:, :1], torch.zeros(1, 1, 64, 64), atol=1e-4, rtol=0)
    torch.testing.assert_close(output[0, 1, 0], (ramp.sigmoid() - 0.5).abs().flatten(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", ["light", "wide"])
def test_flips_of_features_run_the_encoder_once_and_leave_the_logits_alone(size):
    torch.manual_seed(0)
    encoder = TinyEncoder()
    network = AMASAM(encoder, HRDecoder(encoder.channels, encoder.strides, size=size)).eval()
    calls = []
    encoder.register_forward_hook(lambda *args: calls.append(1))
    image = picture(50, 64)
    with torch.no_grad():
        plain, flipped = (TileInferer(roi_size=64, flips=flips)(image, network) for flips in ("none", "features"))
    assert len(calls) == 2
    torch.testing.assert_close(flipped[:, :2], plain)
    assert flipped.shape[1] == 3 and 0 < flipped[:, 2].max() <= 0.5


def test_flipping_features_is_flipping_the_image_where_the_encoder_does_not_mind():
    """Averages over squares commute with flips; then both ways of flipping must tell the same spread."""

    class Averages(TinyEncoder):
        def forward(self, image):
            means = (F.avg_pool2d(image / 255, stride).repeat(1, 3, 1, 1) for stride in self.strides)
            return [values[:, :channels] for values, channels in zip(means, self.channels)]

    torch.manual_seed(0)
    encoder = Averages()
    network = AMASAM(encoder, HRDecoder(encoder.channels, encoder.strides, size="light")).eval()
    with torch.no_grad():
        spreads = [TileInferer(64, flips=flips)(picture(64, 64), network)[:, 2] for flips in ("features", "images")]
    assert spreads[0].max() > 1e-3
    torch.testing.assert_close(*spreads, atol=1e-5, rtol=1e-3)


def test_flips_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="flips must be one of none, features, images, got 'True'"):
        TileInferer(roi_size=64, flips="True")
    with pytest.raises(ValueError, match="Recorder has no features to flip"):
        TileInferer(roi_size=64, flips="features")(picture(64, 64), Recorder())


def test_meta_data_and_own_settings_survive():
    inferer = TileInferer(roi_size=64, sw_batch_size=2)
    output = inferer(MetaTensor(picture(20, 20), meta={"filename_or_obj": "a.png"}), Recorder())
    assert output.meta["filename_or_obj"] == "a.png"
    assert inferer.roi_size == (64, 64), "a small image must not shrink the tile of the next one"


def test_a_tile_the_network_cannot_take_is_refused():
    with pytest.raises(ValueError, match="multiple of size_multiple, got 100 and 32"):
        TileInferer(roi_size=100)


def test_flips_turn_the_places_of_pixels_over():
    """A network that is right on every flip: its mean over flips is right too."""
    label = np.kron(np.array([[1, 2, 0], [3, 0, 4]], np.int32), np.ones((12, 9), np.int32))

    class Right(torch.nn.Module):
        targets = "hv"

        def forward(self, x):
            target = torch.as_tensor(make_targets(x[0, 0].numpy().astype(np.int32), "hv"))
            return target.clamp(0.01, 0.99).logit()[None]

    image = torch.as_tensor(label).float().expand(1, 3, *label.shape)
    told = flip_network(Right(), "images")(image)[0]
    torch.testing.assert_close(told[:3], Right()(image)[0], atol=1e-3, rtol=1e-3)
    assert told[3].max() < 1e-3, "no spread"
