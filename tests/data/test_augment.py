from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor, PersistentDataset
from monai.networks.layers import gaussian_1d, separable_filtering
from monai.transforms import Compose, RandGaussianNoised
from PIL import Image
from scipy import ndimage
from scripts.data.augment import RandBlurd, RandCropAffined, RandStaind
from scripts.data.encoding import DrawVariant
from scripts.data.readers import LoadNucleid
from scripts.data.transforms import SplitTargetsd, ToTargetMppd
from skimage.color import hed2rgb, rgb2hed


def make_item(height=90, width=120, **extra):
    """Smooth colours and two nuclei."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([y * 200 / height + 20, x * 200 / width + 20, 120 + 60 * np.sin(x / 9) * np.cos(y / 7)])
    label = np.zeros((1, height, width), np.int32)
    label[0, 10:30, 10:30], label[0, 60:75, 80:110] = 1, 5
    return {"image": MetaTensor(image.astype(np.float32)), "label": MetaTensor(label), **extra}


# crop ---------------------------------------------------------------------------------------------------------------


def coordinates(height, width):
    """An item whose image holds each pixel's own row and column, and whose label numbers the pixels."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    label = np.arange(1, height * width + 1, dtype=np.int32).reshape(1, height, width)
    return {"image": MetaTensor(np.stack([y, x, y])), "label": MetaTensor(label)}


def test_crops_without_free_rotation_copy_pixels():
    source = coordinates(60, 80)
    crop = RandCropAffined(crop_size=(32, 48), prob=0.0).set_random_state(0)
    orientations = set()
    for _ in range(60):
        item = crop(source)
        rows, columns, _ = item["image"].numpy()
        assert rows.shape == (32, 48)
        np.testing.assert_allclose(rows, rows.round(), atol=0.01)
        assert rows.min() >= -0.01 and rows.max() <= 59.01 and columns.min() >= -0.01 and columns.max() <= 79.01
        np.testing.assert_array_equal(item["label"][0], rows.round() * 80 + columns.round() + 1)
        steps = (
            rows[1, 0] - rows[0, 0],
            columns[1, 0] - columns[0, 0],
            rows[0, 1] - rows[0, 0],
            columns[0, 1] - columns[0, 0],
        )
        orientations.add(tuple(int(round(step)) for step in steps))
    assert len(orientations) == 8, "four turns, mirrored or not"


def test_free_crops_keep_image_and_label_aligned_and_stay_in_range():
    source = coordinates(300, 400)
    crop = RandCropAffined(crop_size=64, prob=1.0, scale=(0.6, 1.7)).set_random_state(1)
    magnifications = []
    for _ in range(60):
        item = crop(source)
        rows, columns, _ = item["image"].numpy()
        number = item["label"].numpy()[0] - 1
        assert np.abs(number // 400 - rows).max() <= 0.51 and np.abs(number % 400 - columns).max() <= 0.51
        down = np.array([rows[1, 0] - rows[0, 0], columns[1, 0] - columns[0, 0]])
        right = np.array([rows[0, 1] - rows[0, 0], columns[0, 1] - columns[0, 0]])
        assert abs(down @ right) < 0.01 and abs(np.linalg.norm(down) - np.linalg.norm(right)) < 0.01, "no shear"
        magnifications.append(1 / np.linalg.norm(down))
        assert item["label"].dtype == torch.int32 and item["image"].shape == (3, 64, 64)
    assert 0.59 < min(magnifications) < 0.75 and 1.45 < max(magnifications) < 1.71


def test_crops_reach_all_of_the_image():
    crop = RandCropAffined(crop_size=16, prob=0.5).set_random_state(2)
    seen = np.zeros((48, 40), bool)
    source = coordinates(48, 40)
    for _ in range(600):
        seen.reshape(-1)[crop(source)["label"].numpy().reshape(-1) - 1] = True
    assert seen.mean() > 0.97


@pytest.mark.parametrize("prob", [0.0, 1.0])
def test_small_images_are_reflected(prob):
    crop = RandCropAffined(crop_size=100, prob=prob, scale=(0.6, 0.6)).set_random_state(3)
    for _ in range(10):
        item = crop(coordinates(20, 30))
        assert item["image"].shape == (3, 100, 100)
        assert item["label"].min() >= 1, "no empty padding"
        assert len(np.unique(item["label"])) > 400, "the whole image is shown"


def test_shrunk_crops_average_instead_of_skipping_pixels():
    # columns of black and white in turns: a pixel of half the size is grey, whatever pair it lies on
    image = torch.tensor([0.0, 255.0]).repeat(100).expand(3, 200, 200)
    item = {"image": MetaTensor(image.clone()), "label": MetaTensor(torch.ones(1, 200, 200, dtype=torch.int32))}
    crop = RandCropAffined(crop_size=64, prob=1.0, scale=(0.5, 0.5)).set_random_state(4)
    contrasts = [crop(item)["image"].std() for _ in range(20)]
    assert np.median(contrasts) < 30, "of 127 that are there"


@pytest.mark.parametrize("smallest, least", [(48, 64), (64, 64), (272, 288), (512, 512)])
def test_crops_of_small_images_have_sides_that_encoders_take(smallest, least):
    """A training's crop may be an odd multiple of 16, the window that is encoded for it may not."""
    crop = RandCropAffined(crop_size=512, smallest=smallest).set_random_state(seed=0)
    item = {"image": torch.zeros(3, 40, 70), "label": torch.zeros(1, 40, 70, dtype=torch.int32)}
    sides = {side for _ in range(8) for side in crop(item)["image"].shape[1:]}
    assert min(sides) == least and not any(side % 32 for side in sides)


def test_crop_arguments():
    with pytest.raises(ValueError, match="mode"):
        RandCropAffined(keys=("image", "label"), mode=("bilinear",))
    with pytest.raises(ValueError, match="scale"):
        RandCropAffined(scale=(1.5, 0.5))


# stain and blur -----------------------------------------------------------------------------------------------------


def test_stain_change_is_that_of_skimage():
    item = make_item()
    stain = RandStaind(prob=1.0, scale=0.3, shift=0.0, tint=0.0).set_random_state(0)
    changed = stain(item)["image"].numpy()
    stain.set_random_state(0)
    stain.R.rand()
    factors = [*(1 + stain.R.uniform(-0.3, 0.3, 2)), 1]
    # skimage cuts negative amounts of a stain off, which is not linear; compare where there are none
    rgb = (item["image"].numpy().transpose(1, 2, 0) + 1) / 256
    stains = rgb2hed(rgb)
    expected = hed2rgb(stains * factors) * 256 - 1
    valid = (stains > 1e-3).all(-1)
    assert valid.mean() > 0.02
    np.testing.assert_allclose(changed.transpose(1, 2, 0)[valid], expected[valid].clip(0, 255), atol=0.5)


def test_stain_change_stays_in_range_and_keeps_white_nearly_white():
    stain = RandStaind(prob=1.0).set_random_state(0)
    extremes = torch.cat([torch.zeros(3, 4, 4), torch.full((3, 4, 4), 255.0), 255 * torch.rand(3, 4, 4)], dim=1)
    results = torch.stack([stain({"image": extremes})["image"] for _ in range(50)])
    assert results.min() >= 0 and results.max() <= 255 and torch.isfinite(results).all()
    assert results[:, :, 4:8].min() > 235
    assert results[:, :, 8:].std(0).mean() > 5, "colours do change"


def test_fading_multiplies_the_optical_density():
    image = torch.linspace(10, 250, 48).reshape(3, 4, 4)
    faded = RandStaind(prob=1.0, scale=0, shift=0, tint=0, fading=(0.5, 0.5)).set_random_state(0)({"image": image})
    density, new = (-torch.log((x + 1) / 256) for x in (image, faded["image"]))
    torch.testing.assert_close(new, density / 2, atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="fading"):
        RandStaind(fading=(1.2, 0.8))


def test_without_luck_nothing_changes():
    item = make_item()
    assert RandStaind(prob=0.0)(item)["image"] is item["image"]
    assert RandBlurd(prob=0.0)(item)["image"] is item["image"]


def test_blur_is_gaussian_without_a_dark_frame():
    item = make_item()
    image = item["image"].numpy().copy()
    blurred = RandBlurd(prob=1.0, sigma=(1.0, 1.0))(item)["image"].numpy()
    expected = ndimage.gaussian_filter(image, (0, 1, 1), mode="mirror")
    np.testing.assert_allclose(blurred, expected, atol=1.0)
    white = {"image": torch.full((3, 30, 30), 240.0)}
    np.testing.assert_allclose(RandBlurd(prob=1.0)(white)["image"], 240, atol=0.01)
    with pytest.raises(ValueError, match="sigma"):
        RandBlurd(sigma=(2, 1))


@pytest.mark.parametrize("sigma", [0.3, 0.7, 1.2])
def test_blur_is_that_of_convolutions(sigma):
    image = make_item()["image"].as_tensor()
    kernel = gaussian_1d(torch.tensor(sigma), truncated=3.0, normalize=True)
    expected = separable_filtering(image[None], [kernel, kernel], mode="reflect")[0]
    blurred = RandBlurd(prob=1.0, sigma=(sigma, sigma))({"image": image})["image"]
    torch.testing.assert_close(blurred, expected, atol=1e-3, rtol=0)


# the whole pipeline -------------------------------------------------------------------------------------------------

PIPELINE = {
    "_target_": "Compose",
    "transforms": [
        {"_target_": "scripts.data.transforms.ToTargetMppd", "target_mpp": 0.25},
        {"_target_": "scripts.data.augment.RandCropAffined", "crop_size": [256, 256]},
        {"_target_": "scripts.data.augment.RandStaind"},
        {"_target_": "RandAdjustContrastd", "keys": "image", "prob": 0.3, "gamma": [0.8, 1.25]},
        {"_target_": "RandScaleIntensityd", "keys": "image", "prob": 0.3, "factors": 0.1},
        {"_target_": "scripts.data.augment.RandBlurd"},
        {"_target_": "RandGaussianNoised", "keys": "image", "prob": 0.3, "std": 6.0},
        {
            "_target_": "ScaleIntensityRanged",
            "keys": "image",
            "a_min": 0,
            "a_max": 255,
            "b_min": 0,
            "b_max": 255,
            "clip": True,
        },
        {"_target_": "scripts.data.transforms.SplitTargetsd"},
    ],
}


def pipeline() -> Compose:
    return ConfigParser({"pipeline": PIPELINE}).get_parsed_content("pipeline")


# what 0.10.0 made of these windows: colours of two pixels, and pixels of either nucleus
STORED = {
    1: ((256, 256), (93.908, 149.751, 67.066), (79.964, 144.602, 166.182), 2000, 6000),  # copied, stain, noise
    12: ((192, 224), (134.671, 61.996, 148.908), (184.109, 77.426, 68.573), 822, 2979),  # shrunk, stain, blur
    29: ((256, 256), (40.525, 122.998, 116.092), (54.573, 151.5, 119.092), 657, 5154),  # turned, stain, blur
}


@pytest.mark.parametrize("window", STORED)
def test_windows_that_users_have_stored_would_be_made_alike(window):
    noise = RandGaussianNoised("image", prob=0.2, std=6.0)
    steps = [RandCropAffined(crop_size=256, smallest=128), RandStaind(), RandBlurd(), noise]
    item = make_item(300, 280, content="same", window=window)
    item["label"][:] = 0
    item["label"][0, 40:90, 30:70], item["label"][0, 160:235, 180:260] = 1, 5
    made = DrawVariant(Compose(steps))(item)
    size, one, other, first, second = STORED[window]
    assert made["image"].shape[1:] == size
    np.testing.assert_allclose(made["image"][:, 50, 60], one, atol=0.01)
    np.testing.assert_allclose(made["image"][:, 100, 31], other, atol=0.01)
    assert [int((made["label"] == number).sum()) for number in (1, 5)] == [first, second]


def test_pipeline_from_json_is_reproducible():
    item, transform = make_item(300, 280, mpp=0.3), pipeline()
    first = [transform.set_random_state(7)(item) for _ in range(3)]
    again = [pipeline().set_random_state(7)(item) for _ in range(3)]
    for one, other in zip(first, again, strict=True):
        for key in ("image", "label", "target"):
            assert torch.equal(one[key], other[key])
    transform.set_random_state(7)
    assert not torch.equal(transform(item)["image"], transform(item)["image"]), "draws differ from call to call"
    assert first[0]["image"].min() >= 0 and first[0]["image"].max() <= 255


def test_input_items_are_not_changed():
    item = make_item(300, 280, mpp=0.3)
    before = {key: item[key].clone() for key in ("image", "label")}
    pipeline().set_random_state(0)(item)
    assert all(torch.equal(item[key], before[key]) for key in before), "cached items would be spoilt"


def test_persistent_dataset_caches_only_what_is_not_random(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)).save(tmp_path / "i.png")
    Image.fromarray(np.eye(80, dtype=np.uint8)).save(tmp_path / "l.png")
    items = [{"image": str(tmp_path / "i.png"), "label": str(tmp_path / "l.png"), "mpp": 0.3, "domain": 0}]
    random = [RandCropAffined(crop_size=32), SplitTargetsd()]
    dataset = PersistentDataset(items, [LoadNucleid(), ToTargetMppd(0.25), *random], cache_dir=tmp_path / "cache")
    assert not torch.equal(dataset[0]["image"], dataset[0]["image"])
    (tmp_path / "i.png").unlink()
    assert dataset[0]["target"].shape == (2, 32, 32), "loading and resampling come from the cache"


@pytest.fixture
def one_thread():
    """As in a data-loader worker."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_augmentation_is_fast(real_data, one_thread):
    root = real_data / "tnbc"
    item = LoadNucleid()({"image": str(root / "images/01_1.png"), "label": str(root / "labels/01_1.png")})
    transform = pipeline().set_random_state(0)
    times = []
    for _ in range(40):
        start = time.process_time()
        transform(item)
        times.append(time.process_time() - start)
    # about 6 ms of processor time a crop; the bound only catches an order of magnitude
    assert np.median(times) < 0.06, f"{1000 * np.median(times):.1f} ms a crop would keep training waiting"


def test_labels_stay_on_their_nuclei_in_real_images(real_data):
    root = real_data / "tnbc"
    item = LoadNucleid()({"image": str(root / "images/02_1.png"), "label": str(root / "labels/02_1.png")})
    transform = pipeline().set_random_state(0)
    for _ in range(12):
        crop = transform(item)
        inside = crop["label"][0].numpy() > 0
        around = ndimage.binary_dilation(inside, iterations=8) & ~ndimage.binary_dilation(inside, iterations=2)
        red = crop["image"].numpy()[0]
        if inside.sum() > 500:
            assert red[inside].mean() < red[around].mean() - 10, "nuclei are bluer and darker than their surroundings"
