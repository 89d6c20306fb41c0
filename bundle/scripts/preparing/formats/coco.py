from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scripts.files import read_json
from scripts.preparing.formats.mask_per_nucleus import merge_masks
from scripts.preparing.layouts import Sample, Skipped, check_part, compile_pattern
from scripts.preparing.polygons import Finding, Instances, Outline, rasterise

__all__ = ["decode_counts", "find", "read_labels"]


def find(files: Mapping[str, Path], part: Mapping) -> tuple[list[Sample], list[Skipped]]:
    """
    A sample for each image that COCO files list. ``labels`` is the pattern of the JSON files, ``images`` that of the
    images, found by their ``file_name`` or, if folders were moved, by its last component.
    """
    check_part(part)
    matches = {name: compile_pattern(part["images"]).fullmatch(name) for name in files}
    images = {name: match.groupdict() for name, match in matches.items() if match}
    by_base = defaultdict(list)
    for name in images:
        by_base[name.rsplit("/", 1)[-1]].append(name)
    samples, skipped = [], []
    for name, path in files.items():
        match = compile_pattern(part["labels"]).fullmatch(name)
        content = read_json(str(path)) if match else None
        if not isinstance(content, dict) or not {"images", "annotations"} <= set(content):
            continue
        for number, entry in enumerate(_dicts(content["images"])):
            if not isinstance(entry.get("file_name"), str) or "id" not in entry:
                detail = f"image {entry.get('id', number)} of {name} lacks an id or a file_name"
                skipped.append(Skipped(name, Finding("image without a name", detail=detail, severity="error")))
                continue
            wanted = entry["file_name"].replace("\\", "/")
            exact = [file for file in images if file == wanted or file.endswith(f"/{wanted}")]
            found = exact or by_base[wanted.rsplit("/", 1)[-1]]
            if len(found) != 1:
                kind = "ambiguous" if found else "image missing"
                detail = f"listed in {name}" + (f", may be {', '.join(found)}" if found else "")
                skipped.append(Skipped(wanted, Finding(kind, detail=detail, severity="error")))
                continue
            fields = {**images[found[0]], **match.groupdict(), "coco_id": str(entry["id"])}
            fields.pop("name", None)
            sample = Sample(
                name=Path(wanted).stem, image=str(files[found[0]]), labels=(str(path),), format="coco",
                split=part.get("split"), domain=part.get("domain"), fields=fields,
                options=part.get("options", {}), mpp=part.get("mpp"),
            )  # fmt: skip
            samples.append(sample)
    listed = {sample.image for sample in samples}
    for name in images if samples else ():
        if str(files[name]) not in listed:
            finding = Finding("annotation missing", detail="no COCO file lists the image", severity="error")
            skipped.append(Skipped(name, finding))
    return sorted(samples, key=lambda sample: (sample.name, sample.image)), skipped


def read_labels(sample: Sample, shape: Sequence[int]) -> Instances:
    """
    Nuclei of one image of a COCO file: polygons, or run lengths, plain or compressed. Crowds are not drawn, but CVAT's
    single masks, which it calls so, are.

    Options:
        pixel_centre: of polygons, see :func:`rasterise`; default 0.5, as COCO's own tools draw them.
        categories: names of the categories that are nuclei; default all.

    Raises:
        DataError: when an annotation cannot be understood.
    """
    (path,) = sample.labels
    by_image, categories = _annotations(path)
    wanted = sample.options.get("categories")
    centre = float(sample.options.get("pixel_centre", 0.5))
    outlines, masks, findings = [], [], []
    for annotation in by_image.get(sample.fields["coco_id"], []):
        name = f"annotation {annotation.get('id')}"
        category = categories.get(str(annotation.get("category_id")))
        if wanted is not None and category not in wanted:
            findings.append(Finding("other category", name, f"category '{category}' is not asked for"))
            continue
        single = isinstance(annotation.get("segmentation"), dict) and isinstance(
            annotation["segmentation"].get("counts"), list
        )
        if annotation.get("iscrowd") and not single:  # CVAT marks each of its masks, which are single, as a crowd
            findings.append(Finding("crowd", name, "a region of many nuclei is not drawn"))
            continue
        shapes = annotation.get("segmentation")
        try:
            if isinstance(shapes, dict):
                mask = decode_counts(shapes["counts"], shapes["size"])
                if mask.shape != tuple(shape[:2]):
                    raise ValueError(f"size {shapes['size']} is not that of the image")
                masks.append((name, mask))
            elif shapes:
                outlines.append(Outline(name, [np.array(ring, float).reshape(-1, 2) for ring in shapes]))
            else:
                findings.append(Finding("not an outline", name, "it has a box but no segmentation"))
        except (ValueError, KeyError, TypeError, IndexError, OverflowError) as error:
            findings.append(Finding("unreadable outline", name, f"{error}; it is not drawn", "error"))
    drawn = rasterise(outlines, shape, centre, path)
    if not masks:
        return Instances(drawn.label, findings + drawn.findings)
    polygons = [(outlines[i - 1].name, drawn.label == i) for i in np.unique(drawn.label) if i]
    merged = merge_masks(polygons + masks, shape, path)
    return Instances(merged.label, findings + drawn.findings + merged.findings)


def decode_counts(counts: str | Sequence[int], size: Sequence[int]) -> np.ndarray:
    """
    Mask (H, W) of COCO run lengths: off, on, off, ... down the columns; as numbers, or compressed to text.

    The text holds each number in groups of five bits, lowest first, as characters from '0' on; the bit of value 32
    says that more groups follow, and the highest bit of the last is the sign. From the third on, numbers are
    differences to the number two before.

    Raises:
        ValueError: when the runs do not fill the image.
    """
    if isinstance(counts, (str, bytes)):
        text = counts if isinstance(counts, bytes) else counts.encode("ascii")
        numbers, value, shift = [], 0, 0
        for character in text:
            bits = character - 48
            value |= (bits & 31) << shift
            shift += 5
            if not bits & 32:
                if bits & 16:
                    value -= 1 << shift
                numbers.append(value + (numbers[-2] if len(numbers) > 2 else 0))
                value, shift = 0, 0
        counts = numbers
    height, width = size
    runs = np.array(counts, np.int64)
    if (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(f"runs of {int(runs.sum())} pixels do not fill {width}x{height}")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


@functools.lru_cache(maxsize=2)
def _annotations(path: str) -> tuple[dict[str, list[dict]], dict]:
    content = read_json(path)
    by_image = defaultdict(list)
    for annotation in _dicts(content["annotations"]):
        by_image[str(annotation.get("image_id"))].append(annotation)
    categories = {str(entry.get("id")): entry.get("name") for entry in _dicts(content.get("categories"))}
    return by_image, categories


def _dicts(entries: object) -> list[dict]:
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
