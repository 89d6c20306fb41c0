"""
Published layouts written small, out of known samples.

Each writer returns {(domain, file): (image, label)} and {file: split}, as far as the publication gives it.
"""

from __future__ import annotations

import csv
import json

import archives
import numpy as np
from archives import known_sample, save

BARCODES = ["TCGA-A7-A13E-01Z-00-DX1", "TCGA-B0-5698-01Z-00-DX1", "TCGA-G9-6336-01Z-00-DX1", "TCGA-HE-7128-01Z-00-DX1"]


def table(names, start=0):
    """{name: (image, label, places)}"""
    return {name: known_sample(start + number) for number, name in enumerate(names)}


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
