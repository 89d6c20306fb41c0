from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scripts.data.domain_folders import domain_list
from scripts.data.domains import domain_names, load_items
from scripts.data.readers import read_image, read_label
from scripts.data.synthetic import make_synthetic
from scripts.errors import DataError
from skimage.color import rgb2hed

SMALL = {"training": 2, "validation": 1, "testing": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make_synthetic(tmp_path_factory.mktemp("data") / "synthetic", SMALL)


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_same_seed_same_bytes(made, tmp_path):
    assert contents(make_synthetic(tmp_path / "a", SMALL)) == contents(made)
    other = contents(make_synthetic(tmp_path / "b", SMALL, seed=1))
    assert set(other) == set(contents(made))
    assert not any(other[name] == content for name, content in contents(made).items() if name.endswith(".png"))


def test_the_domain_list_finds_it(made):
    domains = domain_list(made)
    assert len(domains) == 3 and all(name.startswith("synthetic_") for name in domain_names(domains))
    for part, count in SMALL.items():
        assert [item["domain"] for item in load_items(domains, part)] == [0] * count + [1] * count + [2] * count
    groups = [{item["group"] for item in load_items(domains, part)} for part in SMALL]
    assert not groups[0] & groups[1] and not groups[1] & groups[2], "no patient is in two parts"
    assert all(item["mpp"] > 0 for item in load_items(domains, "training"))


def test_it_says_that_it_is_synthetic(made):
    for path in (made / "domains.json", *made.glob("*/dataset.json")):
        about = json.loads(path.read_text())
        assert about["synthetic"] is True and "ynthetic" in about["note"]
    for path in made.rglob("*.png"):
        assert path.name.startswith("synthetic_")


def test_labels_lie_on_the_dark_haematoxylin_stained_nuclei(made):
    for item in load_items(domain_list(made), "training"):
        image, label = read_image(item["image"]), read_label(item["label"])
        assert image.shape == (256, 256, 3) and label.shape == (256, 256)
        assert label.max() >= 20 and 0.08 < (label > 0).mean() < 0.5
        haematoxylin = rgb2hed(image)[..., 0]
        assert haematoxylin[label > 0].mean() > 1.5 * haematoxylin[label == 0].mean()
        areas = np.bincount(label.ravel())[1:]
        assert areas.min() >= 25, "no fragments"


def test_some_nuclei_touch(made):
    label = read_label(load_items(domain_list(made), "training")[0]["label"])
    components = ndimage.label(label > 0, structure=np.ones((3, 3)))[1]
    assert components < label.max(), "touching nuclei are what instance separation is tested on"


def test_domains_differ_in_colour_and_size(made):
    colour, size = {}, {}
    for item in load_items(domain_list(made), "training"):
        label, name = read_label(item["label"]), item["domain_name"].removeprefix("synthetic_")
        colour.setdefault(name, []).append(read_image(item["image"]).mean())
        size.setdefault(name, []).append((label > 0).sum() / label.max())
    assert np.mean(colour["dark"]) + 10 < np.mean(colour["pink"]) < np.mean(colour["blurred"]) - 3
    assert np.mean(size["dark"]) > 1.2 * np.mean(size["pink"]) > 1.5 * np.mean(size["blurred"])


def test_a_whole_folder_is_left_alone_and_nothing_half_made_remains(made, tmp_path, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    make_synthetic(made, SMALL, seed=5)
    assert before == {path: path.stat().st_mtime_ns for path in made.rglob("*")}

    calls = []

    def stop(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args)

    from scripts.data import synthetic

    original = synthetic.synthetic_tile
    monkeypatch.setattr(synthetic, "synthetic_tile", stop)
    with pytest.raises(KeyboardInterrupt):
        make_synthetic(tmp_path / "x", SMALL)
    assert list(tmp_path.iterdir()) == []


def test_another_process_may_be_faster(made, tmp_path, monkeypatch):
    from scripts.data import synthetic

    root = tmp_path / "x"

    def rename(source, target):
        monkeypatch.undo()
        make_synthetic(root, SMALL, seed=3)  # by the other process
        original(source, target)

    original = synthetic.os.rename
    monkeypatch.setattr(synthetic.os, "rename", rename)
    make_synthetic(root, SMALL)
    assert json.loads((root / "domains.json").read_text())["seed"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_other_content_is_never_overwritten(tmp_path):
    (tmp_path / "synthetic").mkdir()
    (tmp_path / "synthetic" / "precious.txt").write_text("mine")
    with pytest.raises(DataError, match="no synthetic data"):
        make_synthetic(tmp_path / "synthetic")
    assert (tmp_path / "synthetic" / "precious.txt").read_text() == "mine"
