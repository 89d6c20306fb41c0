from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from scripts.data.readers import IMAGE_SUFFIXES, file_suffix
from scripts.errors import DataError
from scripts.files import is_store, read_json

__all__ = [
    "SPLITS",
    "check_files",
    "find_datalist",
    "has_part_folders",
    "is_domain",
    "list_entries",
    "read_object",
    "stem_of",
    "stored_mpp",
]

SPLITS = ("training", "validation", "testing")
DECATHLON_KEYS = {"training": "training", "validation": "validation", "testing": "test"}


def find_datalist(root: Path) -> str | None:
    """Name of the datalist in a domain's folder, None if its images are in plain folders."""
    if (root / "split.json").is_file():
        return "split.json"
    if (root / "dataset.json").is_file() and "training" in read_object(root / "dataset.json"):
        return "dataset.json"
    return None


def is_domain(root: Path, labels: bool = True) -> bool:
    """
    Whether a folder holds a datalist, or ``images/`` and ``labels/``, directly or inside ``training/``; without
    ``labels`` images are enough.
    """
    if not root.is_dir() or root.name.startswith("."):
        return False
    needed = ("images", "labels") if labels else ("images",)
    parts = (root, root / "training")
    return find_datalist(root) is not None or any(all((part / name).is_dir() for name in needed) for part in parts)


def list_entries(root: Path, datalist: str | Mapping | None, split: str, labels: bool = True) -> list[dict]:
    """
    Entries of one split with absolute or root-joined paths.

    Args:
        root: the domain's folder.
        datalist: its file relative to ``root``, or what such a file holds; None takes the one that is there, else the
            folders.
        split: one of ``SPLITS``.
        labels: False lists images alone, whether they have labels or not.

    Raises:
        DataError: naming the file, when a datalist is malformed, or an image or label has no partner.
    """
    if isinstance(datalist, Mapping):
        return _datalist_entries(root, root, datalist, split, labels)
    datalist = datalist or find_datalist(root)
    if datalist is not None:
        return _datalist_entries(root, root / datalist, read_object(root / datalist), split, labels)
    if has_part_folders(root):
        return _folder_entries(root / split, labels)

    def by_digest(entry: dict) -> str:
        return hashlib.sha256(stem_of(Path(entry["image"])).encode()).hexdigest()

    entries = sorted(_folder_entries(root, labels), key=by_digest)
    measured = labels or (root / "labels").is_dir()
    count = len(entries) if measured else 0  # of which some are left out
    validation = max(round(0.15 * count), 1) if count > 1 else 0
    testing = round(0.15 * count)
    parts = {"validation": entries[:validation], "testing": entries[validation : validation + testing]}
    parts["training"] = entries[validation + testing :]
    return sorted(parts[split], key=lambda entry: entry["image"])


def has_part_folders(root: Path) -> bool:
    """Whether folders say what is for training, validation and testing."""
    return any((root / part / "images").is_dir() for part in SPLITS)


def _datalist_entries(root: Path, path: Path, content: Mapping, split: str, labels: bool) -> list[dict]:
    if not any(key in content for key in (*SPLITS, "test")):
        raise DataError(path, "no part of the data is listed", f"Give one or more of {', '.join(SPLITS)}.")
    listed = content.get(split, content.get(DECATHLON_KEYS[split], []))
    if not isinstance(listed, list):
        raise DataError(path, f"'{split}' is not a list", 'Write [{"image": ..., "label": ...}, ...].')
    entries = []
    keys = ("image", "label") if labels else ("image",)
    for entry in listed:
        if not (isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in keys)):
            what, hint = ("an image or a label", "a path to both") if labels else ("an image", "a path to it")
            raise DataError(path, f"entry {entry!r} of '{split}' lacks {what}", f"Give {hint}.")
        parts = [part for part in (*SPLITS, "test") if entry in content.get(part, ())]
        if len(parts) > 1:
            raise DataError(path, f"{entry['image']} is in {' and '.join(parts)}", "List every image in one part only.")
        told = {key: value for key, value in entry.items() if key != "label"}
        entries.append({**told, **{key: str(root / entry[key]) for key in keys}})
    return entries


def _folder_entries(folder: Path, with_labels: bool) -> list[dict]:
    images = _by_stem(folder / "images")
    if not with_labels:
        return [{"image": str(images[stem])} for stem in sorted(images)]
    labels = _by_stem(folder / "labels")
    for have, lack, what in ((images, labels, "label"), (labels, images, "image")):
        alone = sorted(str(path) for stem, path in have.items() if stem not in lack)
        if alone:
            hint = f"Put a {what} of the same name into {folder / (what + 's')}, or take the file out."
            raise DataError(alone[0], f"no {what} belongs to it{_more(alone)}", hint)
    return [{"image": str(images[stem]), "label": str(labels[stem])} for stem in sorted(images)]


def _by_stem(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith(".") or not (file_suffix(path) in IMAGE_SUFFIXES or is_store(path)):
            continue
        if stem_of(path) in files:
            raise DataError(path, f"{files[stem_of(path)].name} has the same name", "Keep one of the two.")
        files[stem_of(path)] = path
    return files


def check_files(entries: Iterable[dict], root: Path) -> None:
    """DataError that names the files that are listed but missing."""
    files = [entry[key] for entry in entries for key in ("image", "label") if key in entry]
    missing = [file for file in files if not (os.path.isfile(file) or is_store(file))]
    if missing:
        raise DataError(missing[0], f"the file is listed but missing{_more(missing)}", f"Copy it to {root}.")


def _more(paths: Sequence[str]) -> str:
    if len(paths) == 1:
        return ""
    shown = ", ".join(Path(path).name for path in paths[1:4])
    return f" (likewise {shown}{' and others' if len(paths) > 4 else ''})"


def stem_of(path: Path) -> str:
    """File name without the suffix that names its format."""
    return path.name[: -len(file_suffix(path))]


def read_object(path: Path) -> dict:
    """A JSON object from a file; DataError when it is something else."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(path, "the file does not hold a JSON object", 'Write {"training": [...], ...}.')
    return content


def stored_mpp(root: Path) -> float | None:
    """Micrometres per pixel as ``dataset.json`` in a domain's folder says; DataError when it is no such number."""
    path = root / "dataset.json"
    mpp = read_object(path).get("mpp") if path.is_file() else None
    if mpp is not None and not (isinstance(mpp, (int, float)) and mpp > 0):
        raise DataError(path, f"mpp {mpp!r} is not a positive number", "Give micrometres per pixel, or leave it out.")
    return mpp
