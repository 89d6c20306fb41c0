from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import monai.bundle
from lib.studies import Studies, known_mpp_of, label_map
from monailabel.tasks.train.bundle import BundleTrainTask
from monailabel.utils.others.generic import device_list, name_to_device
from scripts.data.domains import LABELLED, auxiliary_domains
from scripts.errors import DataError
from scripts.nuclei.label_maps import save_label_map

__all__ = ["TrainOnLabelled"]

logger = logging.getLogger(__name__)

SMALLEST_TO_SPLIT = 5  # labelled images; of fewer none is held out for validation


class TrainOnLabelled(BundleTrainTask):
    """
    Runs the bundle's ``training`` with what is labelled as the primary domain.

    Auxiliary domains come from the app's settings; their encoded features, and those of images labelled before, are
    found in the cache. It starts from the served model (``pretrained``) or anew, and publishes what it made, see
    ``scripts.training.publishing``. All else is ``configs/train.json``.

    Args:
        bundle: folder of the bundle.
        conf: settings of the app.
    """

    def __init__(self, bundle: Path, conf: Mapping[str, str]) -> None:
        super().__init__(str(bundle), dict(conf))
        self.bundle, self.folder = bundle, Path(conf["model_dir"])
        self.folder.mkdir(parents=True, exist_ok=True)

    def config(self) -> dict[str, Any]:
        """What a client may set, with defaults; null would break QuPath's reader."""
        return {
            "device": device_list(),
            "pretrained": True,
            "mode": ["ama", "joint", "grl", "single"] if self.conf.get("auxiliary_dir") else ["single"],
            "max_epochs": 6,
            "batches_per_epoch": 20,
            "learning_rate": 0.00005,
            "seed": 0,
            "val_split": 0.2,
            "publish": ["better", "always"],
        }

    def __call__(self, request: dict, datastore: Studies) -> dict:
        settings = {name: request.get(name, value) for name, value in self.config().items()}
        settings = {name: value[0] if isinstance(value, list) else value for name, value in settings.items()}
        device, split = name_to_device(settings.pop("device")), float(settings.pop("val_split"))
        domains = self._domains(datastore, split)
        if len(domains) == 1:
            settings["mode"] = "single"
        published = self.folder / "model.pt"
        served = published if published.is_file() else self.bundle / "models" / "model.pt"
        if settings.pop("pretrained"):
            settings["init_model"] = str(served)
        overrides = {
            **settings,
            "bundle_root": str(self.bundle),
            "device": device,
            "domains": domains,
            "output_dir": str(self.folder / "training"),
            "cache_dir": self.conf.get("cache_dir") or str(self.folder / "training" / "features"),
            "publish_path": str(published),
            "alignment_report": False,
            "domain_images": 0,  # nobody reads out-of-domain scores here, and describing the domains takes its time
        }
        logger.info("training with %s", overrides)
        monai.bundle.run(
            run_id="run", meta_file=self.bundle_metadata_path, config_file=self.bundle_config_path, **overrides
        )
        return {}

    def _domains(self, datastore: Studies, val_split: float) -> list[dict]:
        """The domain list: what is labelled is the primary."""
        entries = self._entries(datastore)
        if not entries:
            raise DataError("studies", "nothing is labelled yet", "Save at least one label.")
        count = max(round(val_split * len(entries)), 1) if len(entries) >= SMALLEST_TO_SPLIT and val_split > 0 else 0
        primary = {"name": LABELLED, "role": "primary", "root": str(self.folder)}
        primary["datalist"] = {"training": entries[count:], "validation": entries[:count]}
        folder = self.conf.get("auxiliary_dir")
        return [primary, *(auxiliary_domains(folder, self.conf.get("auxiliary", "all")) if folder else ())]

    def _entries(self, datastore: Studies) -> list[dict]:
        """Labelled images in an order that does not change when others are added, XML drawn as a label map."""
        entries = []
        for image in datastore.get_labeled_images():
            path, label = datastore.get_image_uri(image), datastore.get_label_uri(image, "final")
            if label.endswith(".xml"):
                drawn = self.folder / "training" / "labels" / f"{image}.png"
                save_label_map(drawn, label_map(path, label))
                label = str(drawn)
            entry = {"image": path, "label": label}
            if mpp := known_mpp_of(datastore.get_image_info(image).get("mpp"), self.conf.get("mpp")):
                entry["mpp"] = mpp
            entries.append(entry)
        return sorted(entries, key=lambda entry: hashlib.sha256(os.path.basename(entry["image"]).encode()).hexdigest())
