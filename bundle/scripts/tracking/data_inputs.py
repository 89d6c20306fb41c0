from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag
from scripts.data.datalists import read_object
from scripts.data.readers import related_files
from scripts.files import is_store

__all__ = ["data_fingerprint", "data_inputs"]


def data_inputs(domains: Sequence[Mapping[str, Any]], parts: Mapping[str, Sequence[Mapping]]) -> list[DatasetInput]:
    """
    What a run was made of, as MLflow's data sets: one for each domain, with name, place, digest, numbers of images by
    part, and the title and licence that its ``dataset.json`` tells.

    The digest is of the names (within the domain's folder) and sizes in bytes of the images and labels: the same for a
    copy of the folder, another when an image is added, left out or exchanged, or another part of each image is used. No
    file is read for it.

    Args:
        domains: the domain list, the primary first.
        parts: items of ``load_items`` by what they are for, e.g. ``{"training": [...]}``; items that tell no domain are
            the primary's.
    """
    found = []
    for number, domain in enumerate(domains):
        root, digest, counts = Path(domain["root"]), hashlib.sha256(), {}
        for part, items in parts.items():
            own = [item for item in items if item.get("domain", 0) == number]
            counts[part] = len(own)
            for line in sorted(_line(root, item) for item in own):
                digest.update(f"{part}\t{line}\n".encode())
        told = read_object(root / "dataset.json") if (root / "dataset.json").is_file() else {}
        known = {key: str(told[key]) for key in ("title", "license") if told.get(key)}
        dataset = Dataset(
            name=domain["name"],
            digest=digest.hexdigest()[:16],
            source_type="local",
            source=json.dumps({"uri": str(root)}),
            profile=json.dumps({"images": counts, **known}),
        )
        tags = {"mlflow.data.context": next(iter(parts)), "role": domain["role"], **known}
        found.append(DatasetInput(dataset, [InputTag(key, value) for key, value in tags.items()]))
    return found


def data_fingerprint(inputs: Sequence[DatasetInput]) -> str:
    """One digest of all of them, in their order: 16 hexadecimal digits."""
    told = [[entry.dataset.name, entry.dataset.digest] for entry in inputs]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def _line(root: Path, item: Mapping[str, Any]) -> str:
    files = [Path(item[key]) for key in ("image", "label") if key in item]  # unlabelled ones have an image alone
    told = [f"{Path(os.path.relpath(file, root)).as_posix()} {_bytes(file)}" for file in files]
    return "\t".join([*told, *([str(tuple(item["span"]))] if "span" in item else [])])


def _bytes(image: Path) -> int:
    return sum(file.stat().st_size for file in related_files(image)) if is_store(image) else image.stat().st_size
