from __future__ import annotations

import csv
import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.data.domains import SPLITS
from scripts.errors import DataError
from scripts.preparing.layouts import compile_pattern

__all__ = ["assign_splits", "published_splits"]

logger = logging.getLogger(__name__)

# how folders and tables call the parts
ALIASES = {
    **dict.fromkeys(("train", "training"), "training"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "testing"),
}


def published_splits(
    names: Sequence[str],
    splits: Sequence[str | None],
    fields: Sequence[Mapping[str, str]],
    rule: Mapping | None,
    files: Mapping[str, Path],
) -> list[str | None]:
    """
    The part of each image that its publication names.

    Args:
        names: the images' names.
        splits: parts known from the layout.
        fields: what the file names tell; ``split`` is understood as train, val, test and the like.
        rule: None; or ``{"field": "patient", "validation": [...], "testing": [...]}``, values of a field (or of
            ``name``), all others being training; or ``{"table": pattern, "name": column, "column": column, "parts":
            {value: part}}``, a CSV file of the source.
        files: the source's files by name.

    Returns:
        a part, or None where none is published.

    Raises:
        DataError: when the rule's table cannot be read.
    """
    rule = rule or {}
    table = _read_table(rule, files) if "table" in rule else {}
    found: list[str | None] = []
    for name, split, values in zip(names, splits, fields):
        split = split or ALIASES.get(str(values.get("split", "")).lower()) or table.get(name)
        if split is None and "field" in rule:
            value = name if rule["field"] == "name" else values.get(rule["field"])
            part = next((p for p in ("validation", "testing") if value in rule.get(p, ())), "training")
            split = part if value is not None else None
        found.append(split)
    return found


def assign_splits(
    splits: Sequence[str | None], groups: Sequence[str], validation_share: float, testing_share: float
) -> list[str]:
    """
    Complete the published parts, keeping groups together.

    Images without a part are divided by their groups, in the order of the groups' SHA-256: ``testing_share`` of the
    groups are tested on, ``validation_share`` validated on. If nothing is validated on, groups are taken out of
    training for it. The same everywhere and at every time.

    Args:
        splits: the published part or None, for each image.
        groups: the group (patient, slide, field or the image itself) of each.
        validation_share, testing_share: shares of the groups; at least one group is validated on if there are two.

    Returns:
        the part of each image.
    """
    result = list(splits)
    free = _ordered({group for split, group in zip(splits, groups) if split is None})
    if free:
        taken = {group: split for split, group in zip(splits, groups) if split is not None}
        testing = set(free[: round(testing_share * len(free))]) if "testing" not in splits else set()
        for index, group in enumerate(groups):
            if result[index] is None:
                result[index] = taken.get(group) or ("testing" if group in testing else "training")
    if "validation" not in result and validation_share > 0:
        tested = {group for split, group in zip(result, groups) if split == "testing"}
        training = _ordered({group for split, group in zip(result, groups) if split == "training"} - tested)
        if len(training) > 1:
            chosen = set(training[-max(round(validation_share * len(set(groups))), 1) :][: len(training) - 1])
            moved = zip(result, groups)
            result = ["validation" if s == "training" and group in chosen else s for s, group in moved]
    return [split if split in SPLITS else "training" for split in result]


def _ordered(groups: set[str]) -> list[str]:
    return sorted(groups, key=lambda group: hashlib.sha256(group.encode()).hexdigest())


def _read_table(rule: Mapping, files: Mapping[str, Path]) -> dict[str, str]:
    expression = compile_pattern(rule["table"])
    found = sorted(name for name in files if expression.fullmatch(name))
    if not found:
        logger.warning("The published split, %s, is not among the files; images are divided by group", rule["table"])
        return {}
    path = files[found[0]]
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return {row[rule["name"]]: rule["parts"][row[rule["column"]]] for row in csv.DictReader(file)}
    except (OSError, KeyError, UnicodeError) as error:
        what = f"it has no split by the columns {rule['name']} and {rule['column']} ({error})"
        raise DataError(path, what, "Copy the file again from its source.") from error
