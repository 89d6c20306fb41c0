from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lib.annotations import write_asap, write_dsa
from lib.studies import Studies, known_mpp_of, slide_of
from monai.bundle import ConfigParser
from monailabel.interfaces.tasks.infer_v2 import InferType
from monailabel.tasks.infer.bundle import BundleInferTask
from scripts.errors import DataError
from scripts.nuclei.geojson import NucleusFormat, write_nuclei
from scripts.nuclei.label_maps import save_label_map
from scripts.nuclei.measures import Nucleus, binary_entropy, describe_nuclei
from scripts.slides.tiles import parse_region

__all__ = ["SegmentNuclei"]

OPTIONS = ("threshold", "marker_depth")


class SegmentNuclei(BundleInferTask):
    """
    The bundle's two ways to nuclei behind one model: ``inference.json`` for images, ``wsi.json`` for slides.

    A request's options go into these configs; the app adds nothing of its own to what they find.

    Args:
        bundle: folder of the bundle.
        conf: settings of the app.
        studies: tells the micrometres per pixel that were given with an image.
    """

    def __init__(self, bundle: Path, conf: Mapping[str, str], studies: Studies) -> None:
        super().__init__(str(bundle), dict(conf), type=InferType.SEGMENTATION)
        self.bundle, self.conf, self.studies = bundle, conf, studies
        self.path = [*self.path, os.path.join(conf["model_dir"], "model.pt")]  # the last that exists is served
        self._config.pop("model_filename", None)
        self._config["mpp"] = 0.0  # unknown; null would break QuPath's reader
        self._target_mpp = self._parse("wsi").get("target_mpp")
        self._loaded: tuple[Any, torch.nn.Module, Any] | None = None

    def __call__(self, request: dict, callbacks=None) -> tuple[str, dict]:
        """The label map of an image as a PNG, and the number of nuclei."""
        item = self._segment(request["image"], request)
        instances = np.asarray(item["instances"])[0]
        if instances.max(initial=0) > np.iinfo(np.uint16).max:
            raise DataError(request["image"], f"{instances.max()} nuclei do not fit a PNG", "Ask for polygons.")
        handle, path = tempfile.mkstemp(suffix=".png")
        os.close(handle)
        save_label_map(Path(path), instances)
        return path, {"label_names": self.labels, "nuclei": int(instances.max(initial=0))}

    def annotate(self, path: str, request: dict) -> dict:
        """
        Polygons of an image, a slide, or a region of either.

        Args:
            path: of the file.
            request: ``output`` is ``asap``, ``dsa`` or ``json`` (GeoJSON); ``location`` and ``size`` are a region in
                level-0 pixels, of which all nuclei with their centre in it are given, whole; a size of 0 means all.

        Returns:
            ``{"file": path}`` or, for GeoJSON, ``{"params": the feature collection}``.
        """
        location, size = request.get("location") or (0, 0), request.get("size") or (0, 0)
        region = [int(value) for value in (*location, *size)] if any(size) else None
        with tempfile.TemporaryDirectory() as folder:
            slide = slide_of(path)
            if slide is not None:
                geojson = self._slide_nuclei(slide, region, request, Path(folder, "slide"))
            else:
                geojson = self._image_nuclei(path, region, request, Path(folder, "nuclei.geojson"))
            output = request.get("output")
            if output not in ("asap", "dsa"):
                return {"file": None, "params": json.loads(geojson.read_text("utf-8"))}
            suffix, write = (".xml", write_asap) if output == "asap" else (".json", write_dsa)
            handle, result = tempfile.mkstemp(suffix=suffix)
            os.close(handle)
            write(geojson, Path(result), next(iter(self.labels)), f"{request.get('model')}: {Path(path).name}")
            return {"file": result, "params": {}}

    def entropy(self, path: str, mpp: float | None) -> float:
        """Mean binary entropy of an image's foreground probability, in bits: 0 sure, 1 undecided everywhere."""
        item = self._predict(path, {"mpp": mpp})
        return float(binary_entropy(_probability(item)).mean())

    def _image_nuclei(self, path: str, region: list[int] | None, request: dict, geojson: Path) -> Path:
        item = self._segment(path, request)
        image, instances = np.asarray(item["image"]), np.asarray(item["instances"])[0]
        nuclei = describe_nuclei(instances, _probability(item), image)
        if region is not None:
            nuclei = _within(nuclei, region)
        write_nuclei(nuclei, NucleusFormat(Path(path).name, known_mpp_of(item.get("mpp"))), geojson)
        return geojson

    def _slide_nuclei(self, slide, region: list[int] | None, request: dict, folder: Path) -> Path:
        if region is not None:
            parse_region(region, slide)
        mpp = self._mpp(request, None if slide.mpp else self.conf.get("mpp"))
        settings = {"region": region, "mpp": mpp, "ckpt_path": self.get_path()}
        settings["device"] = f"$torch.device('{_device(request)}')"
        parser = self._parse("wsi", {**settings, **self._options(request)})
        parser.get_parsed_content("segmenter")(slide.path, folder)
        return folder / "nuclei.geojson"

    def _segment(self, path: str, request: dict) -> dict:
        item = self._predict(path, request)
        options = {**self._options(request), "min_area": request.get("min_area", self._config["min_area"])}
        return self._parse("inference", options).get_parsed_content("postprocessing")(item)

    def _predict(self, path: str, request: dict) -> dict:
        """The image, at the network's pixel size if the mpp is known, and its logits as ``pred``."""
        device = _device(request)
        network, inferer = self._network(device)
        preprocessing = self._parse("inference", {"target_mpp": self._target_mpp}).get_parsed_content("preprocessing")
        item = preprocessing({"image": path, "mpp": self._mpp(request, self.conf.get("mpp"))})
        with torch.inference_mode():
            item["pred"] = inferer(item["image"][None].to(device), network)[0].cpu()
        return item

    def _network(self, device: str) -> tuple[torch.nn.Module, Any]:
        """The served network and its inferer, read again when another model was published."""
        path = self.get_path()
        key = path, os.stat(path).st_mtime_ns, device
        if self._loaded is None or self._loaded[0] != key:
            parser = self._parse("inference", {"ckpt_path": path, "device": device})
            self._loaded = key, parser.get_parsed_content("network"), parser.get_parsed_content("inferer")
        return self._loaded[1:]

    def _parse(self, config: str, settings: Mapping[str, Any] | None = None) -> ConfigParser:
        parser = ConfigParser()
        parser.read_config(str(self.bundle / "configs" / f"{config}.json"))
        parser.config.update({"bundle_root": str(self.bundle), **(settings or {})})
        return parser

    def _options(self, request: dict) -> dict[str, float]:
        try:
            return {name: float(request.get(name, self._config[name])) for name in OPTIONS}
        except (TypeError, ValueError) as error:
            raise DataError(
                "params", f"an option is no number ({error})", f"Give {', '.join(OPTIONS)} as such."
            ) from None

    def _mpp(self, request: dict, default: object) -> float | None:
        stored = self.studies.get_image_info(request["image"]).get("mpp") if request.get("image") else None
        return known_mpp_of(request.get("mpp"), stored, default)


def _within(nuclei: list[Nucleus], region: list[int]) -> list[Nucleus]:
    x, y, width, height = region
    return [nucleus for nucleus in nuclei if x <= nucleus.x < x + width and y <= nucleus.y < y + height]


def _probability(item: Mapping[str, Any]) -> np.ndarray:
    """(H, W) foreground probability of what the network predicted."""
    return torch.as_tensor(item["pred"])[0].float().sigmoid().numpy()


def _device(request: dict) -> str:
    device = request.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
    return device[0] if isinstance(device, list) else str(device)
