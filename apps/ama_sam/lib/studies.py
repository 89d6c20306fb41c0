from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from lib.http_errors import told_to_client
from monailabel.config import settings
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException
from scripts.data.readers import IMAGE_SUFFIXES, file_suffix, read_image, read_label
from scripts.errors import DataError
from scripts.preparing.formats import asap_xml
from scripts.preparing.layouts import Sample
from scripts.slides.listing import SLIDE_SUFFIXES
from scripts.slides.reading import Slide, open_slide

__all__ = ["Studies", "known_mpp_of", "label_map", "slide_of"]


class Studies(LocalDatastore):
    """
    MONAI Label's folder of images and labels, which takes in only what inference and training can use.

    Args:
        folder: of the images; labels are in ``labels/final`` and ``labels/original``.
    """

    def __init__(self, folder: str) -> None:
        kinds = [f"*{suffix}" for suffix in dict.fromkeys((*IMAGE_SUFFIXES, *SLIDE_SUFFIXES, ".xml"))]
        super().__init__(
            folder,
            extensions=[*settings.MONAI_LABEL_DATASTORE_FILE_EXT, *kinds],
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    def add_image(self, image_id: str, image_filename: str, image_info: dict) -> str:
        with told_to_client():
            if image_id != os.path.basename(image_id) or image_id.startswith("."):
                raise DataError(image_id, "an image's id is a plain name", "Give one without folders.")
            if slide_of(image_filename) is None:
                read_image(image_filename)
            return super().add_image(image_id, image_filename, image_info)

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict) -> str:
        with told_to_client():
            if not (image := self.get_image_uri(image_id)):
                raise ImageNotFoundException(f"there is no image '{image_id}' in the studies")
            if label_tag != os.path.basename(label_tag) or label_tag.startswith("."):
                raise DataError(label_tag, "a label's tag is a plain name", "Use 'final' or 'original'.")
            # an inference may find nothing, but what a person labels is to be learned from
            if not label_map(image, label_filename).any() and label_tag == DefaultLabelTag.FINAL:
                raise DataError(label_filename, "no nucleus is labelled in it", "Label at least one.")
            return super().save_label(image_id, label_filename, label_tag, label_info)


def slide_of(path: str | os.PathLike) -> Slide | None:
    """The slide in a file, or None for an image that is read whole: those of other formats, and TIFF without tiles."""
    suffix = file_suffix(path)
    if suffix not in IMAGE_SUFFIXES:
        if suffix not in SLIDE_SUFFIXES:
            known = ", ".join(dict.fromkeys((*IMAGE_SUFFIXES, *SLIDE_SUFFIXES)))
            raise DataError(path, f"format '{suffix}' is not known", f"Use one of {known}.")
        return open_slide(path)
    if suffix not in SLIDE_SUFFIXES:
        return None
    try:
        return open_slide(path)
    except DataError:
        return None


def label_map(image: str | os.PathLike, label: str | os.PathLike) -> np.ndarray:
    """
    Nuclei of a label: an image of ids or a mask, or ASAP XML as QuPath sends it.

    Args:
        image: file of the image that was labelled.
        label: file of the label.

    Returns:
        (H, W) integer ids, 0 is background.

    Raises:
        DataError: when it cannot be read, has another size than the image, or belongs to a slide: what of that was
            looked at, nobody knows.
    """
    if (slide := slide_of(image)) is not None:
        hint = "Send the region as an image of its own with its label (in QuPath: answer 'Yes', for the selected ROI)."
        raise DataError(slide.path, "a label of a whole slide cannot be trained on", hint)
    shape = read_image(image).shape[:2]
    if file_suffix(label) == ".xml":
        sample = Sample(Path(label).stem, str(image), (str(label),), "asap_xml")
        return asap_xml.read_labels(sample, shape).label
    ids = read_label(label)
    if ids.shape != shape:
        sizes = " x ".join(map(str, ids.shape[::-1])), " x ".join(map(str, shape[::-1]))
        raise DataError(label, f"the label has {sizes[0]} pixels, its image {sizes[1]}", "Label the image itself.")
    return ids


def known_mpp_of(*candidates: object) -> float | None:
    """The first of several micrometres per pixel that is a positive number; clients send 0 or nothing for unknown."""
    for value in candidates:
        try:
            if value is not None and float(value) > 0:
                return float(value)
        except (TypeError, ValueError):
            raise DataError("mpp", f"{value!r} is no number of micrometres per pixel", "Give e.g. 0.25.") from None
    return None
