from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from monai.utils import CommonKeys
from PIL import Image
from scripts.data.cache_key import content_of
from scripts.data.readers import read_image, read_label
from scripts.errors import DataError, all_of
from scripts.files import atomic_path, bundle_version, read_json, sha256_of
from scripts.inference.in_memory import Segmenter
from scripts.networks.model_info import model_info
from scripts.nuclei.label_maps import save_label_map
from scripts.nuclei.overlays import overlay
from scripts.phases import PHASES
from scripts.wording import counted
from tqdm import tqdm

__all__ = ["Teacher", "check_taught"]

logger = logging.getLogger(__name__)

# a nucleus that is doubted teaches more than one that is left out, see docs/experiments.md
LABELS = {"threshold": 0.4, "min_peak": 0.0}


class Teacher:
    """
    A trained model that labels the training images of the domains that have no labels.

    They are labelled once, before the first step, as whole nuclei, by several looks (``views``): "data distillation"
    (Radosavovic et al., arXiv:1712.04440). They go to ``folder/TEACHER/DOMAIN/IMAGE_CONTENT.tif`` (instances), and
    drawn on the image to ``folder/TEACHER/DOMAIN_overlays/IMAGE_CONTENT.jpg``: named after what the teacher is, how it
    segments and what the image holds, so that another run finds them, and never another's.

    Args:
        path: the model file.
        views: see :func:`scripts.inference.views.view_network`.
        device: where it runs.
        config: ``inference.json``, whose other settings hold.
        folder: where its labels go.
    """

    def __init__(
        self, path: str, views: int, device: torch.device | str, config: str | os.PathLike, folder: str | os.PathLike
    ) -> None:
        given = {"ckpt_path": path, "views": views, "device": str(device), **LABELS}
        with torch.random.fork_rng(devices=[]):  # the network that learns begins with the weights of its seed
            self.segmenter = Segmenter(config, Path(config).parents[1], given)
        # all that another release, or a changed config, may give other labels by
        how = {**read_json(config), "views": views, **LABELS, "version": bundle_version(Path(config).parents[1])}
        settings = hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()
        self.folder = Path(folder) / f"{str(sha256_of(path))[:8]}_views{views}_{settings[:8]}"

    @PHASES.within("labelling")
    def __call__(self, items: Sequence[Mapping[str, Any]]) -> list[dict]:
        """
        Args:
            items: of ``load_items``.

        Returns:
            the items, those that were ``unlabelled`` with a ``label`` of the teacher's.

        Raises:
            DataError: naming the images that cannot be read, when the others are labelled; when no nucleus is found in
                any.
        """
        taught = [
            {**item, CommonKeys.LABEL: str(self._path(item))} if item.get("unlabelled") else dict(item)
            for item in items
        ]
        labelled_here = [item for item in taught if item.pop("unlabelled", False)]
        if idist.get_rank() == 0:
            missing = [item for item in labelled_here if not Path(item[CommonKeys.LABEL]).is_file()]
            failed = []
            for item in tqdm(missing, desc="labelling", unit="image", mininterval=1.0, disable=not missing):
                try:
                    self._label(item)
                except DataError as error:
                    failed.append(error)
            if failed:
                raise all_of(failed)
        idist.barrier()
        nuclei = sum(int(read_label(item[CommonKeys.LABEL]).max(initial=0)) for item in labelled_here)
        if not nuclei:
            hint = "Tell the pixel size of these images (mpp in the domain list), or label some."
            raise DataError(self.folder, "the teacher found no nucleus in the images without labels", hint)
        if idist.get_rank() == 0:
            told = f"{counted(nuclei, 'nucleus', 'nuclei')} in {counted(len(labelled_here), 'image')} without labels"
            print(f"the teacher found {told}: look at {self.folder}", file=sys.stderr)
        return taught

    def _path(self, item: Mapping[str, Any]) -> Path:
        image = Path(item[CommonKeys.IMAGE])
        content = hashlib.sha256(f"{content_of(image)} {item['mpp']}".encode()).hexdigest()[:12]
        return self.folder / item["domain_name"] / f"{image.stem}_{content}.tif"

    def _label(self, item: Mapping[str, Any]) -> None:
        mpp = item["mpp"] if np.isfinite(item["mpp"]) else None
        found = self.segmenter.segment(item[CommonKeys.IMAGE], mpp)
        path = Path(item[CommonKeys.LABEL])
        picture = path.parent.with_name(f"{path.parent.name}_overlays") / f"{path.stem}.jpg"
        drawn = overlay(read_image(Path(item[CommonKeys.IMAGE])).transpose(2, 0, 1), found.labels)
        with atomic_path(picture) as partial:
            Image.fromarray(drawn).save(partial, format="JPEG", quality=90)
        save_label_map(path, found.labels, mpp)  # last: an image that has a label is done


def check_taught(teacher: str | None, labelled: Sequence[bool], mode: str) -> None:
    """
    Before any image is encoded: DataError where the teacher is no model, or every domain has labels. Told is where
    images without labels take part and nothing is learned from them.
    """
    if teacher is None:
        if mode == "joint" and not all(labelled):
            logger.warning(
                "nothing is learned from the images without labels: mode joint aligns no domain, and no teacher labels "
                "them. Add --teacher MODEL (configs/no_labels.json has the rest), or --mode ama"
            )
        return
    model_info(teacher, key="teacher")
    if all(labelled):
        hint = "Name those without with --unlabelled (by no_labels.json it is the one that --primary names)."
        raise DataError("teacher", "every domain that is trained on has labels", hint)
