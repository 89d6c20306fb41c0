"""Every published layout, written small by archives.py, is prepared and read back as a domain."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path

import archives
import numpy as np
import pytest
from archives import known_sample, same_nuclei, save

from scripts.data.domains import domain_list, load_items
from scripts.data.preparing import prepare
from scripts.data.published.coco import decode_counts
from scripts.data.published.layouts import compile_pattern
from scripts.data.published.mask_per_nucleus import decode_runs
from scripts.data.published.registry import load_datasets
from scripts.data.published.stains import group_by_borders, stain_of
from scripts.data.readers import read_image, read_label
from scripts.errors import DataError

BARCODES = ["TCGA-A7-A13E-01Z-00-DX1", "TCGA-B0-5698-01Z-00-DX1", "TCGA-G9-6336-01Z-00-DX1", "TCGA-HE-7128-01Z-00-DX1"]


@pytest.fixture(scope="session")
def datasets(bundle_root):
    return load_datasets(bundle_root / "configs" / "datasets.json")


def table(names, start=0):
    """{name: (image, label, places)}"""
    return {name: known_sample(start + number) for number, name in enumerate(names)}


# --- writers: each returns {(domain, file): (image, label)} and {file: split}, as far as the publication gives it


def write_monuseg(root):
    samples = table([*BARCODES[:3], "TCGA-2Z-A9J9-01A-01-TS1"])
    for number, (name, (image, _, places)) in enumerate(samples.items()):
        test = number == 3
        folder = root / ("MoNuSegTestData" if test else "MoNuSeg 2018 Training Data")
        save((folder if test else folder / "Tissue Images") / f"{name}.tif", image)
        annotation = (folder if test else folder / "Annotations") / f"{name}.xml"
        archives.aperio(annotation, [archives.octagon_ring(*place) for place in places])
    return {("monuseg", name): sample for name, sample in samples.items()}, {"TCGA-2Z-A9J9-01A-01-TS1": "testing"}


def write_kumar(root):
    samples, splits = table(BARCODES), {}
    for part, name in zip(["train", "train", "test_same", "test_diff"], BARCODES):
        save(root / "kumar" / part / "Images" / f"{name}.tif", samples[name][0])
        archives.hovernet_mat(root / "kumar" / part / "Labels" / f"{name}.mat", samples[name][1])
        if part != "train":
            splits[name] = "testing"
    return {("kumar", name): sample for name, sample in samples.items()}, splits


def write_kumar_xml(root):
    samples = table(BARCODES)
    for name, (image, _, places) in samples.items():
        save(root / "Tissue images" / f"{name}.tif", image)
        archives.aperio(root / "Annotations" / f"{name}.xml", [archives.octagon_ring(*place) for place in places])
    return {("kumar", name): s for name, s in samples.items()}, dict.fromkeys(BARCODES[1:3], "testing") | {
        BARCODES[0]: None
    }


def _tnbc(root, base, domain_of):
    names = [f"{patient:02d}_{field}" for patient in (1, 7, 9, 12, 13) for field in (1, 2)]
    samples = {name: sample for name, sample in table(names).items() if domain_of(name[:2])}
    for name, (image, label, _) in samples.items():
        save(root / base / f"Slide_{name[:2]}" / f"{name}.png", archives.rgba(image))
        # nuclei are kept apart by background in the published masks
        apart = label.copy()
        apart[:, 1:][(label[:, 1:] != label[:, :-1]) & (label[:, 1:] > 0) & (label[:, :-1] > 0)] = 0
        samples[name] = (image, apart)
        save(root / base / f"GT_{name[:2]}" / f"{name}.png", ((apart > 0) * 255).astype(np.uint8))
    save(root / "__MACOSX" / base / "Slide_01" / "._01_1.png", np.zeros((2, 2), np.uint8))
    return {(domain_of(name[:2]), name): sample for name, sample in samples.items()}


def write_tnbc(root):
    found = _tnbc(root, "TNBC_NucleiSegmentation", lambda patient: "tnbc" if int(patient) < 12 else None)
    splits = {"01": "training", "07": "validation", "09": "testing"}
    return found, {name: splits[name[:2]] for _, name in found}


def write_tnbc_brain(root):
    return _tnbc(root, "TNBC_and_Brain_dataset", lambda p: "tnbc_brain_" + ("breast" if int(p) < 12 else "other")), {}


def write_dsb2018(root):
    samples, splits = {}, {}
    for number in range(7):
        image, label, _ = known_sample(number)
        stain = ("fluo", "white", "purple")[number % 3]
        if stain == "fluo":
            image = np.repeat(
                ((label > 0) * 90 + 10 + image[..., :1].min(2) // 20).astype(np.uint8)[..., None], 3, axis=2
            )
        if stain == "white":
            image = np.where(label[..., None] > 0, image, np.minimum(image.astype(int) + 40, 245)).astype(np.uint8)
        if stain == "purple":
            image = (image * 0.8).astype(np.uint8)
        name = f"{number:02x}" * 32
        folder = root / ("stage1_test" if number == 6 else "stage1_train") / name
        save(folder / "images" / f"{name}.png", archives.rgba(image))
        samples[f"dsb2018_{stain}", name] = (image, label)
        if number == 6:
            splits[name] = "testing"
            with (root / "stage1_solution.csv").open("w", newline="") as file:
                rows = csv.writer(file)
                rows.writerow(["ImageId", "EncodedPixels", "Height", "Width", "Usage"])
                for i in range(1, label.max() + 1):
                    runs = " ".join(map(str, archives.runs_down_columns(label == i)))
                    rows.writerow([name, runs, label.shape[0], label.shape[1], "Private"])
        else:
            for i in range(1, label.max() + 1):
                save(folder / "masks" / f"{i:064x}.png", ((label == i) * 255).astype(np.uint8))
    return samples, splits


def write_cryonuseg(root):
    samples = table(["Human_AdrenalGland_01", "Human_Larynx_02", "Human_Skin_03"])
    for name, (image, label, _) in samples.items():
        save(root / "tissue images" / f"{name}.tif", image)
        save(root / "Annotator 1 (biologist)" / "label masks modify" / f"{name}.tif", label.astype(np.uint16))
        save(root / "Annotator 1 (biologist)" / "mask binary" / f"{name}.png", (label > 0).astype(np.uint8) * 255)
        twice = "Annotator 2 (bioinformatician)"
        save(root / twice / twice / "label masks modify" / f"{name}.tif", np.flipud(label).astype(np.uint16))
    return {("cryonuseg", name): sample for name, sample in samples.items()}, {}


def write_consep(root):
    samples = table(["train_1", "train_2", "test_1"])
    for name, (image, label, _) in samples.items():
        part = name.split("_")[0].capitalize()
        save(root / "CoNSeP" / part / "Images" / f"{name}.png", archives.rgba(image))
        archives.hovernet_mat(root / "CoNSeP" / part / "Labels" / f"{name}.mat", label)
        save(root / "CoNSeP" / part / "Overlay" / f"{name}.png", image)
    return {("consep", name): sample for name, sample in samples.items()}, {"test_1": "testing"}


def write_pannuke(root):
    samples, splits = {}, {}
    for fold, split in ((1, "training"), (2, "validation"), (3, "testing")):
        found = [known_sample(fold * 10 + number, (128, 128)) for number in range(2)]
        masks = np.zeros((2, 128, 128, 6))
        for number, (image, label, _) in enumerate(found):
            for i in range(1, label.max() + 1):
                masks[number, ..., i % 5][label == i] = i // 5 + 1  # ids of one channel are those of another too
            masks[number, ..., 5] = label == 0
            samples["pannuke", f"fold{fold}_{number}"] = (image, label)
            splits[f"fold{fold}_{number}"] = split
        folder = root / f"Fold {fold}"
        for part, name, array in (
            ("images", "images", np.stack([image for image, _, _ in found]).astype(np.float64)),
            ("images", "types", np.array(["Breast", "Bile-duct"])),
            ("masks", "masks", masks),
        ):
            (folder / part / f"fold{fold}").mkdir(parents=True, exist_ok=True)
            np.save(folder / part / f"fold{fold}" / f"{name}.npy", array)
    return samples, splits


def write_nuinsseg(root):
    samples = table(["human_bladder_01", "human_bladder_02", "mouse_liver_01", "human_brain_01"])
    for name, (image, label, _) in samples.items():
        folder = root / name[:-3].replace("_", " ")
        save(folder / "tissue images" / f"{name}.png", image)
        save(folder / "label masks modify" / f"{name}.tif", label.astype(np.uint16))
        save(folder / "label masks" / f"{name}.tif", (label * 2).astype(np.uint16))
        save(folder / "vague areas" / "mask binary" / f"{name}.png", np.zeros(label.shape, np.uint8))
    return {("nuinsseg", name): sample for name, sample in samples.items()}, {}


def write_cpm15(root):
    samples = table(["image01", "image07", "image08", "image15"])
    for name, (image, label, _) in samples.items():
        save(root / f"{name}.png", image)
        save(root / f"{name}_poly.png", image)
        archives.challenge_text(root / f"{name}_mask.txt", label)
    return {(f"cpm15_{'20x' if name < 'image08' else '40x'}", name): s for name, s in samples.items()}, {}


def write_cpm15_mat(root):
    samples = table(["image_00", "image_01", "image_02"])
    for name, (image, label, _) in samples.items():
        save(root / "cpm15" / "Images" / f"{name}.png", image)
        archives.hovernet_mat(root / "cpm15" / "Labels" / f"{name}.mat", label)
    return {("cpm15", name): sample for name, sample in samples.items()}, {}


def write_cpm17(root):
    samples, splits = {}, {}
    for number, part in enumerate(["train", "train", "test"]):
        image, label, _ = known_sample(number)
        name = f"image_{number % 2:02d}"  # train and test count from 0
        save(root / "cpm17" / part / "Images" / f"{name}.png", image)
        archives.hovernet_mat(root / "cpm17" / part / "Labels" / f"{name}.mat", label)
        file = name if name == "image_01" else f"{part}_{name}"
        samples["cpm17", file] = (image, label)
        if part == "test":
            splits[file] = "testing"
    return samples, splits


def write_lizard(root):
    samples = table(["consep_1", "crag_10", "dpath_4", "glas_2"])
    for number, (name, (image, label, _)) in enumerate(samples.items()):
        save(root / f"lizard_images{number % 2 + 1}" / f"Lizard_Images{number % 2 + 1}" / f"{name}.png", image)
        archives.lizard_mat(root / "lizard_labels" / "Lizard_Labels" / "Labels" / f"{name}.mat", label)
    splits = {"consep_1": 1, "crag_10": 2, "dpath_4": 3, "glas_2": 1}
    rows = "".join(f"{name},{name.split('_')[0]},{split}\n" for name, split in splits.items())
    (root / "lizard_labels" / "Lizard_Labels" / "info.csv").write_text("Filename,Source,Split\n" + rows)
    names = {1: "training", 2: "validation", 3: "testing"}
    return {("lizard", n): s for n, s in samples.items()}, {n: names[split] for n, split in splits.items()}


def write_conic(root):
    names = ["consep_1-0000", "consep_1-0001", "crag_2-0000", "dpath_1-0000", "glas_1-0000"]
    samples = {name: known_sample(number, (128, 128)) for number, name in enumerate(names)}
    np.save(root / "images.npy", np.stack([image for image, _, _ in samples.values()]))
    maps = [np.stack([label, label > 0], axis=2) for _, label, _ in samples.values()]
    np.save(root / "labels.npy", np.stack(maps).astype(np.uint16))
    (root / "patch_info.csv").write_text("patch_info\n" + "".join(f"{name}\n" for name in names))
    (root / "counts.csv").write_text("neutrophil,epithelial\n" + "1,2\n" * len(names))
    return {("conic", name): sample for name, sample in samples.items()}, {}


def write_coco(root):
    samples = table(["a", "b", "c"])
    images, annotations = [], []
    for index, (name, (image, label, _)) in enumerate(samples.items()):
        save(root / "images" / f"{name}.png", image)
        images.append({"id": 10 + index, "file_name": f"{name}.png", "height": label.shape[0], "width": label.shape[1]})
        for i, ring in enumerate(archives.corner_rings(label), start=1):
            counts = archives.coco_counts(label == i)
            segmentation = {
                0: [ring.ravel().tolist()],
                1: {"size": list(label.shape), "counts": counts},
                2: {"size": list(label.shape), "counts": archives.coco_text(counts)},
            }[index]
            entry = {"id": len(annotations), "image_id": 10 + index, "category_id": 1, "iscrowd": 0}
            annotations.append({**entry, "segmentation": segmentation})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "nucleus"}]}
    (root / "annotations.json").write_text(json.dumps(content))
    return {("coco", name): sample for name, sample in samples.items()}, {}


def write_qupath(root):
    samples = table(["a", "b", "c"])
    for name, (image, label, _) in samples.items():
        save(root / f"{name}.tif", image)
        archives.geojson(root / f"{name}.geojson", archives.corner_rings(label))
    return {("qupath", name): sample for name, sample in samples.items()}, {}


def write_asap(root):
    samples = table(["a", "b", "c"])
    for name, (image, label, _) in samples.items():
        save(root / f"{name}.png", image)
        archives.asap(root / f"{name}.xml", archives.corner_rings(label))
    return {("asap", name): sample for name, sample in samples.items()}, {}


WRITERS = [
    ("monuseg", write_monuseg), ("kumar", write_kumar), ("kumar", write_kumar_xml), ("tnbc", write_tnbc),
    ("tnbc_brain", write_tnbc_brain), ("dsb2018", write_dsb2018), ("cryonuseg", write_cryonuseg),
    ("consep", write_consep), ("pannuke", write_pannuke), ("nuinsseg", write_nuinsseg), ("cpm15", write_cpm15),
    ("cpm15", write_cpm15_mat), ("cpm17", write_cpm17), ("lizard", write_lizard), ("conic", write_conic),
    ("coco", write_coco), ("qupath", write_qupath), ("asap", write_asap),
]  # fmt: skip


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
    paths = [real_data / "monuseg" / entry["image"] for part in real.values() for entry in part[:4]]
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
    assert about["splits"]["testing"]["images"] == 4 and "labels shifted" not in about["problems"]
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
