from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import Dataset
from PIL import Image
from scripts.data.domains import in_turn
from scripts.errors import only_warned
from scripts.files import atomic_path
from scripts.networks.loading import kept_weights
from scripts.networks.model_file import read_model_file
from scripts.nuclei.instances import logits_to_instances
from scripts.nuclei.metrics import image_metrics
from scripts.nuclei.overlays import contact_sheet, overlay
from scripts.wording import counted

__all__ = ["ClosingLines", "ValidationOverlay"]

logger = logging.getLogger(__name__)

NUCLEI = {"threshold": 0.4, "min_peak": 0.9, "min_area": 40, "min_solidity": 0.85}  # as inference.json has it
SIDE = 512  # of the piece that is shown of an image, in pixels


class ValidationOverlay:
    """
    Draws, at the end of a training, what the weights that it keeps find in validation images, beside the reference.

    They are the first image of each patient (field, group), not the best ones, in two columns; of a large one the
    middle 512 x 512 pixels. Without validation images nothing is drawn. A drawing that fails is told and never costs
    the training. In a distributed training the first process alone draws.

    Args:
        dataset: gives items with ``image`` (3, H, W) RGB in [0, 255] and ``label`` (1, H, W), the nuclei.
        network: the segmentation network.
        inferer: as in validation.
        kept_model: file of the weights kept, see ``keeping.KeptModel``.
        path: the picture to write.
        targets: what the channels mean, see :mod:`scripts.nuclei.targets`.
        count: greatest number of images.
        device: of the network.
    """

    def __init__(
        self,
        dataset: Dataset,
        network: torch.nn.Module,
        inferer: Callable[..., torch.Tensor],
        kept_model: str | os.PathLike,
        path: str | os.PathLike,
        targets: str,
        count: int = 4,
        device: torch.device | str = "cpu",
    ) -> None:
        self.dataset, self.network, self.inferer, self.targets = dataset, network, inferer, targets
        self.kept_model, self.path, self.count, self.device = Path(kept_model), Path(path), count, device

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if idist.get_rank() > 0 or not len(self.dataset):
            return
        training = self.network.training
        self.network.eval()
        with only_warned(logger, "no overlay of the training"):
            with kept_weights(self.network, self.kept_model), torch.inference_mode():
                pieces = [self._draw(index) for index in self._chosen()]
            with atomic_path(self.path) as partial:
                Image.fromarray(contact_sheet(pieces, columns=2)).save(partial)
        self.network.train(training)

    def _chosen(self) -> list[int]:
        # who replaces the items, as MONAI Label does, may give no more than files
        items = [{"group": str(i), **about, "index": i} for i, about in enumerate(self.dataset.data)]
        return [item["index"] for item in in_turn(items)[: self.count]]

    def _draw(self, index: int) -> np.ndarray:
        item = self.dataset[index]
        image, label = (torch.as_tensor(np.asarray(item[key])) for key in ("image", "label"))
        logits = self.inferer(image[None].float().to(self.device), self.network)[0]
        mask, instances = logits_to_instances(logits, targets=self.targets, **NUCLEI)
        scores = image_metrics(mask, label > 0, instances, label, None)
        name = Path(str(self.dataset.data[index]["image"])).name
        title = f"{name}  Dice {scores['dice']:.2f}  found {scores['n_pred']} (yellow) of {scores['n_true']} (cyan)"
        shown = [slice((side - min(side, SIDE)) // 2, (side + min(side, SIDE)) // 2) for side in label.shape[1:]]
        return overlay(*(np.asarray(map_)[:, shown[0], shown[1]] for map_ in (image, instances, label)), title)


class ClosingLines:
    """
    Prints, as the last thing of a training, what was trained, how well the kept weights do and where to look.

    Args:
        kept_model: the file that was written.
        overlay: the picture of :class:`ValidationOverlay`.
        start: model file that the training started from, None for an untrained decoder.
        domain_name: the primary, whose validation images judge.
        images: their number.
    """

    def __init__(
        self,
        kept_model: str | os.PathLike,
        overlay: str | os.PathLike,
        start: str | os.PathLike | None,
        domain_name: str,
        images: int,
    ) -> None:
        self.kept_model, self.overlay, self.start = Path(kept_model), Path(overlay), start
        self.domain_name, self.images = domain_name, images

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if idist.get_rank() > 0:
            return
        begun = "an untrained decoder" if self.start is None else f"the weights of {self.start}"
        provenance = read_model_file(self.kept_model).get("provenance", {}) if self.kept_model.is_file() else {}
        judged = "no validation image has judged them"
        if "val_dice" in provenance:
            images = counted(self.images, "validation image")
            judged = f"Dice {provenance['val_dice']:.3f} of the mask on {images} of {self.domain_name}"
        steps = counted(engine.state.iteration, "step")
        print(f"Trained {steps} from {begun}; kept: epoch {provenance.get('epoch')}, {judged}.")
        look = f"Look at {self.overlay} (found nuclei yellow, reference cyan); " if self.overlay.is_file() else ""
        print(f"{look}weights: {self.kept_model}")
