from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from scripts.data.domains import load_items
from scripts.data.readers import read_image
from scripts.data.similarity import HASH_BITS, near_duplicates, perceptual_hash
from scripts.errors import DataError
from scripts.files import read_json, write_json

__all__ = ["TCGA_PATIENT", "check_leakage", "find_leaks", "from_text", "hash_images", "to_text"]

logger = logging.getLogger(__name__)

# The Cancer Genome Atlas: project, tissue source site, participant; the rest of a barcode names sample and slide
TCGA_PATIENT = re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}", re.IGNORECASE)


def check_leakage(
    domains: Sequence[dict], leakage: str = "refuse", cache: str | os.PathLike | None = None
) -> list[dict]:
    """
    Refuse to train when a test image of the primary domain is known to the training: its result would be no test.

    Args:
        domains: the domains that are trained on, see :func:`check_domains`.
        leakage: ``"refuse"``, or ``"allow"`` to warn only.
        cache: a JSON file in which the images' hashes are kept, so that the next run is quick; None keeps nothing.

    Returns:
        what was found, see :func:`find_leaks`.

    Raises:
        DataError: when something was found and ``leakage`` is ``"refuse"``.
    """
    if leakage not in ("refuse", "allow"):
        raise ValueError(f"leakage must be 'refuse' or 'allow', got '{leakage}'.")
    try:
        tested = [item for item in load_items(domains, "testing") if item["domain"] == 0]
    except DataError as error:
        logger.warning("Whether test images leak into the training cannot be checked: %s", error)
        return []
    leaks = find_leaks(tested, load_items(domains, "training"), cache) if tested else []
    if not leaks:
        return leaks
    shown = "; ".join(f"{Path(leak['test']).name} and {leak['training']} ({leak['why']})" for leak in leaks[:3])
    what = f"{len({leak['test'] for leak in leaks})} test images of the primary are known to the training: {shown}"
    if len(leaks) > 3:
        what += f" and {len(leaks) - 3} more pairs"
    if leakage == "refuse":
        hint = "Take these images out of a split, leave the domain out, or set leakage to 'allow'."
        raise DataError(Path(tested[0]["image"]).parent, what, hint)
    logger.warning("%s. Results on the test part are too good", what)
    return leaks


def find_leaks(tested: Sequence[dict], trained: Sequence[dict], cache: str | os.PathLike | None = None) -> list[dict]:
    """
    Pairs of a test and a training item that are near-duplicates or of the same patient.

    Patients are the same when both names hold the same TCGA patient barcode, in whatever domain, or when the items
    of one domain have the same group. Near-duplicates are told by :func:`perceptual_hash`; it does not find a small
    part of a large image.

    Args:
        tested, trained: items of :func:`load_items`.
        cache: see :func:`check_leakage`.

    Returns:
        ``[{"test", "training", "why"}, ...]``, at most one for each pair.
    """
    leaks: dict[tuple[str, str], str] = {}
    by_patient: dict[str, list[dict]] = {}
    for item in trained:
        for patient in _patients(item):
            by_patient.setdefault(patient, []).append(item)
    for item in tested:
        for patient in sorted(_patients(item)):
            for other in by_patient.get(patient, ()):
                leaks[item["image"], other["image"]] = f"same patient or group, {patient}"
    hashes = hash_images([item["image"] for item in (*tested, *trained)], cache)
    first, second = ([hashes[item["image"]] for item in items] for items in (tested, trained))
    for i, j, bits in near_duplicates(first, second):
        pair = tested[i]["image"], trained[j]["image"]
        leaks.setdefault(pair, f"near-duplicates, {bits} of {HASH_BITS} bits differ")
    return [{"test": test, "training": training, "why": why} for (test, training), why in leaks.items()]


def hash_images(paths: Sequence[str], cache: str | os.PathLike | None = None) -> dict[str, np.ndarray | None]:
    """
    Perceptual hashes of image files, by path; None for one that cannot be read or compared.

    Args:
        paths: image files.
        cache: see :func:`check_leakage`; entries of files that changed are made anew.
    """
    paths = list(dict.fromkeys(map(str, paths)))
    stored = _read_cache(cache)
    keys = {path: _key(path) for path in paths}
    missing = [path for path in paths if keys[path] is None or keys[path] not in stored]
    # decoding lets other threads run
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for path, value in zip(missing, pool.map(_hash_file, missing)):
            stored[keys[path] or path] = value
    if cache is not None and missing:
        _write_cache(Path(cache), {keys[path]: stored[keys[path]] for path in paths if keys[path]})
    return {path: stored[keys[path] or path] for path in paths}


def _patients(item: dict) -> set[str]:
    texts = (item["group"], Path(item["image"]).name)
    barcodes = {match.group().upper() for text in texts for match in TCGA_PATIENT.finditer(text)}
    return barcodes | {item["group"]}


def _hash_file(path: str) -> np.ndarray | None:
    try:
        return perceptual_hash(read_image(path))
    except DataError as error:
        logger.warning("not compared with other images: %s", error)
        return None


def _key(path: str) -> str | None:
    try:
        about = os.stat(path)
    except OSError:
        return None
    return f"{path} {about.st_size} {about.st_mtime_ns}"


def _read_cache(cache: str | os.PathLike | None) -> dict[str, np.ndarray | None]:
    try:
        content = read_json(cache) if cache is not None else {}
        return {key: from_text(text) for key, text in content.items()}
    except (ValueError, AttributeError):
        return {}  # a cache that cannot be used is made anew


def _write_cache(cache: Path, hashes: dict[str, np.ndarray | None]) -> None:
    try:
        write_json(cache, {key: to_text(value) for key, value in hashes.items()})
    except OSError as error:
        logger.warning("hashes of the images are not kept: %s", error)


def to_text(value: np.ndarray | None) -> str | None:
    """A hash as hexadecimal text."""
    return None if value is None else np.packbits(value).tobytes().hex()


def from_text(text: str | None) -> np.ndarray | None:
    """A hash from :func:`to_text`."""
    if text is None:
        return None
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))[: 8 * HASH_BITS]
    return bits.astype(bool).reshape(8, HASH_BITS)
