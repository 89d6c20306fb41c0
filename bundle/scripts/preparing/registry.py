"""The table of data sets that can be prepared, and the readers of their formats."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path

from scripts.errors import DataError
from scripts.files import read_json
from scripts.preparing.layouts import check_part

__all__ = ["choose_dataset", "load_datasets"]

REQUIRED = {"parts"}
OPTIONAL = {
    "title", "license", "commercial_use", "citation", "home", "get", "tissue", "stain", "magnification", "mpp", "notes",
    "download", "archives", "split", "domain_by", "group_by", "expected", "shift",
}  # fmt: skip


def load_datasets(path: str | os.PathLike, own: Mapping[str, Mapping] | None = None) -> dict[str, dict]:
    """
    The table of data sets that can be prepared.

    An entry says what a set is (``title, license, commercial_use, citation, home, get, tissue, stain, magnification,
    notes``), how it is laid out (``parts``, see :func:`find_pairs`) and

    - ``mpp``: µm per pixel, null if unknown or different within the set;
    - ``download``: ``[{"url", "file", "sha256"}]`` if an address is open to everybody, sha256 null if none is known;
    - ``archives``: sha256 by name, of files that have to be fetched by hand;
    - ``split``: the published one, if folders do not tell it, see :func:`assign_splits`;
    - ``domain_by``: ``"stain"`` makes a domain of each stain, told by the colours;
    - ``group_by``: ``"borders"`` keeps tiles together whose borders continue each other;
    - ``expected``: numbers of images by split, each a list of those that were published;
    - ``shift``: down and right, by which the published annotation was measured to be off, in pixels.

    Args:
        path: a JSON file ``{name: entry}``.
        own: further entries, or entries that replace one.

    Raises:
        DataError: when an entry has unknown keys or lacks one.
    """
    content = read_json(str(path))
    datasets = {**{key: value for key, value in content.items() if not key.startswith("_")}, **(own or {})}
    for name, entry in datasets.items():
        unknown, missing = set(entry) - REQUIRED - OPTIONAL, REQUIRED - set(entry)
        if unknown or missing:
            what = f"unknown key '{min(unknown)}'" if unknown else f"key '{min(missing)}' is missing"
            valid = ", ".join(sorted(REQUIRED | OPTIONAL))
            raise DataError(f"datasets::{name}", what, f"An entry has the keys {valid}.")
        for part in entry["parts"]:
            check_part(part)
    return datasets


def choose_dataset(datasets: Mapping[str, dict], name: str | None) -> dict:
    """
    The entry of a data set.

    Raises:
        DataError: when there is none, naming those there are.
    """
    if name in datasets:
        return datasets[name]
    close = difflib.get_close_matches(name or "", datasets, n=1)
    hint = f"Did you mean '{close[0]}'? " if close else ""
    what = "no data set is chosen" if name is None else f"data set '{name}' is not known"
    own = f"Describe your own in own_datasets, as in {Path('configs', 'datasets.json')}."
    raise DataError("dataset", what, f"{hint}There are {', '.join(sorted(datasets))}. {own}")
