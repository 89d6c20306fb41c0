from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from scipy.io import loadmat
from scripts.data.label_checks import look_at_label
from scripts.data.readers import read_label, read_mask, whole_numbers
from scripts.errors import DataError
from scripts.preparing.layouts import Sample
from scripts.preparing.polygons import MAX_INSTANCES, Finding, Instances

__all__ = ["compact", "read_binary", "read_map", "read_mat", "read_text"]


def read_map(sample: Sample, shape: Sequence[int]) -> Instances:
    """Label maps with one number per nucleus, as images (16-bit TIFF or PNG)."""
    return compact(read_label(sample.labels[0]), sample.labels[0])


def read_binary(sample: Sample, shape: Sequence[int]) -> Instances:
    """
    Masks, anything above 0 being nucleus, whose nuclei are kept apart by background: their connected components.

    Options:
        connectivity: 8 (default) or 4 neighbours; with 8 nuclei that touch by a corner are one.
    """
    mask = read_mask(sample.labels[0])
    structure = None if sample.options.get("connectivity", 8) == 4 else np.ones((3, 3))
    return compact(ndimage.label(mask, structure)[0], sample.labels[0])


def read_mat(sample: Sample, shape: Sequence[int]) -> Instances:
    """
    MATLAB files (up to version 7) with an instance map (H, W).

    Options:
        key: name of the map; default ``inst_map``.

    Raises:
        DataError: when the file is damaged, of version 7.3, or has no such map.
    """
    path, key = sample.labels[0], sample.options.get("key", "inst_map")
    try:
        content = loadmat(path, variable_names=[key])
    except NotImplementedError as error:
        hint = "Save it from MATLAB with -v7."
        raise DataError(path, "MATLAB files of version 7.3 are not read", hint) from error
    except Exception as error:  # scipy has many errors for damaged files
        raise DataError(path, f"the file cannot be read ({error})", "Copy it again from its source.") from error
    if key not in content:
        raise DataError(path, f"it holds no '{key}'", "Choose the data set of this layout.")
    return compact(np.asarray(content[key]), path)


def read_text(sample: Sample, shape: Sequence[int]) -> Instances:
    """
    The text files of the CPM challenges: width and height, then one number for each pixel, row by row.

    Raises:
        DataError: when numbers are missing or no integers.
    """
    (path,) = sample.labels
    try:
        with open(path, encoding="ascii") as file:
            numbers = np.array(file.read().split(), dtype=np.int64)
        width, height = numbers[:2]
        label = numbers[2:].reshape(height, width)
    except (OSError, ValueError) as error:
        hint = "Copy it again from its source."
        raise DataError(path, "it does not hold width, height and as many integers", hint) from error
    return compact(label, path)


def compact(label: np.ndarray, path: str) -> Instances:
    """
    A label map as 16 bits, keeping the ids if they fit.

    One id whose pixels lie apart is told: files saved with too few bits or by class have many of them, and then
    different nuclei share a number.

    Raises:
        DataError: when the map is not two-dimensional, or its values are fractional, negative or too many.
    """
    if label.ndim != 2:
        raise DataError(path, f"the label map has shape {label.shape}", "Give one plane of rows and columns.")
    label = whole_numbers(label, path)
    if label.max(initial=0) > MAX_INSTANCES:
        ids, label = np.unique(label, return_inverse=True)
        label = label.reshape(-1, *label.shape[-1:]) + (0 not in ids)
        if len(ids) > MAX_INSTANCES:
            raise DataError(path, f"{len(ids)} nuclei are more than 16-bit labels can hold", "Split the image.")
    label = np.ascontiguousarray(label, dtype=np.uint16)
    findings = []
    if wrong := look_at_label(label).wrong:
        findings.append(Finding("no map of nuclei", detail=f"{wrong}; training refuses it"))
    if apart := _apart(label):
        detail = "their pixels lie apart; check that different nuclei do not share a number"
        findings.append(Finding("one id in several pieces", f"{len(apart)} ids", f"{_listed(apart)}: {detail}"))
    return Instances(label, findings)


def _apart(label: np.ndarray) -> list[int]:
    """Ids whose pixels are not connected (8 neighbours)."""
    boxes = enumerate(ndimage.find_objects(label), start=1)
    eight = np.ones((3, 3))
    return [number for number, box in boxes if box and ndimage.label(label[box] == number, eight)[1] > 1]


def _listed(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids[:5])) + (" and others" if len(ids) > 5 else "")
