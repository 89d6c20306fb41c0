"""Domains that a folder holds, each in a folder of its own, as a domain list."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from scripts.data.datalists import find_datalist, is_domain, list_entries, read_object, stored_mpp
from scripts.data.domains import check_domains
from scripts.errors import DataError

__all__ = ["auxiliary_domains", "domain_list"]


def domain_list(
    dataset_dir: str | os.PathLike,
    primary: str | None = None,
    auxiliary: str | Iterable[str] = "all",
    unlabelled: str | Iterable[str] = "none",
) -> list[dict]:
    """
    Make the domain list from a folder whose sub-folders are domains.

    A sub-folder is a domain if it holds a datalist (``split.json``, or a ``dataset.json`` with a training list) or
    ``images/`` and ``labels/``, either directly or inside ``training/``.

    Args:
        dataset_dir: the folder of domain folders.
        primary: name of the primary domain. None is allowed if there is only one domain, or if
            ``dataset_dir/domains.json`` names one: ``{"primary": name}``.
        auxiliary: ``"all"`` for every other domain with training items, a list of names, a comma-separated string of
            names, or an empty list or ``"none"`` for single-domain training.
        unlabelled: names, likewise, of those among them whose labels are never read, if there are any; in their folders
            images are enough.

    Returns:
        ``[{"name", "role", "root", "datalist", "mpp"}, ...]``, the primary first; ``datalist`` is None for a domain
        of plain folders, ``mpp`` is None if unknown. Unlabelled ones also have ``"labels": False``.

    Raises:
        DataError: for an unknown name, naming what is there, or when the primary is not determined.
    """
    folder, without = Path(dataset_dir), _names(unlabelled)
    found = _find_domains(folder, without)
    _check_found(folder, without, found)
    primary = primary or _default_primary(folder, found)
    if primary is None:
        hint = f"Set primary to its name. {_what_is_there(folder, found)}"
        raise DataError(folder, "which domain is the primary is not said", hint)
    _check_found(folder, [primary], found)
    others = _auxiliaries(folder, found, auxiliary, primary, without)
    domains = [_domain(folder / primary, "primary"), *others]
    for name in set(without) - {domain["name"] for domain in domains}:
        raise DataError(folder, f"the unlabelled domain '{name}' has no role", "Name it as primary or auxiliary, too.")
    return check_domains([{**d, "labels": False} if d["name"] in without else d for d in domains])


def auxiliary_domains(dataset_dir: str | os.PathLike, auxiliary: str | Iterable[str] = "all") -> list[dict]:
    """
    The auxiliary part of a domain list whose primary lies elsewhere; see :func:`domain_list`.

    Raises:
        DataError: for an unknown name, or when there is no domain.
    """
    folder = Path(dataset_dir)
    return _auxiliaries(folder, _find_domains(folder), auxiliary)


def _find_domains(folder: Path, unlabelled: Sequence[str] = ()) -> list[str]:
    if not folder.is_dir():
        raise DataError(folder, "there is no such folder", "Set dataset_dir to the folder that holds your domains.")
    if is_domain(folder):
        hint = f"Set dataset_dir to {folder.parent} and primary to '{folder.name}'."
        raise DataError(folder, "this is a domain itself, not a folder of domains", hint)
    found = [path.name for path in sorted(folder.iterdir()) if is_domain(path, path.name not in unlabelled)]
    if not found:
        hint = "Put every domain in a folder of its own, with split.json or with images/ and labels/."
        raise DataError(folder, "no domain folder found", hint + _images_alone(folder))
    return found


def _auxiliaries(
    folder: Path,
    found: Sequence[str],
    auxiliary: str | Iterable[str],
    primary: str | None = None,
    unlabelled: Sequence[str] = (),
) -> list[dict]:
    if auxiliary == "all":
        others = [name for name in found if name != primary]
        names = [name for name in others if list_entries(folder / name, None, "training", name not in unlabelled)]
    else:
        names = _names(auxiliary)
    _check_found(folder, names, found)
    return [_domain(folder / name, "auxiliary") for name in names]


def _names(names: str | Iterable[str] | None) -> list[str]:
    if isinstance(names, str):
        return [name.strip() for name in names.split(",") if name.strip() not in ("", "none")]
    return list(names or ())


def _check_found(folder: Path, names: Iterable[str], found: Sequence[str]) -> None:
    for name in names:
        if name not in found:
            raise DataError(folder, f"there is no domain '{name}'", _what_is_there(folder, found))


def _what_is_there(folder: Path, found: Sequence[str]) -> str:
    return f"Domains found: {', '.join(found)}.{_images_alone(folder, found)}"


def _images_alone(folder: Path, found: Sequence[str] = ()) -> str:
    alone = [path.name for path in sorted(folder.iterdir()) if path.name not in found and is_domain(path, labels=False)]
    return f" Images alone, which training takes with --unlabelled: {', '.join(alone)}." if alone else ""


def _domain(root: Path, role: str) -> dict:
    return {
        "name": root.name,
        "role": role,
        "root": str(root),
        "datalist": find_datalist(root),
        "mpp": stored_mpp(root),
    }


def _default_primary(folder: Path, found: list[str]) -> str | None:
    path = folder / "domains.json"
    if path.is_file():
        return read_object(path).get("primary")
    return found[0] if len(found) == 1 else None
