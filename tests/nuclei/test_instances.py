from __future__ import annotations

import inspect
import json
import math
import time

import numpy as np
import pytest
import torch
from drawings import discs
from monai.data import MetaTensor
from PIL import Image
from scipy import ndimage
from scipy.special import logit
from scripts.errors import DataError
from scripts.nuclei.instances import LogitsToInstancesd, _without_debris, _without_holes, logits_to_instances
from scripts.nuclei.metrics import instance_scores
from scripts.nuclei.targets import make_targets
from scripts.training.overlay import NUCLEI


def ideal_logits(label: np.ndarray, channels: int = 2) -> np.ndarray:
    """What a perfect network says about a label map."""
    from scripts.nuclei.targets import normalised_distance

    foreground = np.where(label > 0, 8.0, -8.0)
    distance = logit(np.clip(normalised_distance(label), 1e-3, 1 - 1e-3))
    return np.stack([foreground, distance])[:channels].astype(np.float32)


def labels_of(folder, split: str = "testing") -> list[np.ndarray]:
    entries = json.loads((folder / "split.json").read_text())[split]
    return [np.asarray(Image.open(folder / entry["label"])).astype(np.int32) for entry in entries]


@pytest.mark.slow
@pytest.mark.parametrize("domain", ["tnbc", "monuseg"])
def test_ideal_logits_of_real_labels_give_the_nuclei_back(real_data, domain):
    ajis = []
    for label in labels_of(real_data / domain):
        _, instances = logits_to_instances(ideal_logits(label), min_area=10)
        ajis.append(instance_scores(instances[0], label)["aji"])
    assert min(ajis) > 0.95, f"AJI of each image: {np.round(ajis, 3)}"


def test_touching_nuclei_are_separated():
    label = discs((50, 35, 16), (50, 63, 16), (20, 80, 9))
    assert logits_to_instances(ideal_logits(label, channels=1))[1].max() == 2, "one channel cannot separate them"
    mask, instances = logits_to_instances(ideal_logits(label))
    assert instance_scores(instances[0], label)["aji"] > 0.98
    np.testing.assert_array_equal(mask[0], label > 0)


def test_components_are_what_is_left_without_the_watershed():
    label = discs((50, 35, 16), (50, 63, 16), (20, 80, 9))
    logits = ideal_logits(label)
    transform = LogitsToInstancesd(method="components")
    mask, instances = (transform({"pred": torch.as_tensor(logits)})[key] for key in ("mask", "instances"))
    assert instances.max() == 2 and torch.equal(mask > 0, torch.as_tensor(label > 0)[None])
    with pytest.raises(ValueError, match="method must be watershed or components, got 'blobs'"):
        logits_to_instances(logits, method="blobs")


@pytest.mark.parametrize("scale", [0.35, 0.6, 1.0])
def test_a_network_that_underrates_distances_still_separates(scale):
    """Real networks do so for small nuclei; a fixed marker threshold of 0.5 would find no marker there."""
    label = discs((50, 35, 16), (50, 63, 16))
    logits = ideal_logits(label)
    logits[1] = logit(scale / (1 + np.exp(-logits[1])))
    assert logits_to_instances(logits)[1].max() == 2


def test_ripples_do_not_split_a_nucleus():
    label = discs((50, 50, 30))
    logits = ideal_logits(label)
    logits[1] += np.random.default_rng(0).normal(0, 0.5, label.shape)
    assert logits_to_instances(logits)[1].max() == 1


def test_foreground_without_a_peak_stays_one_nucleus():
    label = discs((30, 30, 12), (70, 70, 12))
    logits = ideal_logits(label)
    logits[1] = -8
    assert instance_scores(logits_to_instances(logits)[1][0], label)["aji"] == 1


def test_holes_in_a_nucleus_are_filled_and_gaps_between_nuclei_are_not():
    label = discs((30, 30, 14))
    logits = ideal_logits(label)
    logits[0, 28:33, 28:33] = -8
    assert logits_to_instances(logits)[0][0, 30, 30] == 1
    # eight nuclei around a lumen: filling the mask as a whole would fill the lumen
    ring = discs(*((int(50 + 30 * math.sin(a)), int(50 + 30 * math.cos(a)), 13) for a in np.arange(8) * math.pi / 4))
    ring_mask, ring_instances = logits_to_instances(ideal_logits(ring))
    assert ndimage.binary_fill_holes(ring > 0)[50, 50], "the case must be a closed ring"
    assert ring_mask[0, 50, 50] == 0
    assert ring_instances.max() == 8


def test_what_only_corners_close_is_a_hole():
    """Nuclei hold together over corners, so their background does not: else a rim of one pixel would leak."""
    foreground = np.zeros((40, 40), bool)
    row, column = np.indices(foreground.shape)
    distance = abs(row - 20) + abs(column - 20)
    foreground[(distance >= 9) & (distance <= 10)] = True  # closed by sides
    thin = distance == 9  # closed by corners alone
    for rim in (foreground, thin):
        _, instances = logits_to_instances(np.where(rim, 8.0, -8.0)[None].astype(np.float32), min_area=1)
        assert instances.max() == 1 and instances[0, 20, 20] == 1


@pytest.mark.parametrize("turns", range(4))
def test_a_gap_that_another_nucleus_closes_is_none_of_either(turns):
    """On whichever side of it the other lies; a hole that only one surrounds is, also as the first of the image."""
    instances = np.ones((9, 12), np.int32)
    instances[3:6, 0:3], instances[3:6, 3:5], instances[4, 9] = 2, 0, 0
    filled = _without_holes(np.rot90(instances, turns))
    instances[4, 9] = 1
    np.testing.assert_array_equal(filled, np.rot90(instances, turns))
    ring = np.pad(np.zeros((1, 1), np.int32), 1, constant_values=3)
    assert (_without_holes(ring) == 3).all()


def test_ids_that_no_pixel_has_are_given_to_others():
    instances = np.array([[0, 2, 5, 5]], np.int32)
    assert _without_debris(instances, 0, 0.0).tolist() == [[0, 1, 2, 2]]


def test_defaults_are_the_same_in_both_forms_and_those_of_the_config(bundle_root):
    config = json.loads((bundle_root / "configs" / "inference.json").read_text())
    forms = [inspect.signature(form).parameters for form in (logits_to_instances, LogitsToInstancesd)]
    for name in ("threshold", "marker_depth", "min_area", "min_solidity", "min_peak", "method", "targets"):
        assert forms[0][name].default == forms[1][name].default
    for name in ("threshold", "marker_depth"):
        assert forms[0][name].default == config[name]
    assert NUCLEI.items() <= config.items(), "the picture at a training's end shows what inferring finds"
    for other in ("evaluate", "wsi"):
        content = json.loads((bundle_root / "configs" / f"{other}.json").read_text())
        for name in ("threshold", "marker_depth", "min_peak", "min_solidity", "instance_method"):
            assert content[name] == config[name], (other, name)


def test_a_bay_at_the_image_border_is_not_a_hole():
    label = discs((30, 0, 14))
    label[26:34, :5] = 0
    assert logits_to_instances(ideal_logits(label, channels=1))[0][0, 30, 0] == 0


@pytest.mark.parametrize("channels", [1, 2])
def test_small_objects_go_and_ids_are_consecutive(channels):
    label = discs((10, 10, 2), (30, 30, 10), (60, 60, 2), (80, 80, 10))  # discs of radius 2 have 13 pixels
    mask, instances = logits_to_instances(ideal_logits(label, channels), min_area=14)
    assert np.unique(instances).tolist() == [0, 1, 2]
    np.testing.assert_array_equal(mask > 0, instances > 0)
    assert np.unique(logits_to_instances(ideal_logits(label, channels), min_area=13)[1]).tolist() == [0, 1, 2, 3, 4]


def test_smallest_area_in_micrometres_depends_on_mpp():
    logits = torch.as_tensor(ideal_logits(discs((30, 30, 2), (70, 70, 10))))  # 13 and 317 pixels
    transform = LogitsToInstancesd(min_area=1, min_area_um2=5)

    def count(mpp):
        return transform({"pred": logits, "mpp": mpp})["instances"].max().item()

    assert count(1.0) == 2, "13 um2 is more than 5"
    assert count(torch.tensor(0.5)) == 1, "3.25 um2 is less than 5"
    assert count(math.nan) == count(None) == 2, "without mpp min_area in pixels counts"


def test_of_small_nuclei_the_ragged_go_and_round_thin_and_large_ones_stay():
    label = discs((12, 12, 4))  # 49 pixels
    label[30:34, 5:25] = 2  # thin, 80 pixels, solid
    label[50:52, 5:25] = label[50:70, 5:7] = 3  # a hook of 76 pixels
    label[20:24, 50:90] = label[20:60, 50:54] = 4  # a hook of 304 pixels
    logits = ideal_logits(label, channels=1)

    def kept(min_area, min_solidity):
        found = logits_to_instances(logits, min_area=min_area, min_solidity=min_solidity)[1][0]
        assert np.unique(found).tolist() == list(range(found.max() + 1))
        return set(np.unique(label[found > 0]).tolist())

    assert kept(40, 0) == {1, 2, 3, 4}
    assert kept(40, 0.85) == {1, 2, 4}
    assert kept(130, 0.85) == set(), "304 pixels are small where nuclei have 130 or more"
    assert kept(0, 0.85) == {1, 2, 3, 4}, "without a smallest area no nucleus is small"


@pytest.mark.parametrize("channels", [1, 2])
def test_a_nucleus_must_be_sure_somewhere_and_keeps_its_doubtful_outline(channels):
    label = discs((30, 30, 10), (30, 80, 10), (80, 30, 10))
    label[45:50, 60:100] = 4  # debris: as doubtful as the second nucleus
    logits = np.where(label[None] > 0, 0.2, -8.0).repeat(channels, axis=0).astype(np.float32)  # probability .55
    inner = discs((30, 30, 5), (80, 30, 1))
    logits[0][inner > 0] = 3.0  # .95, in 81 and in 5 pixels
    found = logits_to_instances(logits, min_peak=0.8, method="components")[1][0]
    assert np.array_equal(found > 0, label == 1), "the whole first nucleus, outline and all, and no other"
    assert logits_to_instances(logits, method="components")[1].max() == 4
    assert logits_to_instances(logits, threshold=0.6, min_peak=0.5, method="components")[1].max() == 1


def test_no_small_ellipse_up_to_three_times_as_long_as_wide_is_debris():
    random = np.random.default_rng(0)
    for _ in range(300):
        area, elongation, angle = random.uniform((42, 1, 0), (100, 3, np.pi))
        minor = np.sqrt(area / np.pi / elongation)
        y, x = np.mgrid[-20:21, -20:21] + random.uniform(size=(2, 1, 1))
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        ellipse = (along / minor / elongation) ** 2 + (across / minor) ** 2 <= 1
        logits = np.where(ellipse, 8.0, -8.0)[None].astype(np.float32)
        assert logits_to_instances(logits, min_area=30, min_solidity=0.85)[1].max() == 1


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("fill", [-9.0, 9.0])
def test_images_of_nothing_and_of_nothing_else(channels, fill):
    mask, instances = logits_to_instances(np.full((channels, 20, 30), fill, np.float32))
    assert mask.shape == instances.shape == (1, 20, 30)
    assert instances.max() == mask.max() == (fill > 0)


def test_transform_gives_the_promised_types_and_keeps_meta_data():
    pred = MetaTensor(torch.as_tensor(ideal_logits(discs((30, 30, 10)))), meta={"filename_or_obj": "a.png"})
    item = LogitsToInstancesd("pred")({"pred": pred})
    assert item["mask"].dtype == torch.uint8 and item["instances"].dtype == torch.int32
    assert item["mask"].shape == item["instances"].shape == (1, 100, 100)
    assert item["instances"].meta["filename_or_obj"] == "a.png"


def test_the_channel_behind_the_networks_own_is_the_spread():
    logits = torch.as_tensor(ideal_logits(discs((30, 30, 10)), channels=1))
    item = LogitsToInstancesd(with_spread=True)({"pred": torch.cat([logits, torch.full_like(logits, 0.25)])})
    assert item["instances"].max() == 1 and (item["spread"] == 0.25).all() and item["spread"].shape == logits.shape
    assert "spread" not in LogitsToInstancesd()({"pred": logits})


@pytest.mark.parametrize("shape", [(3, 8, 8), (8, 8), (1, 2, 8, 8)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"logits must be .*got"):
        logits_to_instances(np.zeros(shape, np.float32), targets="distance")


def test_channels_of_a_network_that_does_not_say_mean_what_so_many_usually_do():
    """An export tells nothing."""
    label = discs((30, 30, 10), (30, 49, 10))
    for targets in ("foreground", "distance", "hv"):
        logits = logit(np.clip(make_targets(label, targets), 1e-3, 1 - 1e-3))
        np.testing.assert_array_equal(logits_to_instances(logits)[1], logits_to_instances(logits, targets=targets)[1])
    with pytest.raises(ValueError, match="4 channels"):
        logits_to_instances(np.zeros((4, 8, 8), np.float32))


def test_time_grows_with_pixels_not_with_nuclei_times_pixels():
    one_disc = discs((5, 5, 3), side=10)
    few, many = np.kron(one_disc, np.ones((50, 50), np.int32)), np.tile(one_disc, (50, 50))

    def seconds(mask):
        logits = np.stack([np.where(mask > 0, 8.0, -8.0), ndimage.gaussian_filter(np.where(mask > 0, 4.0, -4.0), 1)])
        start = time.perf_counter()
        instances = logits_to_instances(logits.astype(np.float32))[1]
        return time.perf_counter() - start, instances.max()

    (time_few, count_few), (time_many, count_many) = min(seconds(few), seconds(few)), min(seconds(many), seconds(many))
    assert (count_few, count_many) == (1, 2500)
    assert time_many < 10 * time_few, f"{count_many} nuclei took {time_many:.2f} s, one took {time_few:.2f} s"


@pytest.mark.parametrize(
    "settings", [{"threshold": 7}, {"threshold": 0}, {"threshold": float("nan")}, {"marker_depth": 0}, {"min_area": -1},
                 {"min_area_um2": float("nan")}, {"min_solidity": 1.1}, {"min_solidity": float("nan")},
                 {"min_peak": 1.0}],
)  # fmt: skip
def test_a_setting_out_of_its_range_is_refused_before_work_starts(settings):
    """By the one range of the setting, also where a config of one's own names it below the top."""
    with pytest.raises(DataError, match=f"{next(iter(settings))}: it must be a number (from|above) 0"):
        LogitsToInstancesd(**settings)
