from __future__ import annotations

import filecmp
import logging
import math
import os
from pathlib import Path

import numpy as np
from fastapi import HTTPException
from lib.http_errors import told_to_client
from lib.schema import plain_name
from monailabel.config import settings
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException
from scripts.data.readers import IMAGE_SUFFIXES, file_suffix, read_image, read_label
from scripts.errors import DataError
from scripts.files import is_store
from scripts.preparing.formats import asap_xml
from scripts.preparing.layouts import Sample
from scripts.slides.listing import SLIDE_SUFFIXES
from scripts.slides.reading import open_slide
from scripts.slides.slide import Slide

__all__ = ["Studies", "known_mpp_of", "label_map", "slide_of", "tile_path"]

logger = logging.getLogger(__name__)


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
        for store in filter(is_store, sorted(Path(folder).iterdir())):
            logger.warning(
                "passed over: %s", DataError(store, "images here are single files", "Convert it to OME-TIFF")
            )

    def path_of(self, image_id: str) -> Path | None:
        """
        File of an image, links followed; None if there is no such image.

        Raises:
            DataError: when it lies outside of the studies.
        """
        found = self._datastore.objects.get(image_id)
        return found and self._inside(self._datastore.image_path(), image_id, found.image.ext)

    def label_path_of(self, image_id: str, tag: str) -> Path | None:
        """As :meth:`path_of`, of an image's label."""
        found = self._datastore.label(image_id, tag)
        return found and self._inside(self._datastore.label_path(tag), image_id, found.ext)

    def get_image_uri(self, image_id: str) -> str:
        with told_to_client():
            return str(self.path_of(image_id) or "")

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        with told_to_client():
            return str(self.label_path_of(label_id, label_tag) or "")

    def datalist(self, full_path: bool = True) -> list[dict[str, str]]:
        labelled = self.get_labeled_images()
        final = DefaultLabelTag.FINAL
        return [{"image": self.get_image_uri(image), "label": self.get_label_uri(image, final)} for image in labelled]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Images to offer for labelling: those outside of the studies are left out."""
        return [image for image in super().get_unlabeled_images(label_tag, labels) if self._can_be_used(image)]

    def add_image(self, image_id: str, image_filename: str, image_info: dict) -> str:
        with told_to_client():
            _check_name(image_id, "id")
            self._inside(self._datastore.image_path(), image_id, file_suffix(image_filename))
            if slide_of(image_filename) is None:
                read_image(image_filename)
            if others := self._files_of(image_id):
                # labels belong to the image that is there; clients send the same one again beside each label
                same = len(others) == 1 and file_suffix(others[0]) == file_suffix(image_filename)
                if not (same and filecmp.cmp(others[0], image_filename, shallow=False)):
                    hint = "Give another id, or delete that image first (DELETE /datastore/)."
                    raise HTTPException(409, f"{image_id}: the studies hold another image of this id. {hint}")
            return super().add_image(image_id, image_filename, image_info)

    def remove_image(self, image_id: str) -> None:
        with told_to_client():
            if (path := self.path_of(image_id)) and path.is_dir():  # MONAI Label would remove all that is in it
                raise DataError(image_id, "it is a folder, no image", "Remove it by hand.")
            super().remove_image(image_id)

    def update_image_info(self, image_id: str, info: dict) -> None:
        with told_to_client():
            super().update_image_info(image_id, info)

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict) -> str:
        with told_to_client():
            if not (image := self.path_of(image_id)):
                raise ImageNotFoundException(f"there is no image '{image_id}' in the studies")
            _check_name(label_tag, "tag")
            self._inside(self._datastore.label_path(label_tag), image_id, file_suffix(label_filename))
            # an inference may find nothing, but what a person labels is to be learned from
            if not label_map(image, label_filename).any() and label_tag == DefaultLabelTag.FINAL:
                raise DataError(label_filename, "no nucleus is labelled in it", "Label at least one.")
            return super().save_label(image_id, label_filename, label_tag, label_info)

    def update_label_info(self, label_id: str, label_tag: str, info: dict) -> None:
        with told_to_client():
            super().update_label_info(label_id, label_tag, info)

    def _files_of(self, image_id: str) -> list[Path]:
        """What lies in the studies under an id, listed in their index or not."""
        files = Path(self._datastore.image_path()).iterdir()
        return [p for p in files if p.is_file() and p.name[: len(p.name) - len(file_suffix(p))] == image_id]

    def _can_be_used(self, image_id: str) -> bool:
        try:
            return self.path_of(image_id) is not None
        except DataError as error:
            logger.warning("passed over: %s", error)
            return False

    def _inside(self, folder: str, image_id: str, suffix: str) -> Path:
        """The file, links followed, that an image's id means in a folder; DataError unless the studies hold it."""
        if image_id != os.path.basename(image_id):  # ids are also read from a file of the studies
            raise DataError(image_id, "an image's id has no folders", "Correct datastore_v2.json in the studies.")
        path = Path(folder, image_id + suffix).resolve()
        if not path.is_relative_to(Path(self._datastore_path).resolve()):
            raise DataError(image_id, "it leads out of the studies", "Copy the file itself into their folder.")
        return path


def _check_name(name: str, what: str) -> None:
    try:
        plain_name(name)
    except ValueError as error:
        raise DataError(f"{what} '{name[:60]}'", "it is no plain name", f"{error}.".capitalize()) from None


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


def tile_path(image: str, datastore: Studies) -> str | None:
    """The file of an image of the studies that is read whole; None for slides, and for what cannot be read."""
    try:
        path = datastore.path_of(image)
        return str(path) if path is not None and slide_of(path) is None else None
    except DataError as error:
        logger.warning("passed over: %s", error)
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
            mpp = 0.0 if value is None else float(value)
        except (TypeError, ValueError):
            mpp = math.inf
        if math.isinf(mpp):
            raise DataError("mpp", f"{value!r} is no number of micrometres per pixel", "Give e.g. 0.25.")
        if mpp > 0:
            return mpp
    return None
