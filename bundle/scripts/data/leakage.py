from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from scripts.data.domains import check_domains, load_items
from scripts.data.readers import read_image
from scripts.data.similarity import HASH_BITS, near_duplicates, perceptual_hash
from scripts.errors import DataError
from scripts.files import is_store, read_json, write_json
from scripts.phases import PHASES
from scripts.wording import counted

__all__ = ["TCGA_PATIENT", "check_leakage", "find_leaks", "from_text", "hash_images", "to_text"]

logger = logging.getLogger(__name__)

_TOO_GOOD = "Results on them would be too good: take them out of a split, or leave the domain out"
_TRANSDUCTIVE = (
    "Their labels are not learned from, but the model is fitted to the images that it is tested on (transductive), so "
    "that results are not those on new images: take them out of a split"
)
# The Cancer Genome Atlas: project, tissue source site, participant; the rest of a barcode names sample and slide
TCGA_PATIENT = re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}", re.IGNORECASE)


@PHASES.within("checking")
def check_leakage(
    domains: Sequence[dict], leakage: str = "refuse", cache: str | os.PathLike | None = None
) -> list[dict]:
    """
    Refuse to train when a test image of the primary domain is known to the training: its result would be no test.

    So it is where the training knows its image without its label: told apart, for that may be meant (transductive).

    Args:
        domains: the domains that are trained on, see :func:`check_domains`.
        leakage: ``"refuse"``, or ``"allow"`` to warn only.
        cache: see :func:`hash_images`.

    Returns:
        what was found, see :func:`find_leaks`.

    Raises:
        DataError: when ``leakage`` is ``"refuse"`` and something was found, or images cannot be read and so not be
            compared.
    """
    if leakage not in ("refuse", "allow"):
        raise ValueError(f"leakage must be 'refuse' or 'allow', got '{leakage}'.")
    try:
        tested = load_items(check_domains(domains)[:1], "testing")
    except DataError as error:
        _refuse_or_warn(leakage, error.path, f"test images cannot be compared: {error.problem}", error.hint)
        return []
    trained = load_items(domains, "training") if tested else []
    hashes, unread = hash_images([item["image"] for item in (*tested, *trained)], cache)
    leaks = find_leaks(tested, trained, hashes)
    unlabelled = {item["image"] for item in trained if item.get("unlabelled")}
    known = [leak for leak in leaks if leak["training"] not in unlabelled]
    seen = [leak for leak in leaks if leak["training"] in unlabelled]
    for found, where, hint in (
        (known, "known to the training", _TOO_GOOD),
        (seen, "among the training images without labels, or of their patients", _TRANSDUCTIVE),
    ):
        if found:
            shown = "; ".join(f"{Path(leak['test']).name} and {leak['training']} ({leak['why']})" for leak in found[:3])
            more = f" and {len(found) - 3} more pairs" if len(found) > 3 else ""
            count = len({leak["test"] for leak in found})
            told = f"{counted(count, 'test image')} of the primary {'is' if count == 1 else 'are'}"
            what = f"{told} {where}: {shown}{more}"
            _refuse_or_warn(leakage, Path(tested[0]["image"]).parent, what, hint)
    if unread:
        first, reason = next(iter(unread.items()))
        others = "".join(f", {path}" for path in list(unread)[1:3]) + (" and others" if len(unread) > 3 else "")
        what = f"{len(unread)} images cannot be compared with the test images ({first}: {reason}{others})"
        _refuse_or_warn(leakage, Path(first).parent, what, "Mend the files, or take them out of the split")
    return leaks


def _refuse_or_warn(leakage: str, path: str | os.PathLike, what: str, hint: str) -> None:
    if leakage == "refuse":
        raise DataError(path, what, f"{hint.rstrip('.')}, or set leakage to 'allow'.")
    logger.warning("%s: %s. %s", path, what, hint)


def find_leaks(tested: Sequence[dict], trained: Sequence[dict], hashes: Mapping[str, np.ndarray | None]) -> list[dict]:
    """
    Pairs of a test and a training item that are near-duplicates or of the same patient.

    Patients are the same when both names hold the same TCGA patient barcode, in whatever domain, or when the items
    of one domain have the same group. Near-duplicates are told by :func:`perceptual_hash`; it does not find a small
    part of a large image.

    Args:
        tested, trained: items of :func:`load_items`.
        hashes: of their images, see :func:`hash_images`; one that has none is like no other.

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
    first, second = ([hashes.get(item["image"]) for item in items] for items in (tested, trained))
    for i, j, bits in near_duplicates(first, second):
        pair = tested[i]["image"], trained[j]["image"]
        leaks.setdefault(pair, f"near-duplicates, {bits} of {HASH_BITS} bits differ")
    return [{"test": test, "training": training, "why": why} for (test, training), why in leaks.items()]


def hash_images(
    paths: Sequence[str], cache: str | os.PathLike | None = None
) -> tuple[dict[str, np.ndarray | None], dict[str, str]]:
    """
    Perceptual hashes of image files.

    Args:
        paths: image files.
        cache: a JSON file in which hashes are kept, so that the next run is quick; None keeps nothing. What cannot be
            read is never kept, and files that changed are read anew.

    Returns:
        hashes by path, None for a picture of one colour, which is like nothing; and what is wrong with each file
        that cannot be read.
    """
    paths = list(dict.fromkeys(map(str, paths)))
    stored = _read_cache(cache)
    if stored is None:
        logger.warning("%s: it holds no hashes of images, and none are kept; remove it", cache)
        stored, cache = {}, None
    keys = {path: _key(path) for path in paths}
    hashes = {path: stored[key] for path, key in keys.items() if key in stored}
    missing, unread = [path for path in paths if path not in hashes], {}
    # decoding lets other threads run
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for path, found in zip(missing, pool.map(_hash_file, missing)):
            if isinstance(found, DataError):
                unread[path] = found.problem
            else:
                hashes[path] = found
    kept = {keys[path]: value for path, value in hashes.items() if value is not None and keys[path]}
    if cache is not None and kept.keys() - stored.keys():
        _write_cache(Path(cache), kept)
    return hashes, unread


def _patients(item: dict) -> set[str]:
    texts = (item["group"], Path(item["image"]).name)
    barcodes = {match.group().upper() for text in texts for match in TCGA_PATIENT.finditer(text)}
    return barcodes | {item["group"]}


def _hash_file(path: str) -> np.ndarray | None | DataError:
    try:
        return perceptual_hash(read_image(path))
    except DataError as error:
        return error


def _key(path: str) -> str | None:
    if is_store(path):  # what its folder tells does not change with what is in it
        return None
    try:
        about = os.stat(path)
    except OSError:
        return None
    return f"{path} {about.st_size} {about.st_mtime_ns}"


def _read_cache(cache: str | os.PathLike | None) -> dict[str, np.ndarray] | None:
    """None when the file is something else."""
    if cache is None or not os.path.lexists(cache):
        return {}
    try:
        # versions before 0.4.1 kept null for what they could not read
        return {key: from_text(text) for key, text in read_json(cache).items() if text is not None}
    except (ValueError, AttributeError, TypeError):
        return None


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
