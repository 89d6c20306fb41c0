from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage
from scripts.data.transforms import SplitTargetsd, ToInputSized, ToTargetMppd
from scripts.nuclei.targets import normalised_distance


def make_item(height=90, width=120, **extra):
    """Smooth colours, and square nuclei of which the first two touch."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([y * 200 / height + 20, x * 200 / width + 20, 120 + 60 * np.sin(x / 9) * np.cos(y / 7)])
    label = np.zeros((1, height, width), np.int32)
    label[0, 10:30, 10:30], label[0, 10:30, 30:50], label[0, 60:75, 80:110] = 1, 2, 5
    meta = {"filename_or_obj": "x.png"}
    return {"image": MetaTensor(image.astype(np.float32), meta=meta), "label": MetaTensor(label, meta=meta), **extra}


# normalised distance ------------------------------------------------------------------------------------------------


def brute_force_distance(label):
    result = np.zeros(label.shape)
    for index in np.unique(label)[1:]:
        inside, outside = np.argwhere(label == index), np.argwhere(label != index)
        distance = np.sqrt(((inside[:, None] - outside[None]) ** 2).sum(-1)).min(1)
        result[tuple(inside.T)] = distance / distance.max()
    return result


@pytest.mark.parametrize("seed", range(4))
def test_distance_is_to_the_nearest_pixel_of_anything_else(seed):
    rng = np.random.default_rng(seed)
    blobs = ndimage.gaussian_filter(rng.normal(size=(40, 50)), 2) > 0
    cells = ndimage.zoom(rng.integers(1, 30, (8, 10)), 5, order=0)  # squares that touch and reach the border
    label = (blobs * cells).astype(np.int32)
    np.testing.assert_allclose(normalised_distance(label), brute_force_distance(label), atol=1e-6)


def test_touching_nuclei_are_apart_in_the_distance_and_together_in_the_foreground():
    item = SplitTargetsd()(make_item())
    foreground, distance = item["target"].numpy()
    label = item["label"].numpy()[0]
    np.testing.assert_array_equal(foreground, label > 0)
    for index in (1, 2, 5):
        assert distance[label == index].max() == 1
    assert distance[20, 29] < 0.2 and distance[20, 30] < 0.2, "the seam between touching nuclei is a border"
    assert not distance[label == 0].any()
    assert item["target"].dtype == torch.float32 and item["target"].meta["filename_or_obj"] == "x.png"


def test_distance_of_extreme_maps():
    assert not normalised_distance(np.zeros((5, 6), np.int32)).any()
    np.testing.assert_array_equal(normalised_distance(np.full((5, 6), 3, np.int32)), 1)
    single = np.zeros((5, 6), np.int32)
    single[0, 0] = 1
    np.testing.assert_array_equal(normalised_distance(single), single)


def test_one_channel_is_the_foreground():
    item = SplitTargetsd(targets="foreground")(make_item())
    assert item["target"].shape == (1, 90, 120)
    with pytest.raises(ValueError, match="targets must be one of foreground, distance, border, hv, got 'flow'"):
        SplitTargetsd(targets="flow")


# pixel size ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mpp, size", [(0.5, (180, 240)), (0.125, (45, 60)), (0.2, (72, 96))])
def test_resampling_to_the_target_pixel_size(mpp, size):
    before = make_item(mpp=mpp)
    item = ToTargetMppd(0.25)(before)
    assert item["image"].shape == (3, *size) and item["label"].shape == (1, *size)
    assert item["mpp"] == 0.25
    assert item["label"].dtype == torch.int32 and set(np.unique(item["label"])) == {0, 1, 2, 5}
    factor = mpp / 0.25
    for index in (1, 2, 5):
        np.testing.assert_allclose(
            (item["label"] == index).sum(), (before["label"] == index).sum() * factor**2, rtol=0.1
        )
        centre = [ndimage.center_of_mass(x["label"].numpy()[0] == index) for x in (before, item)]
        np.testing.assert_allclose((np.array(centre[0]) + 0.5) * factor - 0.5, centre[1], atol=0.6)
    np.testing.assert_allclose(item["image"].mean((1, 2)), before["image"].mean((1, 2)), atol=1)
    assert item["image"].meta["filename_or_obj"] == "x.png"


def test_a_label_takes_the_pixel_at_its_centre():
    """Half a pixel off, nuclei would lie beside what they are drawn on."""
    item = {"image": torch.rand(3, 9, 12), "label": torch.arange(108, dtype=torch.int32).reshape(1, 9, 12), "mpp": 0.1}
    shrunk = ToTargetMppd(0.3)(item)["label"]
    torch.testing.assert_close(shrunk, item["label"][:, 1::3, 1::3])
    torch.testing.assert_close(ToTargetMppd(0.1)({**item, "mpp": 0.3})["label"][:, 1::3, 1::3], item["label"])


def test_sizes_are_rounded_to_the_nearest_pixel():
    """Cut down, the last pixels of every image would be squeezed out of their pixel size."""
    resampled = ToTargetMppd(0.5)({"image": torch.rand(3, 97, 98), "mpp": 0.4})
    assert resampled["image"].shape == (3, 78, 78)  # of 77.6 and 78.4


def test_shrinking_does_not_alias():
    item = make_item(mpp=0.1)
    item["image"] = torch.zeros_like(item["image"])
    item["image"][:, :, ::4] = 200  # stripes finer than the new pixels, which sampling would miss or take for all
    shrunk = ToTargetMppd(0.4)(item)["image"].as_tensor()
    assert shrunk[:, 3:-3, 3:-3].std() < 5 and abs(shrunk.mean() - 50) < 5


@pytest.mark.parametrize(
    "target, extra",
    [(None, {"mpp": 0.5}), (0.25, {"mpp": float("nan")}), (0.25, {}), (0.25, {"mpp": 0.25}), (0.25, {"mpp": 0.252})],
)
def test_nothing_is_resampled_without_need(target, extra):
    before = make_item(**extra)
    item = ToTargetMppd(target)(before)
    assert item["image"] is before["image"] and item["label"] is before["label"]


def test_item_without_label_is_resampled():
    before = make_item(mpp=0.5)
    del before["label"]
    assert ToTargetMppd(0.25)(before)["image"].shape == (3, 180, 240)
    with pytest.raises(ValueError, match="target_mpp"):
        ToTargetMppd(0)


def test_results_return_to_the_pixels_of_the_file():
    """What was segmented at another pixel size must lie on the file's own pixels, and mpp be that of the file again."""
    image = MetaTensor(torch.rand(3, 50, 80) * 255, meta={"spatial_shape": np.array([50, 80])})
    item = ToTargetMppd(0.25, keys=["image"])({"image": image, "mpp": 0.5})
    assert item["image"].shape == (3, 100, 160)
    rows = torch.arange(100.0)[None, :, None].expand(1, 100, 160)
    result = ToInputSized()({**item, "pred": rows})
    assert result["image"].shape == (3, 50, 80) and result["mpp"] == 0.5
    # a ramp over the rows tells where each pixel came from: row r of the file lies between rows 2r and 2r + 1
    torch.testing.assert_close(result["pred"][0, 5:45, 0], 2 * torch.arange(5.0, 45.0) + 0.5)
    same = {"image": image, "pred": rows, "mpp": 0.5}
    assert ToInputSized()(same)["image"] is image


@pytest.mark.parametrize("mpp, size", [(0.5, (45, 60)), (0.125, (180, 240)), (0.3, (75, 100))])
def test_nuclei_return_to_the_pixels_of_the_file_as_they_were_separated(mpp, size):
    """Resampling logits would merge what touches; ids stay whole, are numbered 1..N, and the mask is where they are."""
    seen = make_item(mpp=0.25)
    seen["image"].meta["spatial_shape"] = np.array(size)
    seen["instances"], seen["mask"] = seen.pop("label"), torch.ones(1, 90, 120, dtype=torch.uint8)
    result = ToInputSized()(seen)
    nuclei = result["instances"].numpy()[0]
    assert nuclei.shape == size and nuclei.dtype == np.int32 and np.unique(nuclei).tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(result["mask"].numpy()[0], (nuclei > 0).astype(np.uint8))
    assert result["mpp"] == pytest.approx(0.25 * 90 / size[0]) and result["mask"].dtype == torch.uint8
    zoom = size[0] / 90
    for old, new in ((1, 1), (2, 2), (5, 3)):
        np.testing.assert_allclose((nuclei == new).sum(), (seen["instances"] == old).sum() * zoom**2, rtol=0.12)
