"""The alignment report: its statistics on constructed features, its verdict, and the verb as a whole."""

from __future__ import annotations

import csv
import json
import re
import shutil

import mlflow
import numpy as np
import pytest
import torch
from fakes import TinyEncoder, open_verb, tiny_encoder
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from scripts.alignment.features import RegionFeatures, region_means
from scripts.alignment.measure import WindowSamples, measure
from scripts.alignment.mmd import group_discrepancy, rbf_kernel, squared_mmd
from scripts.alignment.picture import principal_components
from scripts.alignment.probe import Accuracy, a_distance, balanced_accuracy, deal_groups, probe
from scripts.alignment.verdict import judge
from scripts.alignment.windows import CutWindows, image_statistics, window_items
from scripts.data.synthetic import ensure_dataset
from scripts.errors import DataError, root_cause
from scripts.networks.ama_sam import AMASAM
from scripts.networks.hr_decoder import HRDecoder
from scripts.networks.model_file import read_model_file, save_model
from scripts.setup_run import unknown_keys

NAMES = ["mine", "theirs", "others"]
FILES = ("alignment.json", "alignment.md", "alignment.png")


def _windows(rng, domains=3, groups=10, each=4, channels=12):
    """Domain and group of windows, and features (N, 2, C) of one distribution for all."""
    domain = np.repeat(np.arange(domains), groups * each)
    group = np.array([f"{NAMES[d]}/{n // each % groups}" for n, d in enumerate(domain)])
    return domain, group, rng.normal(size=(len(domain), 2, channels))


def _of_patients(rng, group, shape, strength=4.0):
    """What all windows of a group share."""
    effects = {name: strength * rng.normal(size=shape) for name in np.unique(group)}
    return np.stack([effects[name] for name in group])


# --- probe


def test_a_probe_cannot_tell_equal_distributions_apart():
    means = []
    for seed in range(4):
        domain, group, vectors = _windows(np.random.default_rng(seed))
        right, by_region = probe(vectors, domain, group, seed)
        accuracy = balanced_accuracy(right, domain, group)
        assert accuracy.low < accuracy.mean < accuracy.high
        means += [accuracy.mean, balanced_accuracy(by_region[:, 1], domain, group).mean]
    assert np.mean(means) == pytest.approx(1 / 3, abs=0.06)


def test_a_probe_tells_separate_distributions_apart():
    domain, group, vectors = _windows(np.random.default_rng(0))
    vectors[:, 1, 0] += 30 * domain  # in one region, on one channel
    right, by_region = probe(vectors, domain, group)
    assert balanced_accuracy(right, domain, group).mean > 0.9
    assert by_region[:, 1].mean() == 1 and by_region[:, 0].mean() < 0.6


def test_recognising_patients_does_not_help_a_probe():
    """Features that tell patients apart perfectly and say nothing of domains, however many windows a patient has."""
    kept_apart, leaking = [], []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        domain, group, vectors = _windows(rng, groups=8, each=6, channels=40)
        vectors = 0.1 * vectors + _of_patients(rng, group, vectors.shape[1:])
        right, _ = probe(vectors, domain, group, seed)
        kept_apart.append(balanced_accuracy(right, domain, group).mean)
        right, _ = probe(vectors, domain, np.arange(len(group)).astype(str), seed)
        leaking.append(right.mean())
    assert min(leaking) > 0.95, "windows of a patient on both sides: what must not happen"
    assert np.mean(kept_apart) < 1 / 3 + 0.08


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(3, 9), min_size=2, max_size=4), st.integers(2, 3), st.integers(0, 99))
def test_folds_keep_groups_whole_and_hold_every_domain(counts, folds, seed):
    domain = np.concatenate([[d] * (2 * count) for d, count in enumerate(counts)])
    group = np.array([f"{d}/{n // 2}" for d, count in enumerate(counts) for n in range(2 * count)])
    fold = deal_groups(domain, group, folds, np.random.default_rng(seed))
    assert all(len(set(fold[group == name])) == 1 for name in group)
    assert all(set(fold[domain == d]) == set(range(folds)) for d in range(len(counts)))


def test_domains_and_patients_count_alike():
    domain = np.array([0] * 10 + [1] * 4)
    group = np.array(["a"] * 9 + ["b"] + ["c", "c", "d", "d"])
    right = np.array([1.0] * 9 + [0] + [1, 0, 1, 1])
    accuracy = balanced_accuracy(right, domain, group)
    assert accuracy.mean == pytest.approx(np.mean([np.mean([1, 0]), np.mean([0.5, 1])]))
    again = balanced_accuracy(1 - right, domain, group)
    assert accuracy.draws + again.draws == pytest.approx(np.ones(len(again.draws))), "draws are paired"


def test_the_interval_is_that_of_groups_not_of_windows():
    rng = np.random.default_rng(0)
    domain, group, _ = _windows(rng, domains=2, groups=8, each=50)
    right = np.array([float(name[-1] in "0246") for name in group])  # whole patients right or wrong
    by_group = balanced_accuracy(right, domain, group)
    by_window = balanced_accuracy(right, domain, np.arange(len(group)).astype(str))
    assert by_group.high - by_group.low > 5 * (by_window.high - by_window.low)


def test_a_probe_needs_two_groups_in_each_domain():
    domain, group = np.array([0, 0, 1, 1]), np.array(["a", "b", "c", "c"])
    with pytest.raises(ValueError, match="two groups"):
        probe(np.zeros((4, 1, 2)), domain, group)


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_a_distance_grows_with_accuracy_from_0_to_2(a, b):
    assert 0 <= a_distance(a) <= 2
    assert a > b or a_distance(a) <= a_distance(b)
    assert (a_distance(0.5), a_distance(0.75), a_distance(1.0)) == (0, 1, 2)


# --- MMD


def test_the_kernel_is_rbf_of_the_median_distance():
    x = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])  # standardised: the corners of [-1, 1]^2
    kernel = rbf_kernel(x)
    assert kernel[0, 1] == pytest.approx(np.exp(-4 / (2 * 4)))  # four sides of 2, two diagonals: the median is 2
    assert kernel[0, 3] == pytest.approx(np.exp(-8 / (2 * 4)))
    assert np.diag(kernel) == pytest.approx(np.ones(4))


def test_the_estimate_is_grettons():
    rng = np.random.default_rng(0)
    kernel = rbf_kernel(rng.normal(size=(7, 3)))
    second = np.array([0, 1, 0, 1, 1, 0, 1], bool)
    x, y = np.flatnonzero(~second), np.flatnonzero(second)
    expected = np.mean([kernel[i, j] for i in x for j in x if i != j])
    expected += np.mean([kernel[i, j] for i in y for j in y if i != j])
    expected -= 2 * np.mean([kernel[i, j] for i in x for j in y])
    assert squared_mmd(kernel, np.stack([second, ~second])) == pytest.approx([expected, expected])
    alone = group_discrepancy(rng.normal(size=(7, 1, 3)), second, np.arange(7).astype(str))
    assert alone.smallest_p == pytest.approx(1 / 35), "seven groups, four of them in the second domain"


@pytest.mark.parametrize("patients", [False, True])
def test_mmd_of_equal_distributions_is_zero_and_its_p_uniform(patients):
    """Also where windows of a patient resemble each other, which a test between windows takes for a difference."""
    found, of_windows = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        domain, group, vectors = _windows(rng, domains=2, groups=6, each=5)
        if patients:
            vectors += _of_patients(rng, group, vectors.shape[1:], strength=2.0)
        found.append(group_discrepancy(vectors, domain > 0, group))
        if seed < 5:
            of_windows.append(group_discrepancy(vectors, domain > 0, np.arange(len(group)).astype(str)).p)
    mmd2 = np.array([f.mmd2 for f in found])
    assert abs(mmd2.mean()) < 3 * mmd2.std() / np.sqrt(len(mmd2)), "unbiased"
    p = np.array([f.p for f in found])
    assert 0.35 < p.mean() < 0.65 and (p < 0.1).mean() < 0.25
    assert (max(of_windows) < 0.01) == patients


@pytest.mark.parametrize("groups, smallest", [(4, 2 / 70), (12, 1 / 2001)])
def test_mmd_of_separate_distributions_is_large(groups, smallest):
    domain, group, vectors = _windows(np.random.default_rng(0), domains=2, groups=groups)
    vectors[domain == 1] += 5
    found = group_discrepancy(vectors, domain > 0, group)
    assert found.mmd2 > 0.5 and found.p == found.smallest_p == pytest.approx(smallest)


# --- verdict


def _accuracy(mean, width, seed=0):
    draws = mean + width * np.random.default_rng(seed).normal(size=2000)
    low, high = np.percentile(draws, [2.5, 97.5])
    return Accuracy(mean, low, high, draws)


@pytest.mark.parametrize(
    "frozen, aligned, outcome, words",
    [
        ((0.97, 0.01), (0.95, 0.02), "not_aligned", "as easy to tell apart as the frozen ones.*.95.*.97.*chance .25"),
        ((0.80, 0.01), (0.95, 0.01), "not_aligned", "even easier"),
        ((0.97, 0.01), (0.27, 0.03), "aligned", "no longer"),
        ((0.97, 0.01), (0.32, 0.02), "aligned", "barely"),
        ((0.97, 0.01), (0.60, 0.03), "partly_aligned", "49 % .* is left.*in part"),
        ((0.97, 0.002), (0.94, 0.005), "hardly_aligned", "hardly aligned"),
        ((0.27, 0.02), (0.26, 0.02), "nothing_to_align", "nothing to align"),
        ((0.45, 0.25), (0.30, 0.25), "undetermined", "Too few patients or fields to tell whether"),
        ((0.90, 0.03), (0.70, 0.20), "undetermined", "Too few patients or fields to tell whether"),
        ((0.97, 0.01), (0.55, 0.19), "undetermined", "to tell by how much"),
    ],
)
def test_the_verdict_follows_the_intervals(frozen, aligned, outcome, words):
    verdict = judge(_accuracy(*frozen), _accuracy(*aligned, seed=1), chance=0.25)
    assert verdict.outcome == outcome, verdict.sentence
    assert re.search(words, verdict.sentence)


def _samples(rng, frozen_shift, aligned_shift, groups=10):
    domain, group, frozen = _windows(rng, groups=groups)
    aligned = rng.normal(size=frozen.shape)
    for vectors, shift in ((frozen, frozen_shift), (aligned, aligned_shift)):
        for d in range(3):
            vectors[domain == d, :, d] += shift
    return WindowSamples(frozen, aligned, rng.normal(size=(len(domain), 6)), domain, group)


def test_measured_features_give_the_verdict():
    rng = np.random.default_rng(3)
    not_aligned = measure(_samples(rng, 8, 8), NAMES)
    assert not_aligned["verdict"]["outcome"] == "not_aligned"
    assert not_aligned["overall"]["aligned"]["accuracy"] == 1 and not_aligned["chance"] == pytest.approx(1 / 3)
    assert not_aligned["overall"]["aligned"]["a_distance"] == 2
    aligned = measure(_samples(rng, 8, 0), NAMES)
    assert aligned["verdict"]["outcome"] == "aligned"
    pair = aligned["pairs"]["theirs"]
    assert pair["frozen"]["mmd_p"] == pair["frozen"]["mmd_smallest_p"] < 0.01 < pair["aligned"]["mmd_p"]
    assert pair["frozen"]["a_distance"] == 2 and pair["aligned"]["a_distance"] < 1
    shortcut = aligned["overall"]["image_statistics"]["all"]
    assert shortcut["low"] < 1 / 3 + 0.05 and shortcut["accuracy"] < 0.5


def test_a_shortcut_is_found_where_it_is():
    samples = _samples(np.random.default_rng(0), 0, 0)
    samples.statistics[:, 1] += 10 * samples.domain  # the size of nuclei
    found = measure(samples, NAMES)["overall"]["image_statistics"]
    assert found["scale_and_density"]["accuracy"] > 0.95 and found["all"]["accuracy"] > 0.9
    assert found["colour"]["accuracy"] < 0.5


def test_a_domain_of_too_few_patients_is_left_out_and_named():
    rng = np.random.default_rng(0)
    samples = _samples(rng, 8, 8)
    few = ~((samples.domain == 2) & (samples.group > "others/1"))
    fewer = WindowSamples(*(getattr(samples, f)[few] for f in ("frozen", "aligned", "statistics", "domain", "group")))
    found = measure(fewer, NAMES)
    assert list(found["pairs"]) == ["theirs"] and found["chance"] == 0.5
    assert "others: 2 patients or fields with nuclei, of 3 needed" in found["verdict"]["sentence"]
    assert "overall" not in measure(fewer.of([0, 2]), NAMES)
    without_primary = measure(samples.of([1, 2]), NAMES)
    assert without_primary["verdict"]["outcome"] == "undetermined"
    assert (
        without_primary["verdict"]["sentence"].startswith("Too little data") and "mine" in without_primary["left_out"]
    )


def test_principal_components_are_those_of_the_standardised_features():
    vectors = np.random.default_rng(0).normal(size=(30, 2, 4))
    vectors[:, 0, 0] = 1000 * vectors[:, 1, 3]  # two channels of very different scale say the same
    points, shares = principal_components(vectors)
    assert abs(np.corrcoef(points[:, 0], vectors[:, 1, 3])[0, 1]) > 0.75
    flat = vectors.reshape(30, -1)
    values = np.linalg.eigvalsh(np.corrcoef(flat.T))[::-1]
    assert shares == pytest.approx(values[:2] / values.sum())


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
    network = AMASAM(encoder, HRDecoder(encoder.channels, encoder.strides, size="light")).eval()
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


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    return ensure_dataset(tmp_path_factory.mktemp("data") / "synthetic")


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


# --- the verb


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return tiny_encoder(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def model(encoder, tmp_path_factory):
    """A model file with a random decoder."""
    torch.manual_seed(2)
    network = AMASAM(encoder[0], HRDecoder(encoder[0].channels, encoder[0].strides, size="light"))
    path = tmp_path_factory.mktemp("model") / "model.pt"
    save_model(path, network, {"network": {"backbone": "vit_test", "decoder_size": "light"}})
    return path


@pytest.fixture(scope="module")
def align(bundle_root, synthetic, model):
    def align(output, **overrides):
        arguments = {"dataset_dir": synthetic, "ckpt_path": str(model), "backbone": "vit_test", **overrides}
        arguments = {"decoder_size": "light", "window_size": 64, "windows_per_domain": 16, **arguments}
        open_verb(bundle_root, "align", "infer", output_dir=str(output), **arguments).run()
        return json.loads((output / "alignment.json").read_text())

    return align


def test_the_verb_reports_on_all_domains(align, tmp_path, capsys):
    report = align(tmp_path)
    assert all((tmp_path / name).stat().st_size > 0 for name in (*FILES, "align.json"))
    assert list(report["domains"]) == ["synthetic_pink", "synthetic_blurred", "synthetic_dark"]
    assert list(report["pairs"]) == ["synthetic_blurred", "synthetic_dark"]
    for about in report["domains"].values():
        assert (about["groups"], about["images"], about["windows"]) == (4, 7, 16)
        assert about["splits"] == ["testing", "validation"]
        mpp = 0.4 if about is report["domains"]["synthetic_blurred"] else 0.25
        assert about["nuclei_per_mm2"] == pytest.approx(about["nuclei_per_megapixel"] / mpp**2)
    areas = [about["nucleus_area_px"] for about in report["domains"].values()]
    assert areas[1] < areas[0] < areas[2], "as they are drawn"
    for row in (report["overall"], *report["pairs"].values()):
        for kind in ("frozen", "aligned"):
            assert 0 <= row[kind]["low"] <= row[kind]["accuracy"] <= row[kind]["high"] <= 1
    # the three differ in stain and size of nuclei by construction: anything sees that
    assert report["overall"]["image_statistics"]["all"]["accuracy"] > 0.9
    assert report["overall"]["frozen"]["low"] > 1 / 3
    sentence = report["verdict"]["sentence"]
    assert sentence in (tmp_path / "alignment.md").read_text() and sentence in capsys.readouterr().out
    assert json.loads((tmp_path / "align.json").read_text())["window_size"] == 64


def test_the_verb_is_filed_in_mlflow_and_repeats_exactly(align, tmp_path):
    report = align(tmp_path)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlruns.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("ama_sam_alignment").experiment_id])
    assert run.info.status == "FINISHED" and run.data.tags["verb"] == "aligning"
    assert run.data.params["window_size"] == "64" and run.data.params["ckpt_path"].endswith("model.pt")
    assert run.data.metrics["alignment_accuracy_aligned"] == report["overall"]["aligned"]["accuracy"]
    pair = report["pairs"]["synthetic_dark"]["frozen"]
    assert run.data.metrics["alignment_mmd2_frozen_synthetic_dark"] == pytest.approx(pair["mmd2"])
    assert {a.path for a in client.list_artifacts(run.info.run_id)} == {*FILES, "align.json"}
    assert align(tmp_path) == report


def test_training_images_and_windows_of_unequal_size_are_told(align, synthetic, tmp_path):
    from PIL import Image

    folder = tmp_path / "data" / "small"
    shutil.copytree(f"{synthetic}/synthetic_dark", folder)
    shutil.copytree(f"{synthetic}/synthetic_pink", tmp_path / "data" / "pink")
    for path in (*folder.glob("images/*"), *folder.glob("labels/*")):
        Image.open(path).crop((0, 0, 60, 250)).save(path)
    split = json.loads((folder / "split.json").read_text())
    (folder / "split.json").write_text(json.dumps({"training": split["training"]}))
    align(tmp_path / "out", dataset_dir=str(tmp_path / "data"), primary="pink")
    text = (tmp_path / "out" / "alignment.md").read_text()
    assert "`small` has no image in the splits asked for" in text and "`pink` has no" not in text
    assert "differ in size (64 x 32, 64 x 64 px)" in text


def test_too_few_patients_are_said_in_the_report(align, tmp_path):
    report = align(tmp_path, splits=["testing"])
    assert report["verdict"]["outcome"] == "undetermined" and "overall" not in report
    assert "synthetic_pink: 2 patients or fields" in (tmp_path / "alignment.md").read_text()
    assert (tmp_path / "alignment.png").is_file()


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"ckpt_path": "nowhere/model.pt"}, "nowhere/model.pt: there is no such model file. .*--ckpt_path"),
        ({"auxiliary": "none"}, "synthetic_pink: it is the only domain.*--auxiliary"),
        ({"decoder_size": "standard"}, "--decoder_size light"),
        ({"splits": "test"}, "split must be one of"),
        ({"window_size": 100}, "multiple of 32"),
        ({"window_per_domain": 4}, "did you mean 'windows_per_domain'"),
    ],
)
def test_settings_that_cannot_work_are_told(align, tmp_path, overrides, message):
    with pytest.raises(Exception) as told:  # noqa: B017 which class MONAI wraps it in does not matter
        align(tmp_path, **overrides)
    assert re.search(message, str(root_cause(told.value)))
    assert not (tmp_path / "alignment.json").exists()


def test_the_config_builds_the_network_of_the_others_and_has_nothing_dead(bundle_root):
    configs = [ConfigParser.load_config_file(bundle_root / "configs" / f"{c}.json") for c in ("evaluate", "align")]
    for key in ("network_def", "network", "domains", "backbone", "decoder_size", "aligned_stride", "target_mpp"):
        assert configs[0][key] == configs[1][key], key
    parser = ConfigParser(configs[1])
    parser.resolve_macro_and_relative_ids()
    assert unknown_keys(parser.get(), {}) == sorted(["imports", "initialize", "run", "aligning", "describing_domains"])


# --- at the end of a training


@pytest.fixture(scope="module")
def open_training(bundle_root, synthetic, encoder):
    tiny = {"backbone": "vit_test", "decoder_size": "light", "crop_size": 64, "window_size": 128, "cache_variants": 1}
    tiny |= {"batch_size": 4, "batches_per_epoch": 2, "val_interval": 1, "tile_size": 256, "max_epochs": 2}

    def open_training(output, **overrides):
        arguments = {"dataset_dir": synthetic, "backbone_weights": str(encoder[1]), **tiny, **overrides}
        return open_verb(bundle_root, "train", "train", output_dir=str(output), **arguments)

    return open_training


def test_a_training_ends_with_the_report_of_the_weights_it_keeps(open_training, align, tmp_path):
    workflow = open_training(tmp_path)
    trainer = workflow.parser.get_parsed_content("train::trainer")
    decoder = workflow.parser.get_parsed_content("network").decoder

    @trainer.on(Events.EPOCH_STARTED(once=2))
    def spoil(engine):  # so that the first epoch stays the best, and the last weights are others
        with torch.no_grad():
            for parameter in decoder.parameters():
                parameter.mul_(-3.0)
            decoder.head.weight.zero_()
            decoder.head.bias.fill_(-50.0)  # finds nothing

    workflow.run()
    run_dir = tmp_path / "synthetic_pink_ama_seed0"
    assert read_model_file(run_dir / "model.pt")["provenance"]["epoch"] == 1
    report = json.loads((run_dir / "alignment.json").read_text())
    again = align(tmp_path / "again", ckpt_path=str(run_dir / "model.pt"), windows_per_domain=40)
    for kind in ("frozen", "aligned"):
        assert report["overall"][kind] == again["overall"][kind]
    assert report["domains"] == again["domains"]
    checkpoint = torch.load(run_dir / "checkpoint.pt", weights_only=True)["parts"]["decoder"]
    assert all(torch.equal(value, checkpoint[name]) for name, value in decoder.state_dict().items()), "last ones back"

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlruns.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("ama_sam").experiment_id])
    assert run.info.status == "FINISHED" and {a.path for a in client.list_artifacts(run.info.run_id)} >= {*FILES}
    assert run.data.metrics["alignment_accuracy_aligned"] == report["overall"]["aligned"]["accuracy"]
    history = client.get_metric_history(run.info.run_id, "val_dice")
    assert [point.step for point in history] == [1, 2], "and nothing twice"


def test_without_validation_the_report_is_of_the_last_weights(open_training, synthetic, align, tmp_path):
    shutil.copytree(synthetic, tmp_path / "data")
    split_file = tmp_path / "data" / "synthetic_pink" / "split.json"
    split = json.loads(split_file.read_text())
    split_file.write_text(
        json.dumps({"training": split["training"], "testing": split["testing"] + split["validation"]})
    )
    open_training(tmp_path, dataset_dir=str(tmp_path / "data")).run()
    run_dir = tmp_path / "synthetic_pink_ama_seed0"
    report = json.loads((run_dir / "alignment.json").read_text())
    again = align(
        tmp_path / "again",
        dataset_dir=str(tmp_path / "data"),
        ckpt_path=str(run_dir / "model.pt"),
        windows_per_domain=40,
    )
    assert report["overall"]["aligned"] == again["overall"]["aligned"]


@pytest.mark.parametrize("overrides", [{"alignment_report": False}, {"alignment_report": "false"}, {"mode": "single"}])
def test_the_report_can_be_left_out_and_needs_two_domains(open_training, tmp_path, overrides):
    open_training(tmp_path, max_epochs=1, **overrides).run()
    (run_dir,) = tmp_path.glob("synthetic_pink_*_seed0")
    assert (run_dir / "model.pt").is_file() and not list(run_dir.glob("alignment*"))


@pytest.mark.parametrize("problem", ["few", "broken", "missing"])
def test_a_report_that_cannot_be_made_never_costs_the_training(open_training, synthetic, tmp_path, caplog, problem):
    shutil.copytree(synthetic, tmp_path / "data")
    folder = tmp_path / "data" / "synthetic_pink"
    split = json.loads((folder / "split.json").read_text())
    image = folder / split["testing"][0]["image"]
    if problem == "few":
        (folder / "split.json").write_text(json.dumps({**split, "validation": split["validation"][:1], "testing": []}))
    elif problem == "broken":
        image.write_bytes(image.read_bytes()[:200])
    else:
        image.unlink()
    open_training(tmp_path, dataset_dir=str(tmp_path / "data"), max_epochs=1).run()
    run_dir = tmp_path / "synthetic_pink_ama_seed0"
    assert (run_dir / "model.pt").is_file()
    with (run_dir / "history.csv").open(newline="") as f:
        assert len(list(csv.DictReader(f))) == 1
    if problem == "broken":
        assert f"no report at the end of training: {image}" in caplog.text
        assert not (run_dir / "alignment.json").exists()
    else:
        verdict = json.loads((run_dir / "alignment.json").read_text())["verdict"]
        assert verdict["outcome"] == "undetermined" and "synthetic_pink" in verdict["sentence"]
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlruns.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("ama_sam").experiment_id])
    assert run.info.status == "FINISHED"
