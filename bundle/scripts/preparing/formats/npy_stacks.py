from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scripts.errors import DataError
from scripts.preparing.formats.label_images import compact
from scripts.preparing.layouts import Sample
from scripts.preparing.polygons import Finding, Instances

__all__ = ["expand", "read_image", "read_labels"]


def expand(sample: Sample) -> list[Sample]:
    """
    A sample for each image of a pair of stacks, (N, H, W, 3) images and (N, H, W, C) instance maps.

    Extra files: ``types``, an array of N strings, becomes the field ``organ``; ``info``, a table whose first column
    is ``<source>-<number>``, names the images and gives the field ``group``.

    Raises:
        DataError: when the stacks or the extra files differ in length.
    """
    images, labels = _open(sample.image), _open(sample.labels[0])
    counts = {"images": len(images), "labels": len(labels)}
    types, names = sample.extra.get("types"), sample.extra.get("info")
    organs = _open(types).astype(str) if types else None
    rows = _names(names) if names else None
    counts |= {key: len(values) for key, values in (("types", organs), ("info", rows)) if values is not None}
    if len(set(counts.values())) > 1:
        lengths = ", ".join(f"{count} {key}" for key, count in counts.items())
        raise DataError(sample.image, f"the files do not belong together: {lengths}", "Copy all of them again.")
    width = len(str(max(len(images) - 1, 0)))
    samples = []
    for index in range(len(images)):
        fields = dict(sample.fields)
        name = rows[index] if rows is not None else f"{sample.name}_{index:0{width}d}"
        if rows is not None:
            fields["group"] = name.rsplit("-", 1)[0]
        if organs is not None:
            fields["organ"] = str(organs[index])
        samples.append(replace(sample, name=name, index=index, fields=fields))
    return samples


def read_image(sample: Sample) -> np.ndarray:
    """
    One image of the stack, (H, W, 3) uint8.

    Raises:
        DataError: when values are not within [0, 255].
    """
    image = np.asarray(_open(sample.image)[sample.index])
    if image.ndim != 3 or image.shape[2] != 3:
        raise DataError(sample.image, f"image {sample.index} has shape {image.shape}", "Use the published stacks.")
    if image.dtype != np.uint8:
        if not np.isfinite(image).all() or image.min() < 0 or image.max() > 255:
            raise DataError(sample.image, f"image {sample.index} is not within [0, 255]", "Copy the file again.")
        image = np.rint(image).astype(np.uint8)
    return np.ascontiguousarray(image)


def read_labels(sample: Sample, shape: Sequence[int]) -> Instances:
    """
    One instance map of the stack.

    Options:
        channels: the channels (last axis) that hold instances; default the first. Ids need be unique only within a
            channel; the map is renumbered channel by channel, in the order of ids, a later channel on top.
    """
    channels = sample.options.get("channels", [0])
    stack = np.asarray(_open(sample.labels[0])[sample.index])
    if stack.ndim != 3 or max(channels) >= stack.shape[2]:
        raise DataError(sample.labels[0], f"map {sample.index} has shape {stack.shape}", "Use the published stacks.")
    if len(channels) == 1:
        return compact(stack[..., channels[0]], sample.labels[0])
    merged, findings = np.zeros(stack.shape[:2], np.int64), []
    for channel in channels:
        part = compact(stack[..., channel], sample.labels[0])
        findings += part.findings
        ids, index = np.unique(part.label, return_inverse=True)
        mask = part.label > 0
        if overlap := int((merged[mask] > 0).sum()):
            findings.append(Finding("overlapping channels", f"channel {channel}", f"{overlap} pixels are covered"))
        merged[mask] = (merged.max() + index.reshape(mask.shape) + (ids[0] != 0))[mask]
    return Instances(compact(merged, sample.labels[0]).label, findings)


def _open(path: str) -> np.ndarray:
    try:
        # never pickles: they can run code
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(path, f"it cannot be read as a NumPy array ({error})", "Copy it again.") from error


def _names(path: str) -> list[str]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        return [row[0] for row in list(csv.reader(file))[1:] if row]
