from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from scripts.data.domains import SPLITS
from scripts.data.readers import read_image
from scripts.ending import end_with_parent
from scripts.errors import DataError
from scripts.files import LEFT, has_columns, read_json, sha256_of, write_json, write_table
from scripts.owned import OwnFiles
from scripts.preparing.contact_sheet import write_contact_sheet
from scripts.preparing.converting import DOMAIN_FILES, Task, convert, file_names
from scripts.preparing.download import download_dataset
from scripts.preparing.formats.reading import find_samples
from scripts.preparing.layouts import Sample, Skipped
from scripts.preparing.places import HASHES, WORK, check_domain_folders, check_places, domain_folders
from scripts.preparing.registry import choose_dataset
from scripts.preparing.source import Source, fingerprint, open_source
from scripts.preparing.splitting import assign_splits, published_splits
from scripts.preparing.stains import group_by_borders
from scripts.preparing.verifying import COLUMNS, problem, verify
from tqdm import tqdm

__all__ = ["prepare"]

logger = logging.getLogger(__name__)

VERSION = 1  # raise when the same source would give other files


def prepare(
    datasets: Mapping[str, dict],
    dataset: str | None,
    output_dir: str | os.PathLike,
    source: str | os.PathLike | None = None,
    name: str | None = None,
    download: bool = False,
    download_dir: str | os.PathLike = "downloads",
    sha256: str | Mapping[str, str] | None = None,
    mpp: float | None = None,
    validation_share: float = 0.15,
    testing_share: float = 0.15,
    workers: int | None = None,
) -> dict[str, dict]:
    """
    Turn a published data set into domains: ``output_dir/<domain>`` with ``images/``, ``labels/`` (16-bit instance
    maps), ``split.json``, ``dataset.json`` and ``contact_sheet.png``; and ``output_dir/<name>_problems.csv``.

    Running it again does nothing if it was finished, and goes on where it was stopped.

    Args:
        datasets: what can be prepared, see :func:`load_datasets`.
        dataset: which of them.
        output_dir: the folder of domains, the ``dataset_dir`` of a training.
        source: the downloaded folder or zip file, or a folder of zip files.
        name: name of the domain; default that of the data set.
        download: fetch the files first and take them as source.
        download_dir: where they go, each set's into a folder of its name.
        sha256: checksum of a downloaded file, or of several by name, where none is known.
        mpp: µm per pixel, if it is unknown or you know better.
        validation_share, testing_share: for what the publication does not divide, see :func:`assign_splits`.
        workers: processes; default one for each core.

    Returns:
        what ``dataset.json`` says, by domain.

    Raises:
        DataError: when nothing can be prepared at all.
        SystemExit: with code 1, after all else was written, when images could not be converted.
    """
    entry = choose_dataset(datasets, dataset)
    entry = entry if mpp is None else {**entry, "mpp": float(mpp)}
    if download:
        source = download_dataset(dataset, entry, Path(download_dir) / dataset, sha256)
    if source is None:
        how = entry.get("get") or "Download it."
        raise DataError("source", f"what you downloaded of '{dataset}' is not given", f"{how} Set source to it.")
    name, output_dir = name or dataset, Path(output_dir)
    check_places(name, Path(source), output_dir)
    work = output_dir / WORK / name
    about = {"entry": entry, "name": name, "shares": [validation_share, testing_share], "version": VERSION}
    key = hashlib.sha256(f"{fingerprint(source)}{json.dumps(about, sort_keys=True)}".encode()).hexdigest()
    if (done := _finished(work, key, output_dir)) is not None:
        logger.info("%s is already prepared in %s", name, output_dir)
        return _finish(done, output_dir, name)
    table = f"{name}_problems.csv"
    own = OwnFiles(output_dir, [table] if has_columns(output_dir / table, COLUMNS) else ())
    own.check([table])
    check_domain_folders(name, entry, output_dir, work)
    for folder in domain_folders(name, entry, output_dir):
        OwnFiles(folder).remove_partial(("images", "labels"))
    for folder, file, older_than in ((work.parent, HASHES, LEFT), (work, "done.json", 0.0)):
        OwnFiles(folder).remove_partial(("records",), older_than)  # hashes are those of all sets
        OwnFiles(folder).add([file])
    opened, samples, skipped = _find(source, entry, work / "sources")
    records = _convert(samples, name, entry, output_dir, work, key, workers)
    rows = [problem("error", s.finding.problem, image=s.file, detail=s.finding.detail) for s in skipped]
    for record in records:
        rows += [
            problem(f["severity"], f["problem"], record["domain"], record["file"], f["where"], f["detail"])
            for f in record["findings"]
        ]
    good = [record for record in records if "nuclei" in record]
    if not good:
        write_table(own.path(table), rows, COLUMNS)
        raise DataError(source, f"none of {len(samples)} images can be converted", f"The first: {rows[0]['detail']}")
    _divide(good, entry, opened, output_dir, validation_share, testing_share)
    rows += verify(good, entry, output_dir, work.parent / HASHES)
    rows += _check_archives(opened, entry)
    write_table(own.path(table), rows, COLUMNS)
    written = _write_domains(good, rows, entry, dataset, opened, output_dir)
    write_json(work / "done.json", {"key": key, "domains": written, "failed": sum(_failed(row) for row in rows)})
    shutil.rmtree(work / "sources", ignore_errors=True)
    return _finish(read_json(work / "done.json"), output_dir, name)


def _find(source: str | os.PathLike, entry: Mapping, work: Path) -> tuple[Source, list[Sample], list[Skipped]]:
    """Samples of the source; zip files in a folder are unpacked only if the folder itself holds none."""
    skipped: list[Skipped] = []
    for unpack in (False, True):
        opened = open_source(source, work, unpack)
        samples, skipped = find_samples(opened.files, entry["parts"])
        if samples:
            return opened, samples, skipped
    wanted = " or ".join(dict.fromkeys(str(part["images"]) for part in entry["parts"]))
    there = ", ".join(list(opened.files)[:5]) or "nothing"
    what = f"no image with an annotation in the published layout ({wanted}) is there, but {there}"
    hint = f"{entry.get('get', '')} Set source to the folder or zip file as it was published.".strip()
    if skipped:
        hint = f"{skipped[0].file}: {skipped[0].finding.problem}. {hint}"
    raise DataError(source, what, hint)


def _convert(
    samples: Sequence[Sample], name: str, entry: Mapping, output_dir: Path, work: Path, key: str, workers: int | None
) -> list[dict]:
    by_stain = entry.get("domain_by") == "stain"
    tasks = [
        Task(sample, output_dir, _domain(sample, name), file, work / "records" / f"{file}.json", key, by_stain)
        for sample, file in zip(samples, file_names(list(samples)))
    ]
    for domain in sorted({task.domain for task in tasks if not task.by_stain}):
        OwnFiles(output_dir / domain).add(DOMAIN_FILES)  # here, for the processes would do so at once
    workers = min(workers or os.cpu_count() or 1, len(tasks))
    progress = {"total": len(tasks), "desc": f"preparing {name}", "unit": "image"}
    if workers == 1:
        return list(tqdm(map(convert, tasks), **progress))
    with ProcessPoolExecutor(workers, initializer=end_with_parent) as pool:
        return list(tqdm(pool.map(convert, tasks, chunksize=1), **progress))


def _domain(sample: Sample, name: str) -> str:
    return name + (sample.domain or "")


def _divide(
    records: list[dict], entry: Mapping, opened: Source, output_dir: Path, validation: float, testing: float
) -> None:
    """Give each record its group and its split; ``published_split`` keeps what the publication says."""
    for record in records:
        fields = record["fields"]
        kind = next((kind for kind in ("patient", "group", "field") if fields.get(kind)), None)
        record["group_kind"] = "patient" if record["patient"] else kind
        record["group"] = record["patient"] or (fields[kind] if kind else record["file"])
    if entry.get("group_by") == "borders":
        for domain in {record["domain"] for record in records}:
            members = [record for record in records if record["domain"] == domain]
            images = [read_image(output_dir / domain / "images" / f"{record['file']}.png") for record in members]
            for record, number in zip(members, group_by_borders(images)):
                record["group_kind"], record["group"] = "field", f"f{number:03d}"
    published = published_splits(
        [record["name"] for record in records], [record["split"] for record in records],
        [record["fields"] for record in records], entry.get("split"), opened.files,
    )  # fmt: skip
    for domain in {record["domain"] for record in records}:
        members = [index for index, record in enumerate(records) if record["domain"] == domain]
        splits = assign_splits(
            [published[i] for i in members], [str(records[i]["group"]) for i in members], validation, testing
        )
        for index, split in zip(members, splits):
            records[index]["published_split"], records[index]["split"] = published[index], split


def _write_domains(
    records: Sequence[dict], rows: Sequence[dict], entry: Mapping, dataset: str, opened: Source, output_dir: Path
) -> dict[str, dict]:
    written = {}
    kept = ("title", "license", "commercial_use", "citation", "home", "tissue", "stain", "magnification", "notes")
    for domain in sorted({record["domain"] for record in records}):
        folder, members = output_dir / domain, [record for record in records if record["domain"] == domain]
        split = {part: [_entry(r) for r in members if r["split"] == part] for part in SPLITS}
        resolutions = [record["mpp"] for record in members if record["mpp"]]
        about = {
            "name": domain,
            "dataset": dataset,
            **{key: entry[key] for key in kept if key in entry},
            "mpp": entry.get("mpp") or (float(np.median(resolutions)) if resolutions else None),
            "images": len(members),
            "nuclei": sum(record["nuclei"] for record in members),
            "splits": {
                part: {"images": len(split[part]), "nuclei": sum(r["nuclei"] for r in members if r["split"] == part)}
                for part in SPLITS
            },
            "split": "published" if all(r["published_split"] == r["split"] for r in members) else "by group",
            "image_sizes_wxh": dict(Counter(f"{record['width']}x{record['height']}" for record in members)),
            "median_nucleus_area_px": float(np.median([area for r in members for area in r["areas"]] or [0])),
            "mean_foreground_fraction": round(float(np.mean([record["foreground"] for record in members])), 4),
            "problems": dict(Counter(row["problem"] for row in rows if row["domain"] in ("", domain))),
            "source": {"archives": {name: sha256_of(path) for name, path in opened.archives.items()}},
        }
        if any(r["published_split"] for r in members) and about["split"] != "published":
            about["split"] = "published, with validation taken from training by group"
        write_json(folder / "dataset.json", about)
        sheet = [{**_entry(r), "title": f"{r['file'][:34]}  {r['split']}  {r['nuclei']} nuclei"} for r in members]
        write_contact_sheet(folder, sheet, folder / "contact_sheet.png")
        write_json(folder / "split.json", split)  # last: with it the folder is a domain
        written[domain] = about
    return written


def _entry(record: Mapping) -> dict:
    file = f"{record['file']}.png"
    entry = {"image": f"images/{file}", "label": f"labels/{file}"}
    if record["group_kind"]:
        entry[record["group_kind"]] = str(record["group"])
    more = {
        key: value for key, value in record["fields"].items() if key not in entry and key not in ("split", "suffix")
    }
    return entry | more | ({"mpp": record["mpp"]} if record["mpp"] else {})


def _check_archives(opened: Source, entry: Mapping) -> list[dict]:
    known = dict(entry.get("archives") or {})
    known |= {file["file"]: file["sha256"] for file in entry.get("download") or () if file.get("sha256")}
    rows = []
    for name, path in opened.archives.items():
        if known and (computed := sha256_of(path)) not in known.values():
            detail = f"sha256 {computed} is none of the published files' known to us: another version, or changed"
            rows.append(problem("warning", "unknown archive", image=name, detail=detail))
    return rows


def _finished(work: Path, key: str, output_dir: Path) -> dict | None:
    try:
        done = read_json(work / "done.json")
        listed = {d: read_json(output_dir / d / "split.json") for d in done["domains"]}
    except (DataError, KeyError):
        return None
    files = [
        output_dir / d / e[k]
        for d, split in listed.items()
        for p in split.values()
        for e in p
        for k in ("image", "label")
    ]
    return done if done["key"] == key and not done["failed"] and all(map(os.path.isfile, files)) else None


def _finish(done: Mapping, output_dir: Path, name: str) -> dict[str, dict]:
    """Tell what is there; end the process if images failed."""
    for domain, about in done["domains"].items():
        counts = ", ".join(f"{part} {about['splits'][part]['images']}" for part in SPLITS)
        license_ = about.get("license") or "not stated"
        print(f"{domain}: {about['images']} images ({counts}), {about['nuclei']} nuclei; license {license_}")
        for kind, count in sorted(about["problems"].items()):
            print(f"  {count} x {kind}")
    if any(about["problems"] for about in done["domains"].values()):
        print(f"Problems by image: {output_dir / f'{name}_problems.csv'}")
    if failed := done["failed"]:
        raise SystemExit(f"{failed} files could not be used; see {output_dir / f'{name}_problems.csv'}")
    return dict(done["domains"])


def _failed(row: Mapping) -> bool:
    return row["severity"] == "error"
