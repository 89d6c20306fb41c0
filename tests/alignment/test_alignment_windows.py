"""What the alignment report looks at: windows of images and the features of their regions."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from fakes import TinyEncoder
from monai.data import MetaTensor
from scripts.alignment.features import RegionFeatures, region_means
from scripts.alignment.windows import CutWindows, image_statistics, window_items
from scripts.errors import DataError
from scripts.networks.ama_sam import AMASAM
from scripts.networks.hr_decoder import HRDecoder

# --- windows and features


def _item(size, windows=4, label=None, **more):
    image = torch.arange(3.0 * size[0] * size[1]).reshape(3, *size)  # every value once
    if label is None:
        label = torch.zeros(1, *size)
        label[:, ::7] = 1
    shared = {"domain": 1, "group": "theirs/1", "split": "testing", "mpp": float("nan"), "windows": windows}
    return {"image": MetaTensor(image, meta={"filename_or_obj": "a.png"}), "label": label, **shared, **more}


@pytest.mark.parametrize(
    "size, wanted, given, side",
    [
        ((128, 192), 9, 6, (64, 64)),
        ((150, 70), 9, 2, (64, 64)),
        ((200, 200), 2, 2, (64, 64)),
        ((50, 100), 9, 1, (32, 64)),
    ],
)
def test_windows_are_pieces_of_the_image_that_do_not_overlap(size, wanted, given, side):
    item = _item(size, wanted)
    windows = CutWindows(64)(item)
    assert len(windows) == given and all(w["image"].shape == (3, *side) and w["usable"] for w in windows)
    pixels = torch.cat([w["image"].flatten(1) for w in windows], dim=1)
    assert all(len(channel.unique()) == pixels.shape[1] for channel in pixels), "no pixel twice"
    assert torch.isin(pixels, item["image"].as_tensor()).all()
    assert all(w["group"] == "theirs/1" and w["file"] == "a.png" for w in windows)


def test_windows_without_nuclei_are_passed_over_and_told():
    label = torch.zeros(1, 128, 192)
    label[:, 70:90, 130:150] = 3
    (window,) = CutWindows(64)(_item((128, 192), label=label))
    assert window["usable"] and (window["label"] == 3).sum() == 400
    (window,) = CutWindows(64)(_item((128, 192), label=torch.zeros(1, 128, 192)))
    assert not window["usable"]
    (window,) = CutWindows(64)(_item((128, 192), label=torch.ones(1, 128, 192)))
    assert not window["usable"]


def test_an_image_smaller_than_the_network_takes_is_mirrored():
    (window,) = CutWindows(64)(_item((20, 31), label=torch.arange(31).expand(1, 20, 31) % 4))
    assert window["image"].shape == (3, 32, 32) and window["image"].unique().numel() == 3 * 20 * 31


@pytest.mark.parametrize("size", [0, 100])
def test_a_window_that_the_network_cannot_take_is_refused(size):
    with pytest.raises(ValueError, match=f"multiple of 32, got {size}"):
        CutWindows(size)


def test_image_statistics_of_a_drawn_window():
    label = np.zeros((10, 20), int)
    label[:2, :3], label[5:9, 5:10] = 4, 9
    image = np.stack([np.full((10, 20), value) for value in (10.0, 20.0, 30.0)])
    assert image_statistics(image, label) == pytest.approx([1e6 * 2 / 200, 13, 26 / 200, 10, 20, 30])
    assert image_statistics(image, 0 * label) == pytest.approx([0, 0, 0, 10, 20, 30])


def test_region_means_know_neither_number_nor_size_of_nuclei():
    foreground = torch.zeros(3, 1, 32, 32)
    foreground[0, :, :8, :8] = foreground[1, :, :24, :20] = 1
    features = torch.nn.functional.avg_pool2d(torch.cat([3 * foreground, 1 - foreground], dim=1), 4)
    means = region_means(features, foreground)
    assert torch.allclose(means[:2], torch.tensor([[3.0, 0.0], [0.0, 1.0]]).expand(2, 2, 2))
    assert means[2, 0].tolist() == [0, 0], "no nuclei, no features of nuclei"


def test_features_before_and_after_are_the_networks():
    encoder = TinyEncoder()
    network = AMASAM(encoder, HRDecoder(encoder.channels, encoder.strides, size="light", aligned_stride=8)).eval()
    image, label = 255 * torch.rand(2, 3, 64, 64), torch.zeros(2, 1, 64, 64)
    label[:, :, 8:40, 16:48] = 7
    with torch.no_grad():
        found = RegionFeatures(network)(image, label)
        frozen = encoder(image)
        _, aligned = network.decoder(frozen, image)
    inside = (slice(None), slice(None), slice(1, 5), slice(2, 6))  # at stride 8
    assert torch.allclose(found["aligned"][:, 0], aligned[inside].mean(dim=(2, 3)), atol=1e-5)
    assert found["frozen"].shape == (2, 2, 6 + 8), "strides 8 and 16, which the aligned features come from"
    assert torch.allclose(found["frozen"][:, 0, :6], frozen[1][inside].mean(dim=(2, 3)), atol=1e-5)


# --- items


def _domains(root, *names):
    return [
        {"name": name, "role": "auxiliary" if n else "primary", "root": f"{root}/{name}"}
        for n, name in enumerate(names)
    ]


def test_windows_are_few_and_of_all_patients(synthetic):
    domains = _domains(synthetic, "synthetic_pink", "synthetic_dark")
    items = window_items(domains, ["validation", "testing"], 9)
    for index in (0, 1):
        mine = [item for item in items if item["domain"] == index]
        assert len(mine) == 7 and sum(item["windows"] for item in mine) == 9
        assert {item["split"] for item in mine} == {"validation", "testing"}
    four = [item for item in window_items(domains, ["validation", "testing"], 4) if item["domain"] == 1]
    assert len({item["group"] for item in four}) == 4 and all(item["windows"] == 1 for item in four)
    assert {item["split"] for item in window_items(domains, "training", 4)} == {"training"}


def test_a_domain_without_such_images_gives_training_images(synthetic, tmp_path):
    shutil.copytree(f"{synthetic}/synthetic_dark", tmp_path / "synthetic_dark")
    split = tmp_path / "synthetic_dark" / "split.json"
    split.write_text(json.dumps({"training": json.loads(split.read_text())["training"]}))
    domains = _domains(synthetic, "synthetic_pink") + _domains(tmp_path, "x", "synthetic_dark")[1:]
    items = window_items(domains, ["validation", "testing"], 40)
    assert {item["split"] for item in items if item["domain"] == 1} == {"training"}
    assert {item["split"] for item in items if item["domain"] == 0} == {"validation", "testing"}


def test_missing_files_stop_the_verb_and_not_a_training(synthetic, tmp_path, caplog):
    shutil.copytree(f"{synthetic}/synthetic_dark", tmp_path / "synthetic_dark")
    entry = json.loads((tmp_path / "synthetic_dark" / "split.json").read_text())["testing"][0]
    (tmp_path / "synthetic_dark" / entry["image"]).unlink()
    domains = _domains(synthetic, "synthetic_pink") + _domains(tmp_path, "x", "synthetic_dark")[1:]
    with pytest.raises(DataError, match="listed but missing"):
        window_items(domains, ["testing"], 4)
    assert {item["domain"] for item in window_items(domains, ["testing"], 4, strict=False)} == {0}
    assert "left out of the alignment report" in caplog.text
