from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scripts.data.readers import read_image
from scripts.errors import DataError
from scripts.preparing.formats import aperio_xml, asap_xml, coco, geojson, label_images, mask_per_nucleus, npy_stacks
from scripts.preparing.layouts import Sample, Skipped, find_pairs
from scripts.preparing.polygons import Instances

__all__ = ["FORMATS", "Format", "find_samples", "read_sample"]


@dataclass(frozen=True)
class Format:
    """
    How annotations of one kind are read.

    Args:
        read_labels: nuclei of a sample, for an image of a shape.
        read_image: the image of a sample; by default the file it names.
        find: samples among files, by a part of a layout; by default images paired with annotations.
        expand: samples in one pair of files, for stacks.
        read_mpp: what the annotation says of the resolution, in µm per pixel.
    """

    read_labels: Callable[[Sample, Sequence[int]], Instances]
    read_image: Callable[[Sample], np.ndarray] = lambda sample: read_image(sample.image)
    find: Callable[[Mapping[str, Path], Mapping], tuple[list[Sample], list[Skipped]]] = find_pairs
    expand: Callable[[Sample], list[Sample]] = lambda sample: [sample]
    read_mpp: Callable[[Sample], float | None] = lambda sample: None


FORMATS = {
    "aperio_xml": Format(aperio_xml.read_labels, read_mpp=aperio_xml.microns_per_pixel),
    "asap_xml": Format(asap_xml.read_labels),
    "geojson": Format(geojson.read_labels),
    "coco": Format(coco.read_labels, find=coco.find),
    "mat": Format(label_images.read_mat),
    "map": Format(label_images.read_map),
    "binary": Format(label_images.read_binary),
    "text": Format(label_images.read_text),
    "mask_per_nucleus": Format(mask_per_nucleus.read_folder),
    "runs": Format(mask_per_nucleus.read_runs),
    "npy": Format(npy_stacks.read_labels, npy_stacks.read_image, expand=npy_stacks.expand),
}


def find_samples(files: Mapping[str, Path], parts: Sequence[Mapping]) -> tuple[list[Sample], list[Skipped]]:
    """
    All samples of a layout.

    Args:
        files: the source's files by name.
        parts: see :func:`find_pairs`; parts may be alternatives of which the source has one.

    Returns:
        samples in a fixed order, and files that take no part though they should.

    Raises:
        DataError: for an unknown format.
    """
    samples: list[Sample] = []
    skipped: list[Skipped] = []
    for part in parts:
        if part.get("format") not in FORMATS:
            raise DataError(
                "datasets", f"format '{part.get('format')}' is not known", f"There are {', '.join(FORMATS)}."
            )
        kind = FORMATS[part["format"]]
        found, left = kind.find(files, part)
        samples += [expanded for sample in found for expanded in kind.expand(sample)]
        skipped += left
    # what one part could not pair, another may have
    used = {sample.image for sample in samples} | {label for sample in samples for label in sample.labels}
    return samples, [entry for entry in skipped if str(files.get(entry.file)) not in used]


def read_sample(sample: Sample) -> tuple[np.ndarray, Instances]:
    """
    Image (H, W, 3) uint8 and nuclei of a sample.

    Raises:
        DataError: when either cannot be read, or they differ in size.
    """
    kind = FORMATS[sample.format]
    image = kind.read_image(sample)
    instances = kind.read_labels(sample, image.shape[:2])
    if instances.label.shape != image.shape[:2]:
        (rows, columns), (height, width) = instances.label.shape, image.shape[:2]
        what = f"the annotation has {columns}x{rows} pixels, its image {width}x{height}"
        raise DataError(sample.labels[0], what, "Pair the image with the annotation that was drawn on it.")
    return image, instances
