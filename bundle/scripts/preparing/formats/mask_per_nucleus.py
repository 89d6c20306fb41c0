from __future__ import annotations

import csv
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scripts.data.readers import read_mask
from scripts.errors import DataError
from scripts.files import read_text
from scripts.preparing.layouts import Sample
from scripts.preparing.polygons import MAX_INSTANCES, Finding, Instances

__all__ = ["decode_runs", "merge_masks", "read_folder", "read_runs"]


def read_folder(sample: Sample, shape: Sequence[int]) -> Instances:
    """
    One mask image for each nucleus, merged in the order of their names; a later one on top.

    Raises:
        DataError: when a mask is damaged or of another size than the image.
    """
    masks = []
    for path in sorted(sample.labels):
        mask = read_mask(path)
        if mask.shape != tuple(shape[:2]):
            what = f"the mask has {mask.shape[1]}x{mask.shape[0]} pixels, its image {shape[1]}x{shape[0]}"
            raise DataError(path, what, "Copy both again from their source.")
        masks.append((Path(path).name, mask))
    return merge_masks(masks, shape, sample.image)


def read_runs(sample: Sample, shape: Sequence[int]) -> Instances:
    """
    Run-length encoded nuclei of a table with a row for each: the 2018 Data Science Bowl's ``ImageId,EncodedPixels``.

    Runs are pairs of a start, counted from 1 down the columns, and a length.

    Raises:
        DataError: when the table cannot be read, has no row of the image, or runs leave the image.
    """
    (path,) = sample.labels
    rows = _table(path).get(sample.name)
    if not rows:
        raise DataError(path, f"it has no row of image '{sample.name}'", "Use the table that belongs to the images.")
    masks = []
    for number, runs in enumerate(rows, start=1):
        try:
            mask = decode_runs([int(value) for value in runs.split()], shape)
        except ValueError as error:
            raise DataError(
                path, f"row {number} of image '{sample.name}' is wrong: {error}", "Get it again."
            ) from error
        masks.append((f"row {number}", mask))
    return merge_masks(masks, shape, path)


def decode_runs(runs: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """
    Mask (H, W) of runs: start, length, start, length, ...; starts count from 1, down the columns.

    Raises:
        ValueError: when the runs are no pairs or leave the image.
    """
    height, width = shape[:2]
    if len(runs) % 2:
        raise ValueError("a run lacks its length")
    starts, lengths = np.array(runs[0::2], int) - 1, np.array(runs[1::2], int)
    if len(starts) and (starts.min() < 0 or lengths.min() < 0 or (starts + lengths).max() > height * width):
        raise ValueError("a run leaves the image")
    edges = np.zeros(height * width + 1, np.int32)
    np.add.at(edges, starts, 1)
    np.add.at(edges, starts + lengths, -1)
    return (np.cumsum(edges[:-1]) > 0).reshape(width, height).T


def merge_masks(masks: Sequence[tuple[str, np.ndarray]], shape: Sequence[int], path: str) -> Instances:
    """
    One label map of (name, mask) pairs, numbered in their order, a later one on top.

    Raises:
        DataError: when there are more than 16 bits can number.
    """
    if len(masks) > MAX_INSTANCES:
        raise DataError(path, f"{len(masks)} nuclei are more than 16-bit labels can hold", "Split the image.")
    label, findings = np.zeros(tuple(shape[:2]), np.uint16), []
    for number, (name, mask) in enumerate(masks, start=1):
        if not mask.any():
            findings.append(Finding("empty mask", name, "it marks no pixel"))
            continue
        if overlap := int((label[mask] > 0).sum()):
            findings.append(Finding("overlapping masks", name, f"{overlap} pixels of earlier nuclei are covered"))
        label[mask] = number
    left = set(np.unique(label).tolist())
    for number, (name, mask) in enumerate(masks, start=1):
        if number not in left and mask.any():
            findings.append(Finding("nucleus covered by later ones", name, "nothing of it is left"))
    return Instances(label, findings)


@functools.lru_cache(maxsize=4)
def _table(path: str) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {}
    try:
        for row in csv.DictReader(read_text(path).splitlines()):
            rows.setdefault(row["ImageId"], []).append(row["EncodedPixels"])
    except (OSError, KeyError, UnicodeError) as error:
        raise DataError(path, "it is no table with ImageId and EncodedPixels", "Get it again.") from error
    return rows
