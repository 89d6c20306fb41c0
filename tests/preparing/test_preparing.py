"""Preparing as a whole: bad input is named, finished work is not done again, labels and images are checked."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys

import archives
import numpy as np
import pytest
from archives import known_sample, octagon_ring, same_nuclei, save
from fakes import open_verb
from PIL import Image
from scripts.data.readers import read_image, read_label
from scripts.errors import DataError
from scripts.owned import LIST
from scripts.preparing.label_shift import common_shift, label_shift
from scripts.preparing.prepare import prepare
from scripts.preparing.splitting import assign_splits, published_splits
from scripts.setup_run import unknown_keys

NAMES = [f"TCGA-{site}-{1000 + i}-01Z-00-DX1" for i, site in enumerate(["A7", "B0", "G9", "HE", "CH", "KB"])]


@pytest.fixture
def monuseg(tmp_path):
    folder = tmp_path / "MoNuSegTrainingData"
    for number, name in enumerate(NAMES):
        image, _, places = known_sample(number)
        save(folder / "Tissue Images" / f"{name}.tif", image)
        archives.aperio(folder / "Annotations" / f"{name}.xml", [octagon_ring(*place) for place in places])
    return folder


def rows(output, name="monuseg"):
    with (output / f"{name}_problems.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def prepared(datasets, source, output, code=None, **settings):
    """Prepare, expecting the process to end with an error if ``code`` is set; returns the table of problems."""
    settings = {"workers": 1, **settings}
    if code:
        with pytest.raises(SystemExit, match="could not be used"):
            prepare(datasets, "monuseg", output, source, **settings)
    else:
        prepare(datasets, "monuseg", output, source, **settings)
    return rows(output)


# --- bad input is named and counted, the rest is prepared


def test_files_without_partner_and_damaged_files_are_errors(datasets, monuseg, tmp_path):
    (monuseg / "Annotations" / f"{NAMES[0]}.xml").unlink()
    (monuseg / "Tissue Images" / f"{NAMES[1]}.tif").unlink()
    (monuseg / "Tissue Images" / f"{NAMES[2]}.tif").write_bytes(b"II*\0 no image")
    path = monuseg / "Annotations" / f"{NAMES[3]}.xml"
    path.write_text(path.read_text()[:300])
    table = prepared(datasets, monuseg, tmp_path / "out", code=1)
    errors = {(row["problem"], os.path.basename(row["image"])) for row in table if row["severity"] == "error"}
    assert errors == {
        ("annotation missing", f"{NAMES[0]}.tif"),
        ("image missing", f"{NAMES[1]}.xml"),
        ("cannot be read", NAMES[2]),
        ("cannot be read", NAMES[3]),
    }
    about = json.loads((tmp_path / "out" / "monuseg" / "dataset.json").read_text())
    assert about["images"] == 2, "the others are prepared"
    assert "number of images" in about["problems"], "fewer than were published"


def test_bad_polygons_are_named(datasets, monuseg, tmp_path):
    good = [octagon_ring(20, 20, 8), octagon_ring(50, 30, 6)]
    bad = [octagon_ring(500, 500, 8), octagon_ring(0, 60, 6), np.array([(70, 70), (90, 90), (90, 70), (70, 90)]),
           np.array([(5, 5), (5, 5)])]  # fmt: skip
    archives.aperio(monuseg / "Annotations" / f"{NAMES[0]}.xml", good + bad)
    table = [row for row in prepared(datasets, monuseg, tmp_path / "out") if row["image"] == NAMES[0]]
    found = {row["problem"]: row["where"] for row in table}
    assert found["polygon outside the image"] == "Region 3"
    assert found["polygon cut by the image border"] == "Region 4"
    assert found["self-crossing polygon"] == "Region 5"
    assert found["degenerate polygon"] == "Region 6"
    label = read_label(tmp_path / "out" / "monuseg" / "labels" / f"{NAMES[0]}.png")
    assert set(np.unique(label)) == {0, 1, 2, 4, 5}, "ids are the regions of the file"


def test_other_sizes_and_empty_labels(datasets, tmp_path):
    folder = tmp_path / "CoNSeP" / "Train"
    for number in range(4):
        image, label, _ = known_sample(number)
        label = label[:, :-1] if number == 0 else label * (number != 1)
        save(folder / "Images" / f"train_{number}.png", image)
        archives.hovernet_mat(folder / "Labels" / f"train_{number}.mat", label)
    with pytest.raises(SystemExit, match="1 files"):
        prepare(datasets, "consep", tmp_path / "out", tmp_path / "CoNSeP", workers=1)
    found = {(row["problem"], row["image"]) for row in rows(tmp_path / "out", "consep")}
    assert {("cannot be read", "train_0"), ("empty label", "train_1")} <= found
    (detail,) = [r["detail"] for r in rows(tmp_path / "out", "consep") if r["problem"] == "cannot be read"]
    assert "127x96" in detail and "128x96" in detail


def test_nuclei_that_share_an_id_are_told(datasets, tmp_path):
    for number in range(3):
        image, label, _ = known_sample(number)
        save(tmp_path / "in" / "tissue images" / f"{number}.tif", image)
        merged = np.where(label == 3, 1, label)  # as a file saved with too few bits
        folder = tmp_path / "in" / "Annotator 1 (biologist)" / "label masks modify"
        save(folder / f"{number}.tif", merged.astype(np.uint16))
    prepare(datasets, "cryonuseg", tmp_path / "out", tmp_path / "in", workers=1)
    assert sum(row["problem"] == "one id in several pieces" for row in rows(tmp_path / "out", "cryonuseg")) == 3


def test_nothing_of_the_layout(datasets, tmp_path):
    save(tmp_path / "in" / "a.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(DataError, match=r"Tissue\?Images.*a.png"):
        prepare(datasets, "monuseg", tmp_path / "out", tmp_path / "in")
    with pytest.raises(DataError, match="no such file"):
        prepare(datasets, "monuseg", tmp_path / "out", tmp_path / "nowhere")
    with pytest.raises(DataError, match="is not given.*grand-challenge"):
        prepare(datasets, "monuseg", tmp_path / "out")


def test_other_peoples_files_are_not_touched(datasets, monuseg, tmp_path):
    save(tmp_path / "out" / "monuseg" / "images" / "mine.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(DataError, match="was not prepared"):
        prepare(datasets, "monuseg", tmp_path / "out", monuseg, workers=1)
    prepare(datasets, "monuseg", tmp_path / "out", monuseg, name="monuseg2", workers=1)
    assert (tmp_path / "out" / "monuseg2" / "split.json").is_file()
    with pytest.raises(DataError, match="was not prepared"):
        prepare(datasets, "monuseg", tmp_path / "out", monuseg, workers=1)
    (tmp_path / "out" / "other_problems.csv").write_text("precious")
    with pytest.raises(DataError, match="other_problems.csv: it was not written by this bundle"):
        prepare(datasets, "monuseg", tmp_path / "out", monuseg, name="other", workers=1)
    assert not (tmp_path / "out" / "other").exists()


def test_other_peoples_files_are_not_touched_by_a_zip_either(datasets, monuseg, tmp_path):
    """It is unpacked first, and what that leaves is no proof that a folder is ours."""
    archive = shutil.make_archive(str(tmp_path / "monuseg"), "zip", monuseg.parent, monuseg.name)
    mine = save(tmp_path / "out" / "monuseg" / "images" / f"{NAMES[0]}.png", np.zeros((4, 4), np.uint8)).read_bytes()
    for _ in range(2):
        with pytest.raises(DataError, match="was not prepared"):
            prepare(datasets, "monuseg", tmp_path / "out", archive, workers=1)
    assert (tmp_path / "out" / "monuseg" / "images" / f"{NAMES[0]}.png").read_bytes() == mine


def test_a_domain_of_a_stain_is_not_written_into_other_peoples_files(datasets, monuseg, tmp_path):
    entry = {"stains": {**datasets["monuseg"], "domain_by": "stain"}}
    save(tmp_path / "out" / "stains_purple" / "images" / "mine.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(DataError, match="stains_purple: it exists, and was not prepared"):
        prepare(entry, "stains", tmp_path / "out", monuseg, workers=1)


@pytest.mark.parametrize("name", ["../mine", "a/b", "..", ".hidden"])
def test_a_name_that_leads_elsewhere_is_refused(datasets, monuseg, tmp_path, name):
    with pytest.raises(DataError, match="name: .* does not name a folder"):
        prepare(datasets, "monuseg", tmp_path / "out", monuseg, name=name, workers=1)
    assert not (tmp_path / "out").exists()


def test_domains_are_not_written_into_the_source(datasets, monuseg, tmp_path):
    for output in (monuseg, monuseg / "domains"):
        with pytest.raises(DataError, match="would be written into the source"):
            prepare(datasets, "monuseg", output, monuseg, workers=1)


def test_domains_of_the_version_before_are_prepared_again(datasets, monuseg, tmp_path):
    prepared(datasets, monuseg, tmp_path / "out")
    for path in (tmp_path / "out").rglob(LIST):
        path.unlink()
    prepared(datasets, monuseg, tmp_path / "out", mpp=0.3)
    assert json.loads((tmp_path / "out" / "monuseg" / "dataset.json").read_text())["mpp"] == 0.3


# --- again, and after an interruption


def test_a_second_run_changes_nothing_and_an_interrupted_one_goes_on(datasets, monuseg, tmp_path, monkeypatch):
    output = tmp_path / "out"
    prepared(datasets, monuseg, output)
    files = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in output.rglob("*") if path.is_file()}
    prepared(datasets, monuseg, output)
    assert files == {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in output.rglob("*") if p.is_file()}

    (output / ".preparing" / "monuseg" / "done.json").unlink()
    lost = output / "monuseg" / "labels" / f"{NAMES[0]}.png"
    lost.unlink()
    prepared(datasets, monuseg, output)
    again = {path: path.stat().st_mtime_ns for path in (output / "monuseg" / "images").iterdir()}
    kept = [path for path, time in again.items() if time == files[path][0]]
    assert len(kept) == len(NAMES) - 1 and lost.read_bytes() == files[lost][1]
    for name in ("split.json", "dataset.json"):
        assert (output / "monuseg" / name).read_bytes() == files[output / "monuseg" / name][1]

    # another source is another content
    image, _, places = known_sample(3)
    save(monuseg / "Tissue Images" / f"{NAMES[0]}.tif", image)
    archives.aperio(monuseg / "Annotations" / f"{NAMES[0]}.xml", [octagon_ring(*place) for place in places])
    prepared(datasets, monuseg, output)
    np.testing.assert_array_equal(read_image(output / "monuseg" / "images" / f"{NAMES[0]}.png"), image)


def test_workers_give_the_same_files(datasets, monuseg, tmp_path):
    for workers in (1, 2):
        prepared(datasets, monuseg, tmp_path / f"out{workers}", workers=workers)
    one, two = (
        {p.relative_to(tmp_path / f"out{n}"): p.read_bytes() for p in (tmp_path / f"out{n}" / "monuseg").rglob("*.*")}
        for n in (1, 2)
    )
    assert one == two


# --- verification


def test_a_shift_of_one_pixel_is_seen(datasets, tmp_path):
    for shift in (0, 1):
        source, output = tmp_path / f"in{shift}", tmp_path / f"out{shift}"
        for number, name in enumerate(NAMES):
            image, _, places = known_sample(number, (200, 200))
            places = [
                (row + dy, column + dx, radius) for row, column, radius in places for dy in (0, 95) for dx in (0, 60)
            ]
            label = np.zeros((200, 200), int)
            for place in places:
                label[archives.octagon(*place, label.shape)] = 1
            image = archives.paint(label, np.random.default_rng(number))
            save(source / "MoNuSegTrainingData" / "Tissue Images" / f"{name}.tif", image)
            rings = [octagon_ring(*place) + (shift, shift) for place in places]
            archives.aperio(source / "MoNuSegTrainingData" / "Annotations" / f"{name}.xml", rings)
        found = [row for row in prepared({"monuseg": datasets["monuseg"] | {"shift": [0, 0]}}, source, output)]
        assert ("labels shifted" in {row["problem"] for row in found}) == bool(shift)
    (row,) = [row for row in found if row["problem"] == "labels shifted"]
    assert "-0.9" in row["detail"] or "-1.0" in row["detail"]


@pytest.mark.slow
@pytest.mark.parametrize("name, usual", [("tnbc", (0, 0)), ("monuseg", (-0.4, -0.6)), ("dsb2018_white", (0, 0))])
def test_shifts_of_real_labels(real_data, name, usual):
    pairs = [(read_image(p), read_label(real_data / name / "labels" / p.name))
             for p in sorted((real_data / name / "images").iterdir())[:12]]  # fmt: skip
    for moved in ((0, 0), (1, 1), (-2, 1)):
        shifts = [label_shift(image, np.roll(label, moved, (0, 1))) for image, label in pairs]
        np.testing.assert_allclose(common_shift([s for s in shifts if s]), np.subtract(usual, moved), atol=0.4)


def test_duplicates_are_told_within_and_across_domains(datasets, monuseg, tmp_path, tmp_path_factory):
    copy = Image.fromarray(read_image(monuseg / "Tissue Images" / f"{NAMES[0]}.tif")).transpose(
        Image.Transpose.ROTATE_90
    )
    test = tmp_path / "MoNuSegTestData"
    test.mkdir()
    copy.save(test / "TCGA-ZF-A9R5-01A-01-TS1.tif")
    archives.aperio(test / "TCGA-ZF-A9R5-01A-01-TS1.xml", [octagon_ring(30, 30, 6)])
    output = tmp_path_factory.mktemp("out")
    table = prepared(datasets, tmp_path, output)
    assert any(
        row["problem"] == "duplicates across splits" and "TCGA-ZF-A9R5" in row["image"] + row["detail"] for row in table
    )
    image, label, _ = known_sample(0)
    save(tmp_path / "other" / "x.png", image)
    archives.geojson(tmp_path / "other" / "x.geojson", archives.corner_rings(label))
    prepare(datasets, "qupath", output, tmp_path / "other", workers=1)
    assert any(row["problem"] == "duplicates across domains" for row in rows(output, "qupath"))


def test_splits_keep_groups_and_what_is_published():
    groups = [str(number // 2) for number in range(40)]
    splits = assign_splits([None] * 40, groups, 0.15, 0.15)
    assert {s: splits.count(s) for s in set(splits)} == {"training": 28, "validation": 6, "testing": 6}
    assert all(splits[i] == splits[i + 1] for i in range(0, 40, 2))
    assert splits == assign_splits([None] * 40, groups, 0.15, 0.15)
    published = ["training"] * 30 + ["testing"] * 10
    splits = assign_splits(published, groups, 0.15, 0.15)
    assert splits[30:] == ["testing"] * 10 and 0 < splits.count("validation") < 10
    assert assign_splits(["training", "testing"], ["a", "b"], 0.15, 0.15) == ["training", "testing"]
    assert published_splits(["x"], [None], [{"split": "Val"}], None, {}) == ["validation"]


# --- the verb


@pytest.mark.slow
def test_the_verb(bundle_root, monuseg, tmp_path):
    command = [sys.executable, "-m", "monai.bundle", "run", "preparing", "--config_file", "configs/prepare.json"]
    command += ["--dataset", "monuseg", "--source", str(monuseg), "--output_dir", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=bundle_root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "6 images" in done.stdout and "CC BY-NC-SA 4.0" in done.stdout
    assert len(list((tmp_path / "out" / "monuseg" / "labels").iterdir())) == 6
    for number, name in enumerate(NAMES):
        label = read_label(tmp_path / "out" / "monuseg" / "labels" / f"{name}.png")
        assert same_nuclei(label, known_sample(number)[1])
    (monuseg / "Tissue Images" / f"{NAMES[0]}.tif").write_bytes(b"broken")
    with pytest.raises(SystemExit, match="1 files could not be used"):
        open_verb(
            bundle_root, "prepare", None, dataset="monuseg", source=str(monuseg), output_dir=str(tmp_path / "out")
        ).run()


def test_an_own_set_is_no_unknown_key(bundle_root):
    defaults = json.loads((bundle_root / "configs" / "prepare.json").read_text())
    assert unknown_keys({**defaults, "own_datasets": {"mine": {"parts": []}}}, defaults) == []
    assert unknown_keys({**defaults, "own_dataset": {"mine": {}}}, defaults) == ["own_dataset", "own_dataset::mine"]


def test_the_table_of_sets_is_documented(bundle_root, datasets):
    text = (bundle_root / "docs" / "datasets.md").read_text()
    for name, entry in datasets.items():
        assert f"`{name}`" in text, name
        for file in entry.get("download") or ():
            assert file["sha256"] is None or len(file["sha256"]) == 64
    config = json.loads((bundle_root / "configs" / "prepare.json").read_text())
    assert config["run"] == "%preparing" and config["prepared"]["datasets"] == "@datasets"
