from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scripts.data.leakage import to_text
from scripts.data.similarity import perceptual_hash
from scripts.errors import DataError
from scripts.files import atomic_path, read_json, write_json
from scripts.owned import OwnFiles
from scripts.preparing.formats.reading import FORMATS, read_sample
from scripts.preparing.label_shift import label_shift
from scripts.preparing.layouts import Sample, patient_of
from scripts.preparing.polygons import Finding
from scripts.preparing.stains import stain_of

__all__ = ["DOMAIN_FILES", "Task", "convert", "file_names"]

# with them on its list the folder of a domain is ours
DOMAIN_FILES = ("split.json", "dataset.json", "contact_sheet.png")
TINY = 10  # pixels; smaller nuclei are told


@dataclass(frozen=True)
class Task:
    """
    One image to convert.

    Args:
        sample: what to read.
        output_dir: the folder of domains.
        domain: the domain's name; with ``by_stain`` the stain is added to it.
        file: name of the files to write, without suffix.
        record: JSON file that says that and how it was done.
        key: changes when the source or its description does; a record of another key is out of date.
        by_stain: whether the domain depends on the colours.
    """

    sample: Sample
    output_dir: Path
    domain: str
    file: str
    record: Path
    key: str
    by_stain: bool = False


def convert(task: Task) -> dict:
    """
    Write ``images/<file>.png`` and ``labels/<file>.png`` (16-bit) of a task, unless that was done before.

    Returns:
        the record: domain, file, split, fields, patient, size, counts, shift, hash, mpp, findings. An image that
        cannot be converted has a finding of severity ``error`` and no ``nuclei``. Never raises for bad data.
    """
    record = _finished(task)
    if record is not None:
        return record
    sample = task.sample
    record = {
        "key": task.key,
        "name": sample.name,
        "source": Path(sample.image).name,
        "file": task.file,
        "domain": task.domain,
        "split": sample.split,
        "fields": dict(sample.fields),
        "patient": patient_of(sample),
    }
    try:
        image, instances = read_sample(sample)
        mpp = sample.mpp or FORMATS[sample.format].read_mpp(sample)
    except (DataError, MemoryError) as error:
        record["findings"] = [asdict(Finding("cannot be read", detail=str(error), severity="error"))]
        return record
    label = instances.label
    if task.by_stain:
        record["domain"] = f"{task.domain}_{stain_of(image)}"
    areas = np.bincount(label.ravel())[1:]
    areas = areas[areas > 0]
    findings = list(instances.findings)
    if not len(areas):
        findings.append(Finding("empty label", detail="no nucleus is marked"))
    if tiny := int((areas < TINY).sum()):
        findings.append(Finding("tiny nuclei", f"{tiny} nuclei", f"they have fewer than {TINY} pixels and are kept"))
    shift = label_shift(image, label)
    record |= {
        "height": image.shape[0],
        "width": image.shape[1],
        "nuclei": len(areas),
        "areas": areas.tolist(),
        "foreground": float((label > 0).mean()),
        "mpp": mpp,
        "shift": shift and [round(value, 2) for value in shift],
        "hash": to_text(perceptual_hash(image)),
        "findings": [asdict(finding) for finding in findings],
    }
    folder = task.output_dir / record["domain"]
    if task.by_stain:  # the domain was not known before
        OwnFiles(folder).add(DOMAIN_FILES)
    for part, pixels in (("images", image), ("labels", label)):
        with atomic_path(folder / part / f"{task.file}.png") as partial:
            Image.fromarray(pixels).save(partial)
    write_json(task.record, record)
    return record


def file_names(samples: list[Sample]) -> list[str]:
    """Names for the files of samples: their own without odd characters; of equal ones, told apart by their folders."""
    plain = [_plain(sample.name) for sample in samples]
    counts: dict[str, int] = {}
    for name in plain:
        counts[name.lower()] = counts.get(name.lower(), 0) + 1
    names, taken = [], set()
    for sample, name in zip(samples, plain):
        if counts[name.lower()] > 1:
            folders = [part for part in Path(sample.image).parts[-3:-1] if part.lower() != "images"]
            name = "_".join([*map(_plain, folders), name])
        unique, number = name, 2
        while unique.lower() in taken:
            unique, number = f"{name}_{number}", number + 1
        taken.add(unique.lower())
        names.append(unique)
    return names


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).strip(".") or "image"


def _finished(task: Task) -> dict | None:
    try:
        record: Mapping = read_json(task.record)
    except DataError:
        return None
    folder = task.output_dir / str(record.get("domain"))
    done = record.get("key") == task.key and all(
        os.path.isfile(folder / part / f"{task.file}.png") for part in ("images", "labels")
    )
    return dict(record) if done else None
