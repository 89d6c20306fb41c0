from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import monai.bundle
from lib.app_settings import UNLABELLED
from lib.schema import TrainOptions, default_device
from lib.studies import Studies, known_mpp_of, label_map, tile_path
from lib.train_stats import newest_run, train_stats
from monailabel.tasks.train.bundle import BundleTrainTask
from monailabel.utils.others.generic import device_list
from scripts.data.domain_folders import auxiliary_domains
from scripts.data.domains import LABELLED
from scripts.data.readers import read_image
from scripts.errors import DataError
from scripts.files import read_json, write_json
from scripts.nuclei.label_maps import save_label_map

__all__ = ["TrainOnLabelled"]

logger = logging.getLogger(__name__)

RECIPE = "few_shot.json"  # what a training from the served weights is; docs/own_tissue.md says how it was measured
SCHEDULE = ("max_epochs", "batches_per_epoch", "learning_rate")  # what a request may set of the configs' own
SMALLEST_TO_SPLIT = 5  # labelled images; of fewer a part of each is held out, in the place of whole ones


class TrainOnLabelled(BundleTrainTask):
    """
    Runs the bundle's ``training`` with what is labelled as the primary domain.

    Auxiliary domains come from the app's settings; their encoded features, and those of images labelled before, are
    found in the cache. It starts from the served model by the recipe for few images, which keeps what it began with
    where that is better (``pretrained``), or anew by ``configs/train.json`` alone. What it made is published, see
    ``scripts.training.publishing``.

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
        recipe = read_json(self._recipe())
        defaults = TrainOptions(**{name: recipe[name] for name in SCHEDULE}).model_dump(exclude={"client_id"})
        return {**defaults, "device": device_list(), "mode": self._modes(), "publish": ["better", "always"]}

    def stats(self) -> dict[str, Any]:
        """Of the training begun last, running or not: ``train_stats`` of ``/info/``."""
        run = newest_run(self.folder / "training")
        return {} if run is None else train_stats(run)

    def check(self, options: TrainOptions) -> None:
        """DataError for what this app's settings do not allow."""
        if not options.use_unlabelled and options.mode is not None and options.mode not in self._modes():
            raise DataError("mode", f"'{options.mode}' needs auxiliary domains", "Start with -c auxiliary_dir.")

    def __call__(self, request: dict, datastore: Studies) -> dict:
        options = TrainOptions.of(request)
        self.check(options)
        domains, held_out = self._domains(datastore, options.val_split)
        if options.use_unlabelled:
            domains.append(self._unlabelled(datastore))
        published = self.folder / "model.pt"
        served = published if published.is_file() else self.bundle / "models" / "model.pt"
        overrides = {
            "bundle_root": str(self.bundle),
            "device": options.device or default_device(),
            "domains": domains,
            "mode": self._mode(options, domains),
            "held_out": held_out,
            **options.model_dump(include=set(SCHEDULE), exclude_none=True),
            "seed": options.seed,
            "publish": options.publish,
            "init_model": str(served) if options.pretrained else None,
            "teacher": str(served) if options.use_unlabelled else None,
            "output_dir": str(self.folder / "training"),
            "cache_dir": self.conf.get("cache_dir") or str(self.folder / "training" / "features"),
            "publish_path": str(published),
            "alignment_report": False,
            "log_model": False,  # it is published, and MLflow would get one more with each training
            "domain_images": 0,  # nobody reads out-of-domain scores here, and describing the domains takes its time
        }
        if options.pretrained:  # nothing can judge the start where all is trained on
            overrides["start_counts"] = options.val_split > 0
        logger.info("training with %s", overrides)
        monai.bundle.run(
            run_id="run",
            meta_file=self.bundle_metadata_path,
            config_file=[self.bundle_config_path, *([self._recipe()] if options.pretrained else [])],
            **overrides,
        )
        return {}

    def _recipe(self) -> str:
        return str(self.bundle / "configs" / RECIPE)

    def _modes(self) -> list[str]:
        return ["joint", "ama", "grl", "single"] if self.conf.get("auxiliary_dir") else ["single"]

    def _mode(self, options: TrainOptions, domains: Sequence[Mapping]) -> str:
        if len(domains) == 1:
            return "single"
        if options.use_unlabelled:  # a client that sends the defaults back says single where there are no auxiliaries
            return "joint" if options.mode in (None, "single") else options.mode
        return options.mode or self._modes()[0]

    def _unlabelled(self, datastore: Studies) -> dict:
        """The tiles without a label as a domain, whose labels the served model makes; listed in a file, as above."""
        entries = [
            self._entry(datastore, image, path)
            for image in sorted(datastore.get_unlabeled_images())
            if (path := tile_path(image, datastore)) and _readable(path)
        ]
        if not entries:
            raise DataError("use_unlabelled", "every tile of the studies has a label", "Add tiles, or leave it out.")
        root = self.folder / "training"
        write_json(root / "unlabelled.json", {"training": entries})
        described = {"name": UNLABELLED, "role": "auxiliary", "root": str(root), "datalist": "unlabelled.json"}
        return {**described, "labels": False}

    def _domains(self, datastore: Studies, val_split: float) -> tuple[list[dict], float]:
        """
        The domain list: what is labelled is the primary, listed in a file, for names of images are no config.

        And the share of each labelled image that is held out, where there are too few to hold out whole ones.
        """
        entries = self._entries(datastore)
        if not entries:
            raise DataError("studies", "nothing is labelled yet", "Save at least one label.")
        whole = len(entries) >= SMALLEST_TO_SPLIT and val_split > 0
        count = max(round(val_split * len(entries)), 1) if whole else 0
        root = self.folder / "training"
        write_json(root / "labelled.json", {"training": entries[count:], "validation": entries[:count]})
        primary = {"name": LABELLED, "role": "primary", "root": str(root), "datalist": "labelled.json"}
        folder = self.conf.get("auxiliary_dir")
        auxiliary = auxiliary_domains(folder, self.conf.get("auxiliary", "all")) if folder else ()
        return [primary, *auxiliary], 0.0 if whole else val_split

    def _entries(self, datastore: Studies) -> list[dict]:
        """Labelled images in an order that does not change when others are added, XML drawn as a label map."""
        entries = []
        for image in datastore.get_labeled_images():
            path, label = datastore.path_of(image), datastore.label_path_of(image, "final")
            if label.suffix == ".xml":
                drawn = self.folder / "training" / "labels" / f"{image}.png"
                save_label_map(drawn, label_map(path, label))
                label = drawn
            entries.append({**self._entry(datastore, image, path), "label": str(label)})
        return sorted(entries, key=lambda entry: hashlib.sha256(os.path.basename(entry["image"]).encode()).hexdigest())

    def _entry(self, datastore: Studies, image: str, path: Path | str) -> dict:
        """An image in a datalist."""
        mpp = known_mpp_of(datastore.get_image_info(image).get("mpp"), self.conf.get("mpp"))
        return {"image": str(path), **({"mpp": mpp} if mpp else {})}


def _readable(path: str) -> bool:
    """Whether an image can be read; one that cannot, which is told, must not hide the others."""
    try:
        read_image(path)
    except DataError as error:
        logger.warning("passed over: %s", error)
        return False
    return True
