from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import torch
from monai.bundle import ConfigParser
from monai.utils import CommonKeys
from PIL import Image
from scripts.data.images import list_images
from scripts.errors import DataError, root_cause
from scripts.files import is_store
from scripts.judging import is_programmed, judge, nearest
from scripts.nuclei.geojson import NucleusFormat
from scripts.nuclei.measures import describe_nuclei
from scripts.nuclei.metrics import known_mpp
from scripts.settings import GONE, SETTINGS
from scripts.setup_run import check_device

__all__ = ["Nuclei", "Segmenter"]

_OF_FILES = {"mpp", "dataset_dir", "output_dir", "outputs", "label_format"}  # settings of images and of what is written


@dataclass(frozen=True)
class Nuclei:
    """
    The nuclei of one image, of the same numbers as what the verb ``inferring`` writes.

    Args:
        labels: (H, W) int32 of the image's size; 0 is background, else the nucleus' id.
        table: one row a nucleus, of the columns of ``_nuclei.csv``.
        polygons: GeoJSON features, one a nucleus in the order of the table, in pixels of the image.
        probabilities: (H, W) float32 foreground probability, where asked for.
    """

    labels: np.ndarray
    table: pandas.DataFrame
    polygons: list[dict[str, Any]] = field(repr=False)
    probabilities: np.ndarray | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.table)


class Segmenter:
    """
    The parts of the verb ``inferring``, held in memory for whoever hands over images one by one: notebooks, servers.

    Args:
        config: the bundle's ``inference.json``; this is the one place where Python composes a config.
        bundle_root: folder whose ``models/model.pt`` is taken where ``ckpt_path`` is not given.
        given: other keys of it, such as ``threshold`` or ``views``; not ``mpp``, which is of each image.

    Raises:
        DataError: for a setting that is not known or not allowed, or a model that cannot be read.
    """

    def __init__(
        self, config: str | os.PathLike, bundle_root: str | os.PathLike, given: Mapping[str, Any] | None = None
    ) -> None:
        content = json.loads(Path(config).read_text(encoding="utf-8"))
        given = dict(given or {})
        for key in given:
            if key in _OF_FILES:
                hint = "Give mpp to segment(); files are written by the command"
                raise DataError(key, "it says nothing of a model", hint)
            if key in GONE:
                raise DataError(key, "there is no such setting any more", GONE[key])
            if key not in SETTINGS["inference"]:
                hint = nearest(key, SETTINGS["inference"])
                raise DataError(key, f"there is no such setting{hint}", "See inference.json")
        given |= judge("inference", {**content, **given}, given)
        if isinstance(name := given.get("device"), str) and not is_programmed(name):
            check_device(name)
        parser = ConfigParser({**content, **given, "bundle_root": str(bundle_root)})
        try:
            names = ("network", "inferer", "preprocessing", "postprocessing", "device")
            parts = {name: parser.get_parsed_content(name) for name in names}
        except Exception as error:  # which class MONAI wraps it in does not matter
            raise root_cause(error) from None
        self.network, self.inferer, self.preprocessing, self.postprocessing, self.device = parts.values()
        self.network.eval()

    def segment(
        self, image: Any, mpp: float | None = None, probabilities: bool = False, name: str | None = None
    ) -> Nuclei:
        """
        Nuclei of one image.

        Args:
            image: a file, a PIL image, or (H, W, 3) uint8 RGB.
            mpp: micrometres per pixel: 0.25 at 40x, 0.5 at 20x; by default what the file says.
            probabilities: give the foreground probability of each pixel too.
            name: with a nucleus' number it makes the polygon's id; by default the file's name, or ``image``.

        Raises:
            DataError: when the image cannot be read, or mpp is out of range.
            ValueError: when an array is no such image.
        """
        if isinstance(mpp, str):
            raise DataError("mpp", f"'{mpp}' is no number", "Give one, or use ama-sam segment --mpp estimate")
        if isinstance(image, (str, os.PathLike)):
            if not (Path(image).is_file() or is_store(image)):
                problem = "it is a folder" if Path(image).is_dir() else "there is no such file"
                raise DataError(image, problem, "Give one image")
            return self._segment(list_images(image, mpp)[0], probabilities, name or Path(image).name.partition(".")[0])
        array = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
        if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
            raise ValueError(f"an image is (H, W, 3) uint8, with pixels, got {array.shape} {array.dtype}")
        with tempfile.TemporaryDirectory() as folder:  # read by the one function that reads images
            path = Path(folder) / f"{name or 'image'}.png"
            Image.fromarray(array).save(path, compress_level=1)
            return self._segment(list_images(path, mpp)[0], probabilities, name or "image")

    def _segment(self, item: dict[str, Any], probabilities: bool, name: str) -> Nuclei:
        try:
            item = self.preprocessing(item)
        except RuntimeError as error:  # MONAI's Compose wraps what a transform says
            raise root_cause(error) from None
        image = item[CommonKeys.IMAGE].to(self.device)
        with torch.no_grad():
            logits = self.inferer(image[None], self.network)
        item = self.postprocessing({**item, CommonKeys.IMAGE: image, CommonKeys.PRED: logits[0]})
        pixels, labels = (np.asarray(item[key].cpu()) for key in ("image", "instances"))
        probability = np.asarray(item["pred"][0].float().sigmoid().cpu())
        spread = np.asarray(item["spread"][0].cpu()) if "spread" in item else None
        form = NucleusFormat(name, known_mpp(item["image"].meta.get("mpp")), with_spread=spread is not None)
        nuclei = list(enumerate(describe_nuclei(labels[0], probability, pixels, spread), start=1))
        return Nuclei(
            labels=labels[0],
            table=pandas.DataFrame([form.row(nucleus, number) for number, nucleus in nuclei], columns=form.columns),
            polygons=[json.loads(form.feature(nucleus, number)) for number, nucleus in nuclei],
            probabilities=probability if probabilities else None,
        )
