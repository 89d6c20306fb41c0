"""The domain list: what it may say, what of it a training uses, and the images of its domains."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scripts.data.datalists import (
    SPLITS,
    check_files,
    find_datalist,
    has_part_folders,
    list_entries,
    stem_of,
    stored_mpp,
)
from scripts.errors import DataError

__all__ = [
    "LABELLED",
    "SPLITS",
    "check_domains",
    "domain_names",
    "in_turn",
    "is_labelled",
    "load_items",
    "training_domains",
    "training_mpp",
    "which_labelled",
]

logger = logging.getLogger(__name__)

GROUP_KEYS = ("patient", "field", "group")
REQUIRED_KEYS = {"name", "role", "root"}
OPTIONAL_KEYS = {"datalist", "gaps", "labels", "mpp"}
LABELLED = "labelled"  # name of the primary whose images a server hands over


def check_domains(domains: Sequence[dict]) -> list[dict]:
    """
    Check a domain list and return it with the primary first, the order that gives every domain its index.

    Entries are ``{"name", "role": "primary" | "auxiliary", "root"}`` with optional ``"datalist"`` (a JSON file,
    relative to root, or what such a file holds), ``"mpp"`` (micrometres per pixel), ``"gaps"`` ("close" for labels
    drawn with a line of background between nuclei that touch, else "keep"; see ``annotation_style.set_gaps``) and
    ``"labels"`` (False for a domain whose images are aligned, and whose labels are never read). Roots become absolute.

    Raises:
        DataError: unless exactly one domain is primary, names are unique and all keys and values are valid.
    """
    for number, domain in enumerate(domains):
        entry = f"domains[{number}]"
        unknown, missing = set(domain) - REQUIRED_KEYS - OPTIONAL_KEYS, REQUIRED_KEYS - set(domain)
        if unknown or missing:
            what = f"unknown key '{min(unknown)}'" if unknown else f"key '{min(missing)}' is missing"
            valid = f"name, role, root and optionally {' and '.join(sorted(OPTIONAL_KEYS))}"
            raise DataError(entry, what, f"A domain has the keys {valid}.")
        if domain["role"] not in ("primary", "auxiliary"):
            raise DataError(entry, f"role '{domain['role']}' is not known", "Use 'primary' or 'auxiliary'.")
        mpp = domain.get("mpp")
        if mpp is not None and not (isinstance(mpp, (int, float)) and mpp > 0):
            raise DataError(entry, f"mpp {mpp!r} is not a positive number", "Give micrometres per pixel, or null.")
        if not isinstance(domain.get("labels", True), bool):
            raise DataError(entry, f"labels {domain['labels']!r} is not true or false", "Give one of the two.")
    names = [domain["name"] for domain in domains]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError("domains", f"'{repeated[0]}' is listed more than once", "Name every domain once.")
    primaries = [domain["name"] for domain in domains if domain["role"] == "primary"]
    if len(primaries) != 1:
        listed = f": {', '.join(primaries)}" if primaries else ""
        raise DataError("domains", f"{len(primaries)} domains are primary{listed}", "Make exactly one the primary.")
    rooted = ({**domain, "root": os.path.abspath(domain["root"])} for domain in domains)
    return sorted(rooted, key=lambda domain: domain["role"] != "primary")


def training_domains(
    domains: Sequence[dict] | None,
    mode: str,
    labelled: Sequence[Mapping[str, str]] | None = None,
    held_out: float = 0.0,
    train_on_validation: bool = False,
) -> list[dict]:
    """
    The domains that a training uses, checked, the primary first.

    Args:
        domains: the domain list, see :func:`check_domains`; None is an empty one.
        mode: ``"single"`` leaves the auxiliary domains out.
        labelled: ``[{"image", "label"}, ...]`` that a server such as MONAI Label hands over: they become the training
            part of the primary, in place of the one that ``domains`` may have; its auxiliaries stay.
        held_out: where a part of each training image is held out to judge by, the images of a labelled primary that
            lists no parts are not left for validation as well: with two of them, both are for training.
        train_on_validation: the validation parts of all domains are for training, and none is left to judge by.

    Raises:
        DataError: as :func:`check_domains`, or when nothing is labelled, in none of the domains that are used.
    """
    if labelled is not None:
        if not labelled:
            raise DataError("labelled", "no image has a label yet", "Label at least one image.")
        primary = {"name": LABELLED, "role": "primary", "root": str(Path(labelled[0]["image"]).parent)}
        primary["datalist"] = {"training": [dict(item) for item in labelled]}
        domains = [primary, *(domain for domain in domains or () if domain["role"] == "auxiliary")]
    checked = check_domains(domains or ())
    used = checked[:1] if mode == "single" else checked
    if not any(is_labelled(domain) for domain in used):
        names = ", ".join(domain["name"] for domain in used)
        hint = "Add a labelled domain, and train with a mode other than single."
        raise DataError("domains", f"there are no labels to learn from in {names}", hint)
    if train_on_validation:
        return [_validation_joined(domain) for domain in used]
    if held_out and is_labelled(used[0]) and not _lists_parts(used[0]):
        used = [_validation_joined(used[0]), *used[1:]]
        left = len(used[0]["datalist"]["testing"])
        if left:
            told = "%s: %d of %d images are left for testing; list them in split.json to train on them"
            logger.warning(told, used[0]["root"], left, left + len(used[0]["datalist"]["training"]))
    return used


def _lists_parts(domain: Mapping) -> bool:
    """Whether the domain says itself what is for training; else its folder does not exist, or is split here."""
    root = Path(domain["root"])
    return bool(domain.get("datalist") or find_datalist(root) or has_part_folders(root) or not root.is_dir())


def _validation_joined(domain: Mapping) -> dict:
    """The domain, all of its images listed: those for validation are for training."""
    root = Path(domain["root"])
    if not root.is_dir():  # which is told where its items are loaded
        return dict(domain)
    listed = {part: list_entries(root, domain.get("datalist"), part, is_labelled(domain)) for part in SPLITS}
    training = listed["training"] + listed["validation"]
    return {**domain, "datalist": {"training": training, "testing": listed["testing"]}}


def which_labelled(domains: Sequence[Mapping]) -> list[bool]:
    """Of each domain, by index, whether it has labels to learn from."""
    return [is_labelled(domain) for domain in domains]


def is_labelled(domain: Mapping) -> bool:
    """Whether the labels of an entry of the domain list may be read."""
    return domain.get("labels", True)


def domain_names(domains: Sequence[dict]) -> list[str]:
    """Names of the domains by index; index 0 is the primary."""
    return [domain["name"] for domain in check_domains(domains)]


def training_mpp(domains: Sequence[dict], target_mpp: float | None) -> float | None:
    """The pixel size, in micrometres, of a training: ``target_mpp``, else the primary's; None if unknown."""
    return target_mpp or check_domains(domains)[0].get("mpp")


def load_items(
    domains: Sequence[dict], split: str, limit_groups: int | None = None, required: bool = False, limit_draw: int = 0
) -> list[dict]:
    """
    List the items of one split of all domains.

    A domain's items come from its datalist, a JSON file ``{"training": [{"image", "label", ...}], "validation": ...,
    "testing": ...}`` with paths relative to root (MONAI Decathlon datalists, with ``test``, are such files), or from
    the content of such a file in its place, or from
    plain folders, where an image and its label share the file name up to the suffix: ``training/images`` and
    ``training/labels``, and so for validation and testing; or ``images`` and ``labels`` alone, which are split here.
    That split orders the names by their SHA-256 and takes 15 % for validation (at least one of two or more images),
    15 % for testing and the rest for training: the same everywhere, but blind to patients; keep those apart with a
    ``split.json``. Of an unlabelled domain without ``labels``, where nothing could be measured, all are for training.

    Args:
        domains: the domain list, see :func:`check_domains`.
        split: ``"training"``, ``"validation"`` or ``"testing"``.
        limit_groups: keep only so many groups of the primary's training part, for experiments with little data.
        limit_draw: which: 0 the first ones in sorted order; another number a random order of its own, of which more
            groups are those of fewer and others.
        required: there must be an item of the primary; others without any are named in a warning.

    Returns:
        ``[{"image", "label", "domain", "domain_name", "mpp", "group"}, ...]``: two paths, the domain's index (0 is
        the primary), its name, micrometres per pixel (nan if neither entry, domain nor ``root/dataset.json`` gives
        it), and ``"<domain>/<patient>"`` (else field, group or the image's own name), the unit that splits should keep
        together. All values are strings or numbers, so that items of different domains collate. Items of an unlabelled
        domain have ``"unlabelled": True`` in place of ``"label"``.

    Raises:
        DataError: naming the files, when one is missing or has no partner; naming the domain, when it has no
            training item.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got '{split}'.")
    if limit_groups is not None and limit_groups < 1:
        raise ValueError(f"limit_groups must be at least 1 or None, got {limit_groups}.")
    items: list[dict] = []
    for index, domain in enumerate(check_domains(domains)):
        root, name = Path(domain["root"]), domain["name"]
        if not root.is_dir():
            raise DataError(root, f"the folder of domain '{name}' does not exist", "Correct its root.")
        entries = list_entries(root, domain.get("datalist"), split, is_labelled(domain))
        if split == "training" and not entries:
            hint = f"Give it a training part or take '{name}' out of the domain list."
            raise DataError(root, f"domain '{name}' has no training item", hint)
        if required and not entries:
            if index == 0:
                hint = f"Choose another --split or --primary: {_parts_of(domain)}."
                raise DataError(root, f"the primary has no image in the split '{split}'", hint)
            logger.warning("%s: it has no image in the split '%s' and is left out", root, split)
        check_files(entries, root)
        mpp = domain.get("mpp") or stored_mpp(root) or math.nan
        part = [
            {
                "image": entry["image"],
                **({"label": entry["label"]} if is_labelled(domain) else {"unlabelled": True}),
                "domain": index,
                "domain_name": name,
                "mpp": float(entry.get("mpp") or mpp),
                "group": f"{name}/{_group(entry)}",
            }
            for entry in entries
        ]
        if limit_groups is not None and split == "training" and index == 0:
            groups = sorted({item["group"] for item in part})
            if limit_draw:
                groups = list(np.random.default_rng(limit_draw).permutation(groups))
            part = [item for item in part if item["group"] in groups[:limit_groups]]
        items += part
    return items


def in_turn(items: Sequence[dict]) -> list[dict]:
    """The first image of every group, then the second of every group, and so on."""
    seen: dict[str, int] = {}
    turns = []
    for item in items:
        turns.append(seen.get(item["group"], 0))
        seen[item["group"]] = turns[-1] + 1
    return [items[n] for n in sorted(range(len(items)), key=turns.__getitem__)]


def _parts_of(domain: Mapping) -> str:
    counts = {part: len(list_entries(Path(domain["root"]), domain.get("datalist"), part)) for part in SPLITS}
    return ", ".join(f"{part} has {count}" for part, count in counts.items())


def _group(entry: dict) -> str:
    return str(next((entry[key] for key in GROUP_KEYS if key in entry), stem_of(Path(entry["image"]))))
