from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping

import numpy as np
import torch
from monai.transforms import Transform
from scripts.errors import DataError
from scripts.networks.model_info import ModelInfo
from scripts.nuclei.magnification import enlarging_factor, likely_factor
from scripts.nuclei.metrics import known_mpp

__all__ = ["EstimateMppd"]


class EstimateMppd(Transform):
    """
    Preprocessing that guesses the pixel size of an image that states none, from the nuclei of a first look at it.

    Where nuclei look small, the item is preprocessed anew with the ``mpp`` at which they would have the size of those
    that the model was trained on, so that the image is enlarged; ``mpp_from`` in the image's meta data then is
    ``estimated``. Elsewhere, and where the pixel size is known, it is what ``preprocessing`` gives. ``mpp_estimate`` in
    the meta data is what the first look says, nan without one or where it shows too few nuclei.

    Args:
        preprocessing: reads the image of an item and brings it to the model's pixel size, if ``mpp`` is known.
        network: image -> logits.
        inferer: as in the evaluator; runs the network on the first look.
        separate: adds ``instances`` to an item with ``pred``, such as ``LogitsToInstancesd``.
        model: tells the pixel size and the size of nuclei that the network knows.
        key: of the image (3, H, W), a ``MetaTensor``.

    Raises:
        DataError: when the model does not tell both.
    """

    def __init__(
        self,
        preprocessing: Callable[[Mapping[Hashable, object]], dict],
        network: torch.nn.Module,
        inferer: Callable[[torch.Tensor, torch.nn.Module], torch.Tensor],
        separate: Callable[[dict], dict],
        model: ModelInfo,
        key: str = "image",
    ) -> None:
        if not model.mpp or not model.nucleus_area_px:
            hint = "Give --mpp a number, or a model of version 0.4 or later that was trained with a known pixel size"
            raise DataError("mpp", "an estimate needs a model that says what nuclei it was trained on", hint)
        self.preprocessing, self.network, self.inferer = preprocessing, network, inferer
        self.separate, self.model, self.key = separate, model, key

    def __call__(self, data: Mapping[Hashable, object]) -> dict:
        item = self.preprocessing(data)
        if known_mpp(item[self.key].meta.get("mpp")) is not None:
            item[self.key].meta["mpp_estimate"] = math.nan
            return item
        device = next(self.network.parameters()).device
        with torch.inference_mode():
            logits = self.inferer(item[self.key][None].to(device), self.network)[0]
        instances = np.asarray(self.separate({"pred": logits})["instances"].cpu())[0]
        likely = likely_factor(instances, self.model.nucleus_area_px)
        factor = enlarging_factor(instances, self.model.nucleus_area_px)
        if factor is not None:
            item = self.preprocessing({**data, "mpp": self.model.mpp * factor})
            item[self.key].meta["mpp_from"] = "estimated"
        item[self.key].meta["mpp_estimate"] = math.nan if likely is None else self.model.mpp * likely
        return item
