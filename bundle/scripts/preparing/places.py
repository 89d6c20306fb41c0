"""Where a prepared set goes, and whether it may."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from scripts.errors import DataError
from scripts.files import read_json
from scripts.owned import OwnFiles
from scripts.preparing.converting import DOMAIN_FILES
from scripts.preparing.stains import STAINS

__all__ = ["HASHES", "WORK", "check_domain_folders", "check_places", "domain_folders"]

WORK = ".preparing"  # in the folder of domains: what was done so far, hidden from the domain list
HASHES = "hashes.json"  # there, of the images of all domains


def check_places(name: str, source: Path, output_dir: Path) -> None:
    """DataError when something would be written into the source, or outside of the folder of domains."""
    if name != Path(name).name or name.startswith("."):
        raise DataError("name", f"'{name}' does not name a folder", "Give a name without / and without a dot before it")
    inside, outside = source.resolve(), output_dir.resolve()
    if outside.is_relative_to(inside):
        raise DataError(output_dir, f"domains would be written into the source, {source}", "Choose another output_dir")
    if inside.is_relative_to(outside / WORK):
        raise DataError(source, "this folder is removed when the domains are prepared", "Move it elsewhere")


def check_domain_folders(name: str, entry: Mapping, output_dir: Path, work: Path) -> None:
    """DataError when a domain's folder holds files of somebody else: they are never mixed with prepared ones."""
    for folder in domain_folders(name, entry, output_dir):
        ours = DOMAIN_FILES[0] in OwnFiles(folder) or folder.name in _prepared_earlier(work)
        if not ours and os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
            raise DataError(folder, "it exists, and was not prepared by this verb", "Move it away, or set name.")


def domain_folders(name: str, entry: Mapping, output_dir: Path) -> list[Path]:
    """The folders that the domains of a data set may get."""
    ends = {part.get("domain") or "" for part in entry["parts"]}
    if entry.get("domain_by") == "stain":
        ends = {f"{end}_{stain}" for end in ends for stain in STAINS}
    return sorted(output_dir / f"{name}{end}" for end in ends)


def _prepared_earlier(work: Path) -> set[str]:
    """Domains that a version before 0.4.1, which left no mark in them, is known to have begun."""
    records = (read_json(path) for path in work.glob("records/*.json"))
    return {record["domain"] for record in records if isinstance(record, dict) and "nuclei" in record}
