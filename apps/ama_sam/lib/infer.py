from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lib.annotations import write_asap, write_dsa
from lib.schema import InferOptions, RegionRequest, SegmentOptions, default_device
from lib.studies import known_mpp_of, slide_of
from monai.bundle import ConfigParser
from monailabel.interfaces.tasks.infer_v2 import InferType
from monailabel.tasks.infer.bundle import BundleInferTask
from scripts.data.pixel_size import same_mpp
from scripts.errors import DataError
from scripts.inference.views import disagreement
from scripts.nuclei.geojson import NucleusFormat
from scripts.nuclei.label_maps import save_label_map
from scripts.nuclei.measures import Nucleus, describe_nuclei
from scripts.nuclei.nuclei_files import write_nuclei
from scripts.slides.slide import Slide
from scripts.slides.tiles import parse_region

__all__ = ["SegmentNuclei"]

VIEWS = 2  # by which the model may disagree with itself


class SegmentNuclei(BundleInferTask):
    """
    The bundle's two ways to nuclei behind one model: ``inference.json`` for images, ``wsi.json`` for slides.

    A request's options go into these configs as numbers and devices, never as text that a config could read; the app
    adds nothing of its own to what they find.

    Args:
        bundle: folder of the bundle.
        conf: settings of the app.
    """

    def __init__(self, bundle: Path, conf: Mapping[str, str]) -> None:
        super().__init__(str(bundle), dict(conf), type=InferType.SEGMENTATION)
        self.bundle, self.conf = bundle, conf
        self.path = [*self.path, os.path.join(conf["model_dir"], "model.pt")]  # the last that exists is served
        self._config.pop("model_filename", None)
        self._config["mpp"] = 0.0  # unknown; null would break QuPath's reader
        self._loaded: tuple[Any, torch.nn.Module, Any] | None = None
        self._one_at_a_time = threading.Lock()  # the server answers in threads, and there is one network

    def __call__(self, request: dict, callbacks=None) -> tuple[str, dict]:
        """MONAI Label's way to :meth:`segment`."""
        return self.segment(request["image"], InferOptions.of(request))

    def segment(self, path: str, options: SegmentOptions, mpp: object = None) -> tuple[str, dict]:
        """
        The label map of an image as a PNG, and the number of nuclei.

        Args:
            path: of the file.
            options: what the request says.
            mpp: micrometres per pixel that are stored with the image.
        """
        item = self._segment(path, options, mpp)
        instances = np.asarray(item["instances"])[0]
        if instances.max(initial=0) > np.iinfo(np.uint16).max:
            raise DataError(path, f"{instances.max()} nuclei do not fit a PNG", "Ask for polygons.")
        handle, result = tempfile.mkstemp(suffix=".png")
        os.close(handle)
        save_label_map(Path(result), instances)
        return result, {"label_names": self.labels, "nuclei": int(instances.max(initial=0))}

    def annotate(self, path: str, request: RegionRequest, output: str | None, mpp: object = None) -> dict:
        """
        Polygons of an image, a slide, or a region of either.

        Args:
            path: of the file.
            request: the region, of which all nuclei with their centre in it are given, whole.
            output: ``asap``, ``dsa`` or ``json`` (GeoJSON, also for None).
            mpp: micrometres per pixel that are stored with the image.

        Returns:
            ``{"file": path}`` or, for GeoJSON, ``{"params": the feature collection}``.
        """
        region = request.region()
        with tempfile.TemporaryDirectory() as folder:
            slide = slide_of(path)
            if slide is not None:
                geojson = self._slide_nuclei(slide, region, request.params, mpp, Path(folder, "slide"))
            else:
                geojson = self._image_nuclei(path, region, request.params, mpp, Path(folder, "nuclei.geojson"))
            if output not in ("asap", "dsa"):
                return {"file": None, "params": json.loads(geojson.read_text("utf-8"))}
            suffix, write = (".xml", write_asap) if output == "asap" else (".json", write_dsa)
            handle, result = tempfile.mkstemp(suffix=suffix)
            os.close(handle)
            write(geojson, Path(result), next(iter(self.labels)), f"ama_sam: {Path(path).name}")
            return {"file": result, "params": {}}

    def disagreement(self, path: str, mpp: object = None) -> float:
        """How far the answers to views of an image differ, see ``scripts.inference.views.disagreement``."""
        return self._disagreement(self._read(path, mpp)["image"])

    def patch_disagreement(self, slide: Slide, box: Sequence[int], mpp: float) -> float:
        """The same of a box (left, top, width, height) of a slide in level-0 pixels; ``mpp`` is of these."""
        target = self._parse("wsi", {"ckpt_path": self.get_path()}).get_parsed_content("network_mpp")
        scale = 1.0 if same_mpp(target, mpp) else target / mpp
        pixels, _ = slide.read(*(round(side / scale) for side in box), scale)
        return self._disagreement(torch.as_tensor(pixels.transpose(2, 0, 1).astype(np.float32)))

    def _disagreement(self, image: torch.Tensor) -> float:
        device = torch.device(default_device())
        looking = self._parse("inference", {"views": VIEWS, "device": device}).get_parsed_content("inferer")
        with self._one_at_a_time, torch.inference_mode():
            network, _ = self._network(device)
            return disagreement(looking(image[None].to(device), network)[0])

    def mpp_of(self, slide: Slide, stored: object) -> float:
        """Micrometres per level-0 pixel of a slide: those stored with it, else its own, else the server's."""
        mpp = known_mpp_of(stored, slide.mpp, self.conf.get("mpp"))
        if mpp is None:
            hint = "Tell them: PUT /datastore/image/info, or start the server with -c mpp."
            raise DataError(slide.path.name, "it does not say its micrometres per pixel", hint)
        return mpp

    def _image_nuclei(
        self, path: str, region: list[int] | None, options: SegmentOptions, mpp: object, geojson: Path
    ) -> Path:
        item = self._segment(path, options, mpp)
        image, instances = np.asarray(item["image"]), np.asarray(item["instances"])[0]
        nuclei = describe_nuclei(instances, _probability(item), image)
        if region is not None:
            nuclei = _within(nuclei, region)
        write_nuclei(nuclei, NucleusFormat(Path(path).name, known_mpp_of(item.get("mpp"))), geojson)
        return geojson

    def _slide_nuclei(
        self, slide: Slide, region: list[int] | None, options: SegmentOptions, mpp: object, folder: Path
    ) -> Path:
        if region is not None:
            parse_region(region, slide)
        settings = {
            "region": region,
            "outputs": ["geojson"],
            "mpp": known_mpp_of(options.mpp, mpp, None if slide.mpp else self.conf.get("mpp")),
            "ckpt_path": self.get_path(),
            "device": torch.device(options.device or default_device()),
            **self._given(options, "threshold", "min_peak", "marker_depth"),
        }
        with self._one_at_a_time:
            self._parse("wsi", settings).get_parsed_content("segmenter")(slide.path, folder)
        return folder / "nuclei.geojson"

    def _segment(self, path: str, options: SegmentOptions, mpp: object) -> dict:
        item = self._predict(path, options, mpp)
        given = self._given(options, "threshold", "min_peak", "marker_depth", "min_area")
        return self._parse("inference", given).get_parsed_content("postprocessing")(item)

    def _predict(self, path: str, options: SegmentOptions, mpp: object) -> dict:
        """The image, at the network's pixel size if the mpp is known, and its logits as ``pred``."""
        device = torch.device(options.device or default_device())
        item = self._read(path, options.mpp, mpp)
        with self._one_at_a_time, torch.inference_mode():
            network, inferer = self._network(device)
            item["pred"] = inferer(item["image"][None].to(device), network)[0].cpu()
        return item

    def _read(self, path: str, *mpp: object) -> dict:
        """The image, at the network's pixel size where its own is known: from the first of ``mpp``, or the server."""
        preprocessing = self._parse("inference", {"ckpt_path": self.get_path()}).get_parsed_content("preprocessing")
        return preprocessing({"image": path, "mpp": known_mpp_of(*mpp, self.conf.get("mpp"))})

    def _network(self, device: torch.device) -> tuple[torch.nn.Module, Any]:
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

    def _given(self, options: SegmentOptions, *names: str) -> dict[str, float]:
        """Options as numbers, the bundle's where the request has none."""
        given = {name: getattr(options, name) for name in names}
        return {name: self._config[name] if value is None else float(value) for name, value in given.items()}


def _within(nuclei: list[Nucleus], region: list[int]) -> list[Nucleus]:
    x, y, width, height = region
    return [nucleus for nucleus in nuclei if x <= nucleus.x < x + width and y <= nucleus.y < y + height]


def _probability(item: Mapping[str, Any]) -> np.ndarray:
    """(H, W) foreground probability of what the network predicted."""
    return torch.as_tensor(item["pred"])[0].float().sigmoid().numpy()
