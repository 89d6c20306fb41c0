from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from monai.data import DataLoader
from monai.transforms import Compose, Lambdad, RandGaussianNoised, ScaleIntensityRanged
from PIL import Image
from scripts.data.annotation_style import CloseGaps
from scripts.data.augment import RandBlurd, RandCropAffined, RandStaind
from scripts.data.cache_key import describe
from scripts.data.encoding import DrawVariant, EncodeFeatures, RandFeatureCrop
from scripts.data.feature_cache import FeatureDataset, cache_usage, clear_cache, training_dataset
from scripts.data.holding_out import CutSpan
from scripts.data.readers import LoadNucleid
from scripts.data.transforms import SplitTargetsd, ToTargetMppd
from scripts.errors import DataError
from scripts.networks.sam_encoders import build_encoder
from scripts.networks.weights import load_encoder
from torch import nn


class PoolingEncoder(nn.Module):
    """Its features are means of the pixels below them, so where a crop of them comes from can be seen."""

    version = 1
    strides, size_multiple = (4, 8, 16), 16
    stored_channels, stored_strides = (3, 3, 3), strides

    def __init__(self, trained: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1), requires_grad=trained)
        self.calls = self.batches = 0

    def begin(self, image: torch.Tensor) -> list[torch.Tensor]:
        self.calls, self.batches = self.calls + len(image), self.batches + 1
        return [nn.functional.avg_pool2d(image, s) * self.weight for s in self.strides]


def _write(folder: Path, count: int = 3, side: int = 96, seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    items = []
    for i in range(count):
        label = np.zeros((side, side), np.uint16)
        label[20 + i : 40, 30:50] = 1
        label[60:80, 10 + i : 30] = 2
        image = rng.integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(image).save(folder / f"{i}.png")
        Image.fromarray(label).save(folder / f"{i}_label.png")
        items.append({"image": str(folder / f"{i}.png"), "label": str(folder / f"{i}_label.png"), "domain": i % 2})
    return items


def _transform(encoder=None, crop_size: int = 32, window: int = 64, noise: float = 6.0, mpp=None) -> Compose:
    augmentation = Compose(
        [
            RandCropAffined(crop_size=window, smallest=crop_size),
            RandStaind(),
            RandGaussianNoised("image", prob=0.5, std=noise),
            SplitTargetsd("label"),
        ]
    )
    encoder = encoder or PoolingEncoder()
    return Compose(
        [
            LoadNucleid(("image", "label")),
            ToTargetMppd(mpp),
            DrawVariant(augmentation),
            EncodeFeatures(encoder),
            RandFeatureCrop(crop_size, encoder.strides),
        ]
    )


def _dataset(items, cache_dir, windows=2, **kwargs) -> FeatureDataset:
    return FeatureDataset(items, _transform(**kwargs), cache_dir, windows_per_image=windows, window_size=64)


# --- crops


@settings(max_examples=60, deadline=None)
@given(
    height=st.sampled_from([32, 64, 96, 160]), width=st.sampled_from([32, 64, 96]),
    crop=st.sampled_from([16, 32, 48, 64]), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_a_crop_of_features_is_the_features_of_the_same_place(height, width, crop, seed):
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)) * 255
    encode, cut = EncodeFeatures(PoolingEncoder()), RandFeatureCrop(crop, (4, 8, 16))
    cut.set_random_state(seed=seed)
    item = cut(encode({"image": image, "target": image[:2] / 255}))
    assert item["image"].shape == (3, min(crop, height), min(crop, width))
    torch.testing.assert_close(item["target"], item["image"][:2] / 255, atol=0.003, rtol=0)  # 8 bits
    for feature, stride in zip(item["features"], (4, 8, 16)):
        pooled = nn.functional.avg_pool2d(item["image"], stride).permute(1, 2, 0)
        torch.testing.assert_close(feature.float(), pooled, atol=0.1, rtol=0)


def test_crops_that_would_cut_a_feature_are_refused():
    with pytest.raises(ValueError, match="multiple of 16"):
        RandFeatureCrop(40, (4, 8, 16))


def test_an_encoder_that_is_trained_cannot_be_cached():
    with pytest.raises(ValueError, match="LoRA.*--cache off"):
        EncodeFeatures(PoolingEncoder(trained=True))


def test_windows_encoded_together_are_those_encoded_alone():
    encode = EncodeFeatures(build_encoder("vit_test"))
    sizes = [(64, 64), (64, 96), (64, 64), (96, 64), (64, 64)]
    items = [
        {"image": torch.rand(3, *size) * 255, "target": torch.rand(2, *size), "domain": i}
        for i, size in enumerate(sizes)
    ]
    together = encode.together(items)
    for one, item in zip(together, items, strict=True):
        alone = encode(item)
        assert one["domain"] == item["domain"] and torch.equal(one["image"], alone["image"])
        for feature, expected in zip(one["features"], alone["features"], strict=True):
            assert feature.is_contiguous() and feature.untyped_storage().nbytes() == 2 * feature.numel(), "its own file"
            torch.testing.assert_close(feature, expected, atol=0.002, rtol=0.001)  # a unit in the last place


@pytest.mark.parametrize("value", [1e6, -1e6, float("nan"), float("inf")])
def test_features_that_half_precision_cannot_hold_are_refused(value):
    encoder = PoolingEncoder()
    item = {"image": torch.full((3, 64, 64), 255.0), "target": torch.zeros(1, 64, 64)}
    encoder.weight.data.fill_(65504 / 255)  # all as large as can be
    assert EncodeFeatures(encoder)(item)["features"][0].max() == 65504
    encoder.begin = lambda image: [torch.tensor([[[[1.0, value, -value, 1.0]]]])]
    with pytest.raises(ValueError, match="half precision: use --cache off"):
        EncodeFeatures(encoder)(item)


# --- what is stored


def test_filling_computes_each_window_once_and_training_never_again(tmp_path, capsys):
    encoder = PoolingEncoder()
    dataset = FeatureDataset(
        _write(tmp_path), _transform(encoder), tmp_path / "cache", windows_per_image=2, window_size=64
    )
    assert len(dataset.missing()) == 6
    dataset.fill()
    assert encoder.calls == 6 and encoder.batches == 3 and not dataset.missing()
    for _ in range(5):
        for i in range(len(dataset)):
            dataset[i]
    dataset.fill()
    assert encoder.calls == 6
    stored = [file.stat().st_size for file in (tmp_path / "cache").glob("*.pt")]
    assert len(stored) == 6 and sum(stored) <= dataset.bytes_needed(6)
    assert "at most" in capsys.readouterr().err


def test_items_hold_what_a_batch_needs(tmp_path):
    items = _write(tmp_path)
    dataset = _dataset(items, tmp_path / "cache").fill()
    (batch,) = DataLoader(dataset, batch_size=3)
    assert batch["image"].shape == (3, 3, 32, 32) and batch["target"].shape == (3, 2, 32, 32)
    assert [tuple(f.shape) for f in batch["features"]] == [(3, 8, 8, 3), (3, 4, 4, 3), (3, 2, 2, 3)]
    assert batch["features"][0].dtype == torch.float16
    assert batch["domain"].tolist() == [0, 1, 0]
    assert batch["image"].meta["filename_or_obj"] == [item["image"] for item in items]


def test_crops_and_windows_are_drawn_from_the_seed(tmp_path):
    dataset = _dataset(_write(tmp_path), tmp_path / "cache", windows=4).fill()

    def draw(seed):
        dataset.set_random_state(seed=seed)
        return torch.stack([dataset[i % 3]["image"].as_tensor() for i in range(12)])

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_windows_differ_but_follow_from_the_item_alone(tmp_path):
    items = _write(tmp_path)
    (a, b, c) = (_dataset(items, tmp_path / name) for name in "abc")
    np.random.seed(1)
    first = a._cachecheck(a._item(0, 0))["image"]
    b.set_random_state(seed=99)
    before = np.random.get_state()[1].copy()
    again = b._cachecheck(b._item(0, 0))["image"]
    assert (np.random.get_state()[1] == before).all(), "the run's own random numbers are left alone"
    assert torch.equal(first, again)
    assert not torch.equal(first, c._cachecheck(c._item(0, 1))["image"])


# --- the name of a file


def test_whatever_changes_the_features_changes_the_file(tmp_path):
    items = _write(tmp_path)
    before = _dataset(items, tmp_path / "cache").path(0, 0)
    assert _dataset(items, tmp_path / "cache").path(0, 1) != before, "window"
    assert _dataset(items, tmp_path / "cache", noise=7.0).path(0, 0) != before, "a setting deep inside"
    assert _dataset(items, tmp_path / "cache", window=96).path(0, 0) != before, "window"
    other = PoolingEncoder()
    other.weight.data.fill_(2.0)
    assert _dataset(items, tmp_path / "cache", encoder=other).path(0, 0) != before, "weights"
    for file, what in ((items[0]["image"], "image"), (items[0]["label"], "label")):
        pixels = np.array(Image.open(file))
        Image.fromarray(pixels.T if what == "label" else 255 - pixels).save(file)
        changed = _dataset(items, tmp_path / "cache").path(0, 0)
        assert changed != before, what
        before = changed


def test_what_does_not_matter_does_not(tmp_path):
    items = _write(tmp_path)
    before = _dataset(items, tmp_path / "cache").path(0, 0)
    used = _transform()
    used.set_random_state(seed=5)
    assert FeatureDataset(items, used, tmp_path / "cache", 2, 64).path(0, 0) == before, "seeds"
    elsewhere = tmp_path.parent / f"{tmp_path.name}_moved"
    shutil.copytree(tmp_path, elsewhere)
    moved = [{k: str(elsewhere / Path(item[k]).name) for k in ("image", "label")} | {"domain": 7} for item in items]
    assert _dataset(moved, tmp_path / "cache").path(0, 0) == before, "another folder, another role"


def test_clearing_removes_what_the_cache_wrote_and_nothing_else(tmp_path, capsys):
    _dataset(_write(tmp_path), tmp_path / "cache").fill()
    foreign = tmp_path / "cache" / f"{'0' * 64}.pt"
    foreign.write_bytes(b"mine")
    clear_cache(tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").glob("*.pt")] == [foreign.name]
    printed = capsys.readouterr().out
    assert "removed 6 files" in printed and foreign.name in printed
    assert len(_dataset(_write(tmp_path), tmp_path / "cache").missing()) == 6, "the next training encodes anew"
    with pytest.raises(DataError, match="nowhere: there is no such folder"):
        clear_cache(tmp_path / "nowhere")


def test_a_pixel_size_counts_where_it_changes_pixels(tmp_path):
    (item, *_) = _write(tmp_path)

    def path(own, target):
        return _dataset([item if own is None else {**item, "mpp": own}], tmp_path / "cache", mpp=target).path(0, 0)

    as_it_is = path(0.25, None)
    assert {path(0.25, 0.25), path(0.25, 0.2501), path(None, None), path(None, 0.5), path(0.5, None)} == {as_it_is}
    resampled = [path(0.25, 0.5), path(0.25, 0.4), path(0.5, 0.25), path(0.3, 0.5)]
    assert len({as_it_is, *resampled}) == 5
    tifffile.imwrite(tmp_path / "0.tif", np.asarray(Image.open(item["image"])), resolution=(40000, 40000),
                     resolutionunit="CENTIMETER")  # fmt: skip
    item["image"] = str(tmp_path / "0.tif")
    assert path(None, 0.25) == path(None, None) != path(None, 0.5), "where the file states it"
    assert path(None, 0.5) == path(0.25, 0.5)


def _transform_from(source: str, folder: Path, **settings) -> object:
    """A transform of a program, which is ``source``."""
    (folder / "own.py").write_text(source)
    spec = importlib.util.spec_from_file_location("own", folder / "own.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Brighten(**settings)


OWN = """
class Brighten:
    '''Makes it brighter.'''

    version = 1

    def __init__(self, by=2):
        self.by = by
        self._last = None
"""


def test_a_comment_keeps_the_files_a_version_or_setting_does_not(tmp_path):
    before = describe(_transform_from(OWN, tmp_path))
    assert describe(_transform_from(OWN.replace("Makes", "# Makes") + "\n# more\n", tmp_path)) == before
    assert describe(_transform_from(OWN.replace("None", "'drawn'"), tmp_path)) == before, "what was drawn"
    assert describe(_transform_from(OWN, tmp_path, by=3)) != before
    assert describe(_transform_from(OWN.replace("by=2", "by=3"), tmp_path)) != before, "another default"
    assert describe(_transform_from(OWN.replace("version = 1", "version = 2"), tmp_path)) != before


def test_a_transform_used_before_is_the_same(tmp_path):
    used, (item, *_) = _transform(), _write(tmp_path)
    steps = used.transforms[:4]
    before = describe(steps)
    steps[2].augmentation.transforms[0](steps[0](item))
    steps[2].augmentation.transforms[1]({"image": torch.rand(3, 8, 8)})
    assert describe(steps) == before


def test_what_has_no_version_is_named(tmp_path):
    with pytest.raises(DataError, match="own.Brighten.*version = 1.*--cache off"):
        describe([_transform_from(OWN.replace("version", "other"), tmp_path)])
    inherits = type("Brightest", (type(_transform_from(OWN, tmp_path)),), {"__module__": "own"})
    with pytest.raises(DataError, match="own.Brightest"):
        describe(inherits())
    with pytest.raises(DataError, match="<lambda>"):
        describe(Lambdad("image", eval("lambda x: x + 1", {})))


def test_versions_are_raised_with_the_results(tmp_path):
    """Where this fails, raise the ``version`` of the class whose results changed, and put the new figures here."""
    torch.manual_seed(0)
    rows, columns = np.mgrid[:96, :128]
    image = np.stack([rows * 2, columns, (rows + columns) % 64 * 4], axis=-1).astype(np.uint8)
    label = ((rows // 24 % 2) * (columns // 32 % 2) * (1 + columns // 32)).astype(np.uint16)
    Image.fromarray(image).save(tmp_path / "0.png")
    Image.fromarray(label).save(tmp_path / "0_label.png")
    item = {"image": str(tmp_path / "0.png"), "label": str(tmp_path / "0_label.png"), "mpp": 0.5}
    augmentation = [RandCropAffined(crop_size=64), RandStaind(prob=1.0), RandBlurd(prob=1.0), SplitTargetsd()]
    steps = [LoadNucleid(), ToTargetMppd(0.25), DrawVariant(Compose(augmentation)), EncodeFeatures(PoolingEncoder())]
    stored = Compose(steps)({**item, "content": "0", "window": 0})
    figures = [stored["image"].float().std(), *(channel.float().mean() for channel in stored["target"])]
    figures += [feature.float().mean() for feature in stored["features"][:1]]
    versions = {type(step).__name__: type(step).version for step in [*steps, *augmentation]}
    assert {name: version for name, version in versions.items() if version > 1} == {"RandCropAffined": 2}
    assert [float(figure) for figure in figures] == pytest.approx([31.388, 0.16797, 0.06217, 70.33], rel=2e-3)


def test_a_stored_file_takes_the_role_its_image_has_in_this_run(tmp_path):
    items = _write(tmp_path, count=1)
    assert _dataset(items, tmp_path / "cache").fill()[0]["domain"] == 0
    dataset = _dataset([{**items[0], "domain": 3}], tmp_path / "cache")
    assert not dataset.missing() and dataset[0]["domain"] == 3


def test_the_digest_is_the_same_in_every_process(bundle_root):
    program = (
        "import sys; sys.path[:0] = sys.argv[1:]; from test_feature_cache import _transform;"
        "from scripts.data.cache_key import describe; print(describe(_transform().transforms[:4]))"
    )
    here = Path(__file__).parent
    other = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    elsewhere = subprocess.run(
        [sys.executable, "-c", program, str(bundle_root), str(here)],
        capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": other, "PATH": ""},
    ).stdout.split()[-1]  # fmt: skip
    assert describe(_transform().transforms[:4]) == elsewhere


def test_the_digest_of_a_frozen_encoder_is_that_of_its_weights():
    torch.manual_seed(0)
    one, other = build_encoder("vit_test"), build_encoder("vit_test")
    assert describe(EncodeFeatures(one)) != describe(EncodeFeatures(other))
    other.backbone.load_state_dict(one.backbone.state_dict())
    assert describe(EncodeFeatures(one)) == describe(EncodeFeatures(other))


def test_what_other_settings_left_behind_is_told(tmp_path):
    items = _write(tmp_path)
    _dataset(items, tmp_path / "cache", noise=1.0).fill()
    dataset = _dataset(items, tmp_path / "cache").fill()
    # another process is writing one, and has finished it by the time it is looked at
    (tmp_path / "cache" / f".{'0' * 64}.{'a' * 12}.partial.pt").symlink_to(tmp_path / "finished.pt")
    assert "6 encoded windows" in cache_usage(dataset) and "6 other files" in cache_usage(dataset)
    with pytest.raises(ValueError, match="--cache on"):
        cache_usage([])


# --- what can go wrong


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    dataset = _dataset(_write(tmp_path), tmp_path / "cache")
    usage = type(shutil.disk_usage(tmp_path))(10**9, 10**9, 1000)
    monkeypatch.setattr("scripts.data.feature_cache.shutil.disk_usage", lambda _: usage)
    with pytest.raises(DataError, match="6 encoded windows take at most .* GB are free.*cache_dir"):
        dataset.fill()
    assert not list((tmp_path / "cache").glob("*.pt"))


def test_images_that_cannot_be_used_do_not_stop_the_others(tmp_path):
    items = _write(tmp_path, count=4)
    for i in (1, 2):
        Path(items[i]["image"]).write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1\.png(.|\n)*2\.png") as error:
        _dataset(items, tmp_path / "cache").fill()
    assert error.value.path == items[1]["image"]
    assert len(list((tmp_path / "cache").glob("*.pt"))) == 4


def test_a_damaged_file_is_named(tmp_path):
    dataset = _dataset(_write(tmp_path, count=1), tmp_path / "cache", windows=1).fill()
    file = dataset.path(0, 0)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DataError, match=f"{file.name}.*Delete the file"):
        dataset[0]


def test_a_writer_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    dataset = _dataset(_write(tmp_path, count=1), tmp_path / "cache", windows=1)

    def half(obj, path):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(DataError, match="No space left.*cache_dir"):
        dataset.fill()
    assert not list((tmp_path / "cache").glob("*.pt"))


def test_cache_is_on_or_off(tmp_path):
    with pytest.raises(ValueError, match="on or off"):
        training_dataset(_write(tmp_path), _transform(), "yes", tmp_path / "cache", 1, 64, 1.0)


# --- cached equals live


def test_stored_features_of_real_tissue_are_those_of_the_encoder_to_half_precision(real_data, mobile_sam, tmp_path):
    """The error that storing in half precision makes, measured on MobileSAM's features of TNBC."""
    item = {key: str(real_data / "tnbc" / f"{key}s" / "01_1.png") for key in ("image", "label")}
    encoder = load_encoder("vit_t", mobile_sam)
    transform = _transform(encoder, crop_size=256, window=256)
    dataset = FeatureDataset([{**item, "domain": 0}], transform, tmp_path, windows_per_image=1, window_size=256).fill()
    crop = dataset[0]
    for stored, live in zip(crop["features"], encoder(crop["image"].as_tensor()[None])):
        error = (stored.float() - live[0].permute(1, 2, 0)).abs()
        assert error.max() <= 2**-11 * live.abs().max(), "at most half a unit in the last of 11 bits"
        assert error.square().mean().sqrt() <= 5e-4 * live.square().mean().sqrt()


def test_the_named_steps_of_the_config_are_stored_as_a_list_of_them_is(bundle_root):
    """So features are found again, whatever the steps are called."""
    keys = ["image", "label"]
    steps = [
        RandCropAffined(keys, crop_size=512, smallest=256),
        RandStaind("image"),
        RandBlurd("image"),
        RandGaussianNoised("image", prob=0.2, std=6.0),
        ScaleIntensityRanged("image", a_min=0, a_max=255, b_min=0, b_max=255, clip=True),
        SplitTargetsd("label", targets="hv"),
    ]
    stored = [LoadNucleid(keys), CutSpan(keys), CloseGaps(), ToTargetMppd(0.25), DrawVariant(Compose(steps))]
    parser = ConfigParser()
    parser.read_config(str(bundle_root / "configs" / "train.json"))
    parser.update({"network_mpp": 0.25, "network": SimpleNamespace(image_encoder=PoolingEncoder())})
    now = parser.get_parsed_content("train::preprocessing").flatten().transforms
    assert [describe(step) for step in now[: len(stored)]] == [describe(step) for step in stored]
