from __future__ import annotations

import logging
import math
import os
from pathlib import Path

from scripts.data.pixel_size import PLAUSIBLE_MPP, number
from scripts.data.readers import IMAGE_SUFFIXES, file_suffix
from scripts.errors import DataError
from scripts.files import is_store, walk_files
from scripts.owned import own_among
from scripts.wording import counted

__all__ = ["list_images"]

logger = logging.getLogger(__name__)

_VERB = "inference.json"  # what the verb inferring lists in a folder of its results, and no other verb does


def list_images(
    folder: str | os.PathLike, mpp: float | None = None, exclude: str | os.PathLike | None = None
) -> list[dict]:
    """
    Items for every image file in a folder and its sub-folders, by name; or for one file.

    Masks, label maps and overlays that earlier runs of the verb inferring wrote are passed over, which is told, also
    where its folder of results lies above.

    Args:
        folder: where to look, see ``walk_files``; or an image.
        mpp: micrometres per pixel of all these images, if known.
        exclude: a folder within it whose files are passed over, such as that of the results.

    Returns:
        ``[{"image": path, "mpp": float}, ...]``, mpp nan if unknown.

    Raises:
        DataError: there is no such folder, no image in it or only results, or results would lie among the images.
    """
    root = Path(folder)
    if mpp is not None and not PLAUSIBLE_MPP[0] <= (number(mpp) or 0) <= PLAUSIBLE_MPP[1]:
        hint = f"Give from {PLAUSIBLE_MPP[0]} to {PLAUSIBLE_MPP[1]}, or leave it out where it is unknown, or estimate"
        raise DataError("mpp", f"{mpp} is no number of micrometres per pixel of tissue", hint)
    excluded = None if exclude is None else Path(exclude).resolve()
    for folder in (excluded, *excluded.parents) if excluded is not None else ():
        if is_store(folder) and (folder == root.resolve() or root.resolve() in folder.parents):
            raise DataError(folder, "results would lie in an image", "Choose another output_dir")
    if root.is_file() or is_store(root):
        return [{"image": str(root), "mpp": math.nan if mpp is None else float(mpp)}]
    if not root.is_dir():
        raise DataError(root, "there is no such file or folder", "Set dataset_dir to a folder of images")
    if excluded == root.resolve():
        raise DataError(root, "results would lie among the images", "Choose another output_dir; it may be in there")
    if excluded is not None and not excluded.is_relative_to(root.resolve()):
        excluded = None  # a folder around the images: they are no results
    found = [
        path
        for path in sorted(walk_files(root, stores=True))
        # a link that leads nowhere is told when it is read
        if (file_suffix(path) in IMAGE_SUFFIXES or is_store(path)) and excluded not in path.resolve().parents
    ]
    results = own_among(found, _VERB)
    if results:
        logger.info("%s: passed over %s of earlier runs", root, counted(len(results), "result"))
    files = [path for path in found if path not in results]
    if not files and results:
        raise DataError(root, "it holds nothing but results of earlier runs", "Name the folder of your images")
    if not files:
        raise DataError(root, "no image found", f"Put files with one of {', '.join(IMAGE_SUFFIXES)} there")
    return [{"image": str(path), "mpp": math.nan if mpp is None else float(mpp)} for path in files]
