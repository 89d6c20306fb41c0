from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from scripts.errors import DataError
from scripts.networks.model_info import ModelInfo
from scripts.nuclei.magnification import enlarging_factor
from scripts.nuclei.metrics import known_mpp

__all__ = ["EstimateMppd"]


class EstimateMppd(Transform):
    """
    Guess the pixel size of an image that states none from its nuclei, by a first look at it as it is.

    Where nuclei look small, ``mpp`` of the item and of its image's meta data becomes the one at which they would have
    the size of those that the model was trained on, so that ``ToTargetMppd`` enlarges the image, and ``mpp_from``
    becomes ``estimated``. Elsewhere, and where ``mpp`` is known, the item stays as it is.

    Args:
        network: image -> logits.
        inferer: as in the evaluator; runs the network on the first look.
        separate: adds ``instances`` to an item with ``pred``, such as ``LogitsToInstancesd``.
        model: tells the pixel size and the size of nuclei that the network knows.
        key: of the image (3, H, W).

    Raises:
        DataError: when the model does not tell both.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        inferer: Callable[[torch.Tensor, torch.nn.Module], torch.Tensor],
        separate: Callable[[dict], dict],
        model: ModelInfo,
        key: str = "image",
    ) -> None:
        if not model.mpp or not model.nucleus_area_px:
            hint = "Give --mpp a number, or a model of version 0.4 or later trained with a known pixel size"
            raise DataError("mpp", "an estimate needs a model that says what nuclei it was trained on", hint)
        self.network, self.inferer, self.separate, self.model, self.key = network, inferer, separate, model, key

    def __call__(self, data: Mapping[Hashable, object]) -> dict:
        item = dict(data)
        image = item[self.key]
        if known_mpp(image.meta.get("mpp")) is not None:
            return item
        device = next(self.network.parameters()).device
        with torch.inference_mode():
            logits = self.inferer(image[None].to(device), self.network)[0]
        instances = np.asarray(self.separate({"pred": logits})["instances"].cpu())[0]
        factor = enlarging_factor(instances, self.model.nucleus_area_px)
        if factor is None:
            return item
        item["mpp"] = self.model.mpp * factor
        item[self.key] = MetaTensor(image.as_tensor(), meta={**image.meta, "mpp": item["mpp"], "mpp_from": "estimated"})
        return item
