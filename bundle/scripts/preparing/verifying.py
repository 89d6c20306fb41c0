from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.data.domains import SPLITS
from scripts.data.leakage import from_text, hash_images
from scripts.data.similarity import HASH_BITS, near_duplicates
from scripts.errors import DataError
from scripts.files import read_json
from scripts.preparing.label_shift import common_shift

__all__ = ["problem", "verify"]

SET_SHIFT = 0.75  # pixels: more than the published sets are off, less than the pixel of a wrong conversion
IMAGE_SHIFT = 3.0  # pixels of one image against its set; small images of published sets reach 2
MPP_TOLERANCE = 0.15  # relative
COLUMNS = ("severity", "problem", "domain", "image", "where", "detail")


def problem(severity: str, what: str, domain: str = "", image: str = "", where: str = "", detail: str = "") -> dict:
    """A row of the table of problems."""
    return dict(zip(COLUMNS, (severity, what, domain, image, where, detail)))


def verify(records: Sequence[dict], entry: Mapping, output_dir: Path, cache: Path) -> list[dict]:
    """
    What can be told only from all images of a set: shifted labels, duplicates, patients in two splits, missing images.

    Args:
        records: converted images, see :func:`convert`, with their final ``split`` and ``group``.
        entry: description of the set, see :func:`load_datasets`.
        output_dir: the folder of domains; images of the other domains there are compared too.
        cache: where their hashes are kept.

    Returns:
        rows, see :func:`problem`.
    """
    rows: list[dict] = []
    for domain in sorted({record["domain"] for record in records}):
        members = [record for record in records if record["domain"] == domain]
        rows += _shifts(members, domain, entry.get("shift") or (0.0, 0.0))
        rows += _resolutions(members, domain, entry.get("mpp"))
        rows += _divided_groups(members, domain)
    return rows + _duplicates(records) + _elsewhere(records, output_dir, cache) + _counts(records, entry)


def _shifts(records: Sequence[dict], domain: str, usual: Sequence[float]) -> list[dict]:
    measured = [(record, record["shift"]) for record in records if record["shift"]]
    common = common_shift([shift for _, shift in measured])
    rows = []
    if common is not None and max(abs(c - u) for c, u in zip(common, usual)) > SET_SHIFT:
        detail = (
            f"image edges lie {common[0]:+.2f} px down and {common[1]:+.2f} px right of the labels' boundaries (median "
            f"of {len(measured)} images; usual for this set {usual[0]:+.2f}, {usual[1]:+.2f}): the labels are shifted"
        )
        rows.append(problem("warning", "labels shifted", domain, detail=detail))
    centre = common or usual
    for record, shift in measured:
        if max(abs(s - c) for s, c in zip(shift, centre)) > IMAGE_SHIFT:
            detail = f"image edges lie {shift[0]:+.1f} px down, {shift[1]:+.1f} px right of the labels' boundaries"
            rows.append(problem("warning", "label shifted", domain, record["file"], detail=detail))
    return rows


def _resolutions(records: Sequence[dict], domain: str, mpp: float | None) -> list[dict]:
    return [
        problem("warning", "other resolution", domain, record["file"], detail=f"{record['mpp']} µm/px, the set {mpp}")
        for record in records
        if mpp and record["mpp"] and abs(record["mpp"] / mpp - 1) > MPP_TOLERANCE
    ]


def _divided_groups(records: Sequence[dict], domain: str) -> list[dict]:
    parts = defaultdict(set)
    for record in records:
        parts[record["group"]].add(record["split"])
    detail = "images of one patient, slide or field are in {}"
    return [
        problem("warning", "group in several splits", domain, where=str(group), detail=detail.format(" and ".join(
            split for split in SPLITS if split in found)))
        for group, found in sorted(parts.items())
        if len(found) > 1
    ]  # fmt: skip


def _duplicates(records: Sequence[dict]) -> list[dict]:
    hashes = [from_text(record["hash"]) for record in records]
    rows = []
    for i, j, bits in near_duplicates(hashes, hashes):
        if i < j:
            one, two = records[i], records[j]
            kind = "duplicates" if one["split"] == two["split"] else "duplicates across splits"
            other = f"{two['domain']}/{two['file']} ({two['split']})"
            detail = f"{one['split']}; also {other}, {bits} of {HASH_BITS} bits differ"
            rows.append(problem("warning", kind, one["domain"], one["file"], detail=detail))
    return rows


def _elsewhere(records: Sequence[dict], output_dir: Path, cache: Path) -> list[dict]:
    """Images that look like one of a domain prepared earlier."""
    others: dict[str, str] = {}
    domains = {record["domain"] for record in records}
    for path in sorted(output_dir.glob("*/split.json")):
        if path.parent.name not in domains:
            try:
                listed = read_json(path)
                entries = [entry["image"] for part in SPLITS for entry in listed.get(part, ())]
            except (DataError, KeyError, AttributeError, TypeError):
                continue  # not ours to judge; training will
            others.update({str(path.parent / image): f"{path.parent.name}/{Path(image).stem}" for image in entries})
    if not others:
        return []
    hashes, unread = hash_images(list(others), cache)
    names, values = list(others.values()), [hashes.get(path) for path in others]
    rows = [
        problem("warning", "not compared", others[path].partition("/")[0], Path(path).stem, detail=reason)
        for path, reason in unread.items()
    ]
    for i, j, bits in near_duplicates([from_text(record["hash"]) for record in records], values):
        detail = f"looks like {names[j]}, {bits} of {HASH_BITS} bits differ; do not train on one and test on the other"
        rows.append(
            problem("warning", "duplicates across domains", records[i]["domain"], records[i]["file"], detail=detail)
        )
    return rows


def _counts(records: Sequence[dict], entry: Mapping) -> list[dict]:
    found = Counter(record["published_split"] or "all" for record in records)
    rows = []
    for split, numbers in (entry.get("expected") or {}).items():
        count = len(records) if split == "all" else found[split]
        if count not in numbers:
            detail = f"{count} images of '{split}' were found; published were {' or '.join(map(str, numbers))}"
            rows.append(problem("warning", "number of images", detail=detail))
    return rows
