from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scripts.data.leakage import TCGA_PATIENT
from scripts.errors import DataError
from scripts.preparing.polygons import Finding

__all__ = ["Sample", "Skipped", "compile_pattern", "find_pairs", "patient_of"]

PART_KEYS = {"images", "labels", "format", "split", "domain", "extra", "options", "mpp"}


@dataclass(frozen=True)
class Sample:
    """
    One image of a published set and where its nuclei are.

    Args:
        name: unique in its domain; names the files that are written.
        image: path of the image, or of the stack that holds it.
        labels: paths of its annotation: one file, or one for each nucleus.
        format: how they are read, a key of ``formats.FORMATS``.
        split: the published part, or None.
        domain: what is added to the set's name to name the domain, or None.
        fields: what the names tell: patient, organ, fold, ...
        index: its place in a stack.
        extra: further files of the part, by the name the layout gives them.
        options: how this layout differs from others of the format.
        mpp: µm per pixel of this part, if the set has several.
    """

    name: str
    image: str
    labels: tuple[str, ...]
    format: str
    split: str | None = None
    domain: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    index: int | None = None
    extra: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, object] = field(default_factory=dict)
    mpp: float | None = None


@dataclass(frozen=True)
class Skipped:
    """A file that is in the source but takes no part, and why."""

    file: str
    finding: Finding


def compile_pattern(pattern: str) -> re.Pattern:
    """
    A regular expression for file names such as ``**/Slide_{patient}/{name}.png``.

    ``*`` and ``?`` stand for any characters and any one character but ``/``, ``**/`` for any folders or none,
    ``{field}`` for a part of a name, the same wherever it is repeated, and ``{field:expression}`` for one that a
    regular expression describes. Capitals and small letters are the same, as on most users' disks.
    """
    expression, known = "", set()
    for piece in re.findall(r"\*\*/|\{\w+(?::(?:[^{}]|\{\d+(?:,\d*)?\})+)?\}|.", pattern):
        if piece == "**/":
            expression += "(?:.*/)?"
        elif piece == "*":
            expression += "[^/]*"
        elif piece == "?":
            expression += "[^/]"
        elif piece.startswith("{") and len(piece) > 2:
            name, _, inner = piece[1:-1].partition(":")
            expression += f"(?P={name})" if name in known else f"(?P<{name}>{inner or '[^/]+'})"
            known.add(name)
        else:
            expression += re.escape(piece)
    return re.compile(expression, re.IGNORECASE)


def find_pairs(files: Mapping[str, Path], part: Mapping) -> tuple[list[Sample], list[Skipped]]:
    """
    Pair the images of one part of a layout with their annotations.

    Args:
        files: the source's files by name, see :class:`Source`.
        part: ``images`` and ``labels`` patterns (see :func:`compile_pattern`; several may be given, the first that
            matches counts), ``format``, and optionally ``split``, ``domain``, ``extra`` (further patterns by name),
            ``options`` and ``mpp``. An image belongs to the annotations whose fields have the same values.

    Returns:
        the samples by name, and the files without partner or with several.

    Raises:
        DataError: when the part has keys that mean nothing.
    """
    check_part(part)
    skipped: list[Skipped] = []
    images, labels = _matches(files, part["images"]), _matches(files, part["labels"])
    extra = {key: _only(files, pattern) for key, pattern in part.get("extra", {}).items()}
    shared = sorted(_fields(part["images"]) & _fields(part["labels"]))
    by_key: dict[tuple, list[tuple[str, dict]]] = defaultdict(list)
    for file, values in labels.items():
        by_key[_key(values, shared)].append((file, values))
    samples, taken = [], set()
    per_nucleus = part["format"] == "mask_per_nucleus"
    owners: dict[tuple, str] = {}
    for file, values in images.items():
        key = _key(values, shared)
        partners = by_key.get(key, [])
        if not partners:
            skipped.append(Skipped(file, Finding("annotation missing", detail="the image has none", severity="error")))
            continue
        rival = owners.setdefault(key, file) if shared else file
        if rival != file or (len(partners) > 1 and not per_nucleus):
            others = rival if rival != file else ", ".join(name for name, _ in partners)
            detail = f"its name does not tell it from others: {others}"
            skipped.append(Skipped(file, Finding("ambiguous", detail=detail, severity="error")))
            taken.add(key)
            continue
        taken.add(key)
        merged = {**partners[0][1], **values} if not per_nucleus else dict(values)
        samples.append(
            Sample(
                name=merged.pop("name", Path(file).stem),
                image=str(files[file]),
                labels=tuple(str(files[name]) for name, _ in partners),
                format=part["format"],
                split=part.get("split"),
                domain=part.get("domain"),
                fields=merged,
                extra=extra,
                options=part.get("options", {}),
                mpp=part.get("mpp"),
            )
        )
    for key, partners in by_key.items():
        if key not in taken and images:
            finding = Finding("image missing", detail="the annotation has no image", severity="error")
            skipped += [Skipped(name, finding) for name, _ in partners[:1]]
    return sorted(samples, key=lambda sample: (sample.name, sample.image)), skipped


def check_part(part: Mapping) -> None:
    unknown, missing = set(part) - PART_KEYS, {"images", "labels", "format"} - set(part)
    if unknown or missing:
        what = f"unknown key '{min(unknown)}'" if unknown else f"key '{min(missing)}' is missing"
        raise DataError(
            "datasets", f"a part of the layout is wrong: {what}", f"Keys are {', '.join(sorted(PART_KEYS))}."
        )


def patient_of(sample: Sample) -> str | None:
    """The patient a file belongs to: the first three parts of a TCGA barcode, or the layout's ``patient`` field."""
    for text in (sample.name, *sample.fields.values()):
        if barcode := TCGA_PATIENT.search(str(text)):
            return barcode.group().upper()
    return sample.fields.get("patient")


def _matches(files: Mapping[str, Path], patterns: str | Sequence[str]) -> dict[str, dict]:
    """Field values of the files that match, by name; of several patterns the first that matches any file counts."""
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        expression = compile_pattern(pattern)
        found = {name: match.groupdict() for name in files if (match := expression.fullmatch(name))}
        if found:
            return found
    return {}


def _only(files: Mapping[str, Path], pattern: str) -> str:
    found = _matches(files, pattern)
    return os.fspath(files[min(found)]) if found else ""


def _fields(patterns: str | Sequence[str]) -> set[str]:
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return set.intersection(*(set(compile_pattern(pattern).groupindex) for pattern in patterns))


def _key(values: Mapping[str, str], shared: Sequence[str]) -> tuple:
    return tuple(values[name].lower() for name in shared)
