"""Every published layout, written small by layouts.py, is prepared and read back as a domain."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import archives
import numpy as np
import pytest
from archives import known_sample, same_nuclei, save
from layouts import WRITERS, write_conic, write_monuseg, write_nuinsseg
from scripts.data.domain_folders import domain_list
from scripts.data.domains import load_items
from scripts.data.readers import read_image, read_label
from scripts.errors import DataError
from scripts.preparing.formats.coco import decode_counts
from scripts.preparing.formats.mask_per_nucleus import decode_runs
from scripts.preparing.layouts import compile_pattern
from scripts.preparing.prepare import prepare
from scripts.preparing.registry import load_datasets
from scripts.preparing.stains import group_by_borders, stain_of


@pytest.mark.parametrize("dataset, write", WRITERS, ids=[write.__name__[6:] for _, write in WRITERS])
def test_a_published_layout_becomes_domains(datasets, tmp_path, dataset, write):
    source, output = tmp_path / "source", tmp_path / "domains"
    source.mkdir()
    known, splits = write(source)
    told = prepare(datasets, dataset, output, source, workers=1)
    assert sum(about["images"] for about in told.values()) == len(known)
    for (domain, name), (image, label, *_) in known.items():
        folder = output / domain
        np.testing.assert_array_equal(read_image(folder / "images" / f"{name}.png"), image)
        assert same_nuclei(read_label(folder / "labels" / f"{name}.png"), label), name
    parts = {}
    for domain, about in told.items():
        assert about == json.loads((output / domain / "dataset.json").read_text())
        assert about["nuclei"] == sum(label.max() for (d, _), (_, label, *_) in known.items() if d == domain)
        assert {"license", "citation", "commercial_use", "mpp"} <= set(about)
        assert (output / domain / "contact_sheet.png").is_file()
        listed = json.loads((output / domain / "split.json").read_text())
        parts |= {Path(entry["image"]).stem: part for part, entries in listed.items() for entry in entries}
    for name, split in splits.items():
        assert split is None or parts[name] == split
    assert sorted(parts) == sorted(name for _, name in known)
    domains = domain_list(output, sorted(told)[0])
    assert len(load_items(domains, "training")) == sum(about["splits"]["training"]["images"] for about in told.values())


def test_groups_stay_together_and_tell_the_patient(datasets, tmp_path):
    for dataset, write in (("monuseg", write_monuseg), ("conic", write_conic), ("nuinsseg", write_nuinsseg)):
        source = tmp_path / dataset
        source.mkdir()
        write(source)
        prepare(datasets, dataset, tmp_path / "domains", source, workers=1)
    listed = json.loads((tmp_path / "domains" / "monuseg" / "split.json").read_text())
    assert {e["patient"] for part in listed.values() for e in part} >= {"TCGA-A7-A13E", "TCGA-2Z-A9J9"}
    assert all(entry["mpp"] == 0.252 for part in listed.values() for entry in part)
    for dataset in ("conic", "nuinsseg"):
        listed = json.loads((tmp_path / "domains" / dataset / "split.json").read_text())
        groups = [{entry["group"] for entry in part} for part in listed.values()]
        assert sum(map(len, groups)) == len(set.union(*groups)), "no group is in two splits"


def test_a_zip_file_and_a_folder_of_zip_files_are_sources_too(datasets, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    known, _ = write_monuseg(source)
    (tmp_path / "zips").mkdir()
    for part in source.iterdir():
        with zipfile.ZipFile(tmp_path / "zips" / f"{part.name}.zip", "w") as archive:
            for path in sorted(part.rglob("*.*")):
                archive.write(path, path.relative_to(source))
    for where in ("zips", "zips/MoNuSegTestData.zip"):
        output = tmp_path / f"out{len(where)}"
        (about,) = prepare(datasets, "monuseg", output, tmp_path / where, workers=1).values()
        assert about["images"] == (4 if where == "zips" else 1)
        assert all(len(value) == 64 for value in about["source"]["archives"].values())
        for path in (output / "monuseg" / "labels").iterdir():
            assert same_nuclei(read_label(path), known["monuseg", path.stem][1])
        assert not (output / ".preparing" / "monuseg" / "sources").exists(), "what was unpacked is removed"


def test_a_new_set_is_one_entry(bundle_root, tmp_path):
    image, label, _ = known_sample()
    for name in "ab":
        save(tmp_path / "mine" / "pictures" / f"{name}_he.tif", image if name == "a" else image[::-1].copy())
        save(tmp_path / "mine" / "maps" / f"{name}.png", (label if name == "a" else label[::-1]).astype(np.uint16))
    part = {"images": "pictures/{name}_he.tif", "labels": "maps/{name}.png", "format": "map"}
    datasets = load_datasets(bundle_root / "configs" / "datasets.json", {"mine": {"parts": [part], "mpp": 0.5}})
    (about,) = prepare(datasets, "mine", tmp_path / "out", tmp_path / "mine", workers=1).values()
    assert about["images"] == 2 and about["mpp"] == 0.5
    with pytest.raises(DataError, match="unknown key 'part'"):
        load_datasets(bundle_root / "configs" / "datasets.json", {"mine": {"part": [part]}})
    with pytest.raises(DataError, match="unknown key 'image'"):
        load_datasets(bundle_root / "configs" / "datasets.json", {"mine": {"parts": [{"image": ""}]}})
    with pytest.raises(DataError, match="dataset: no data set is chosen. There are asap, "):
        prepare(datasets, None, tmp_path / "out", tmp_path)
    with pytest.raises(DataError, match="Did you mean 'monuseg'"):
        prepare(datasets, "monuseq", tmp_path / "out", tmp_path)


@pytest.mark.parametrize(
    "pattern, name, fields",
    [
        ("**/Slide_{patient}/{name}.png", "TNBC/Slide_01/01_1.PNG", {"patient": "01", "name": "01_1"}),
        ("**/{name}/images/{name}.png", "x/ab/images/ab.png", {"name": "ab"}),
        ("**/{name}/images/{name}.png", "x/ab/images/cd.png", None),
        ("{name:image0[1-7]}.png", "image08.png", None),
        ("**/*.{suffix:png|tif}", "a/b/c.tif", {"suffix": "tif"}),
        ("{name:x{2,3}}.png", "xxx.png", {"name": "xxx"}),
        ("Tissue?Images/*.tif", "Tissue_Images/a/b.tif", None),
    ],
)
def test_patterns(pattern, name, fields):
    match = compile_pattern(pattern).fullmatch(name)
    assert (match and match.groupdict()) == fields


def test_run_lengths():
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = rng.random((9, 7)) < 0.5
        np.testing.assert_array_equal(decode_runs(archives.runs_down_columns(mask), mask.shape), mask)
        counts = archives.coco_counts(mask)
        counts = counts if not mask[0, 0] else [0, *counts[1:]] if counts[0] == 0 else [0, *counts]
        np.testing.assert_array_equal(decode_counts(counts, mask.shape), mask)
        np.testing.assert_array_equal(decode_counts(archives.coco_text(counts), mask.shape), mask)
    for runs in ([1], [0, 2], [60, 9]):
        with pytest.raises(ValueError):
            decode_runs(runs, (9, 7))
    with pytest.raises(ValueError, match="do not fill"):
        decode_counts([3, 4], (9, 7))
    # what pycocotools writes for a 4x4 mask whose middle 2x2 is set
    middle = np.pad(np.ones((2, 2), bool), 1)
    np.testing.assert_array_equal(decode_counts(archives.coco_text([5, 2, 2, 2, 5]), (4, 4)), middle)


# --- against the real sets


@pytest.mark.slow
def test_real_tnbc(datasets, real_data, tmp_path):
    for path in sorted((real_data / "tnbc" / "images").iterdir()):
        patient = path.stem[:2]
        save(tmp_path / "in" / f"Slide_{patient}" / path.name, archives.rgba(read_image(path)))
        mask = (read_label(real_data / "tnbc" / "labels" / path.name) > 0) * 255
        save(tmp_path / "in" / f"GT_{patient}" / path.name, mask.astype(np.uint8))
    (about,) = prepare(datasets, "tnbc", tmp_path / "out", tmp_path / "in", workers=2).values()
    _agrees(about, real_data, "tnbc", tmp_path / "out")
    split, real = (json.loads((d / "tnbc" / "split.json").read_text()) for d in (tmp_path / "out", real_data))
    for part in real:
        assert {entry["image"] for entry in split[part]} == {entry["image"] for entry in real[part]}


@pytest.mark.slow
def test_real_monuseg(datasets, real_data, tmp_path):
    """Outlines of the real nuclei as polygons, in the published files, give the real nuclei back."""
    real = json.loads((real_data / "monuseg" / "split.json").read_text())
    paths = [real_data / "monuseg" / entry["image"] for part in real.values() for entry in part[:3]]
    tests = {Path(entry["image"]).stem for entry in real["testing"]}
    for path in paths:
        label = read_label(real_data / "monuseg" / "labels" / path.name)
        compact = np.searchsorted(np.unique(label), label)
        rings = [ring - 0.5 for ring in _largest_rings(compact)]
        folder = tmp_path / "in" / ("MoNuSegTestData" if path.stem in tests else "MoNuSegTrainingData")
        plain = path.stem in tests
        save((folder if plain else folder / "Tissue Images") / f"{path.stem}.tif", read_image(path))
        archives.aperio((folder if plain else folder / "Annotations") / f"{path.stem}.xml", rings)
    (about,) = prepare(datasets, "monuseg", tmp_path / "out", tmp_path / "in", workers=2).values()
    assert about["splits"]["testing"]["images"] == 3 and "labels shifted" not in about["problems"]
    for path in paths:
        ours, theirs = (read_label(d / "monuseg" / "labels" / path.name) for d in (tmp_path / "out", real_data))
        assert len(np.unique(ours)) == len(np.unique(theirs)), path.name
        assert (ours > 0).sum() == pytest.approx((theirs > 0).sum(), rel=0.003)
        assert ((ours > 0) != (theirs > 0)).mean() < 0.002


@pytest.mark.slow
@pytest.mark.parametrize("stain", ["purple", "white", "fluo"])
def test_real_dsb2018(datasets, real_data, tmp_path, stain):
    real = json.loads((real_data / f"dsb2018_{stain}" / "split.json").read_text())
    fields = {}
    for entry in (entry for part in real.values() for entry in part):
        name = Path(entry["image"]).stem
        fields[name] = entry["field"]
        folder = tmp_path / "in" / "stage1_train" / name
        save(
            folder / "images" / f"{name}.png",
            archives.rgba(read_image(real_data / f"dsb2018_{stain}" / entry["image"])),
        )
        label = read_label(real_data / f"dsb2018_{stain}" / entry["label"])
        for i in np.unique(label)[1:]:
            save(folder / "masks" / f"{i:064x}.png", ((label == i) * 255).astype(np.uint8))
    told = prepare(datasets, "dsb2018", tmp_path / "out", tmp_path / "in", workers=2)
    assert list(told) == [f"dsb2018_{stain}"], "every image is of the stain that the shared folder says"
    _agrees(told[f"dsb2018_{stain}"], real_data, f"dsb2018_{stain}", tmp_path / "out")
    ours = json.loads((tmp_path / "out" / f"dsb2018_{stain}" / "split.json").read_text())
    found = {Path(entry["image"]).stem: entry["field"] for part in ours.values() for entry in part}
    wrong = sum(len({fields[n] for n in fields if found[n] == f}) > 1 for f in set(found.values()))
    assert stain == "fluo" or wrong == 0, "tiles of different fields are not joined"
    if stain != "fluo":  # dark borders cannot be matched
        assert len(set(found.values())) <= 1.5 * len(set(fields.values()))


def _agrees(about, real_data, name, output):
    sets = {entry["name"]: entry for entry in json.loads((real_data / "datasets.json").read_text())["datasets"]}
    assert (about["images"], about["nuclei"]) == (sets[name]["images"], sets[name]["nuclei"])
    assert about["median_nucleus_area_px"] == sets[name]["median_nucleus_area_px"]
    assert about["mean_foreground_fraction"] == pytest.approx(sets[name]["mean_foreground_fraction"], abs=1e-3)
    for path in (real_data / name / "labels").iterdir():
        assert same_nuclei(read_label(output / name / "labels" / path.name), read_label(path)), path.name


def _largest_rings(label):
    """As corner_rings, of the largest piece of each nucleus."""
    from skimage.measure import find_contours, regionprops

    for region in regionprops(label):
        contours = find_contours(np.pad(region.image, 1), 0.5)
        contour = max(contours, key=len)
        yield contour[:, ::-1] - 1 + 0.5 + (region.bbox[1], region.bbox[0])


def test_stains_and_fields():
    field = archives.paint(np.zeros((200, 200), int), np.random.default_rng(0))
    ramp = np.linspace(0.5, 1, 200)
    field = (field * ramp[:, None, None] * ramp[None, :, None]).astype(np.uint8)
    other = archives.paint(np.zeros((100, 100), int), np.random.default_rng(1))
    tiles = [field[:100, :100], field[:100, 100:], field[100:, :100], other]
    groups = group_by_borders(tiles)
    assert groups[0] == groups[1] == groups[2] != groups[3]
    assert (
        stain_of(np.full((9, 9, 3), 10, np.uint8)) == "fluo" and stain_of(np.full((9, 9, 3), 220, np.uint8)) == "grey"
    )
