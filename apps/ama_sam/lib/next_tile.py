from __future__ import annotations

import logging
import random
from collections.abc import Sequence

from lib.infer import SegmentNuclei
from lib.next_patch import next_patch
from lib.studies import Studies, slide_of, tile_path
from monailabel.interfaces.tasks.strategy import Strategy
from scripts.errors import DataError, root_cause
from scripts.files import sha256_of

__all__ = ["MostUncertain", "RandomTile"]

logger = logging.getLogger(__name__)


class MostUncertain(Strategy):
    """
    Offers the unlabelled tile, or the patch of a slide, about which the served model disagrees most with itself.

    What it finds is kept with the image in the studies, so that a tile is looked at once for each model. Slides that
    are not asked for are passed over, and so is what cannot be read. That disagreement over views tells better than
    entropy where the model is wrong is measured by ``benchmarks/patches.py``.

    Args:
        task: knows the served model.
    """

    def __init__(self, task: SegmentNuclei) -> None:
        super().__init__("Most uncertain first (disagreement over views): tiles, or patches of the slide that is open")
        self.task = task

    def __call__(self, request: dict, datastore: Studies) -> dict | None:
        """
        Args:
            request: ``max_images`` bounds how many tiles or patches are looked at in this call (default 100); the rest
                follows in the next ones. ``image`` asks for a patch of that slide, of ``patch_size`` pixels.
            datastore: the studies.

        Returns:
            ``{"id", "weight"}``, the weight being the disagreement, and ``bbox`` (left, top, width, height) of a patch;
            None when nothing is left.
        """
        model = sha256_of(self.task.get_path())[:16]
        left = request.get("max_images", 100)
        if image := request.get("image"):
            return self._patch(image, request["patch_size"], model, left, datastore)
        scores = {}
        for image in sorted(datastore.get_unlabeled_images()):
            info = datastore.get_image_info(image)
            if info.get("disagreement_model") == model:
                scores[image] = info["disagreement"]
            elif left > 0 and (score := self._disagreement(image, datastore)) is not None:
                left -= 1
                scores[image] = score
                datastore.update_image_info(image, {"disagreement": score, "disagreement_model": model})
        if not scores:
            return None
        chosen = max(scores, key=scores.get)
        return {"id": chosen, "weight": scores[chosen]}

    def _patch(self, image: str, size: Sequence[int], model: str, looks: int, datastore: Studies) -> dict | None:
        path = datastore.path_of(image)
        if path is None or (slide := slide_of(path)) is None:
            problem = "there is no such slide in the studies" if path is None else "it is an image, no slide"
            raise DataError(image, problem, "Put the slide there, or ask for the next tile.")
        info = datastore.get_image_info(image)
        known = info.get("patches", {})
        mpp = self.task.mpp_of(slide, info.get("mpp"))
        found = next_patch(self.task, slide, mpp, size, known, model, looks)
        datastore.update_image_info(image, {"patches": known})
        return None if found is None else {"id": image, "weight": found[1], "bbox": found[0]}

    def _disagreement(self, image: str, datastore: Studies) -> float | None:
        if (path := tile_path(image, datastore)) is None:
            return None
        try:
            return self.task.disagreement(path, datastore.get_image_info(image).get("mpp"))
        except Exception as error:  # one image that cannot be used must not hide the others
            if not isinstance(root_cause(error), DataError):
                raise
            logger.warning("passed over: %s", root_cause(error))
            return None


class RandomTile(Strategy):
    """Offers any unlabelled tile; slides, of which no label can be learned from, are passed over."""

    def __init__(self) -> None:
        super().__init__("Any tile")

    def __call__(self, request: dict, datastore: Studies) -> dict | None:
        images = datastore.get_unlabeled_images()
        for image in random.sample(images, len(images)):  # nosec B311 # it guards nothing
            if tile_path(image, datastore) is not None:
                return {"id": image, "weight": 1 / len(images)}
        return None
