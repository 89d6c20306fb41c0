from __future__ import annotations

import logging
import random

from lib.infer import SegmentNuclei
from lib.studies import Studies, slide_of
from monailabel.interfaces.tasks.strategy import Strategy
from scripts.errors import DataError, root_cause
from scripts.files import sha256_of

__all__ = ["MostUncertain", "RandomTile"]

logger = logging.getLogger(__name__)


class MostUncertain(Strategy):
    """
    Offers the unlabelled tile about which the served model is least sure, by the mean entropy of its foreground.

    What it finds is kept with the image in the studies, so that a tile is looked at once for each model. Slides are
    passed over, and so is what cannot be read.

    Args:
        task: knows the served model.
    """

    def __init__(self, task: SegmentNuclei) -> None:
        super().__init__("Most uncertain tile first (mean entropy of the foreground probability)")
        self.task = task

    def __call__(self, request: dict, datastore: Studies) -> dict | None:
        """
        Args:
            request: ``max_images`` bounds how many tiles are looked at in this call (default 100); the rest follows in
                the next ones.
            datastore: the studies.

        Returns:
            ``{"id", "weight"}``, the weight being the entropy in bits; None when no tile is left.
        """
        model = sha256_of(self.task.get_path())[:16]
        left = request.get("max_images", 100)
        scores = {}
        for image in sorted(datastore.get_unlabeled_images()):
            info = datastore.get_image_info(image)
            if info.get("entropy_model") == model:
                scores[image] = info["entropy"]
            elif left > 0 and (entropy := self._entropy(image, datastore)) is not None:
                left -= 1
                scores[image] = entropy
                datastore.update_image_info(image, {"entropy": entropy, "entropy_model": model})
        if not scores:
            return None
        chosen = max(scores, key=scores.get)
        return {"id": chosen, "weight": scores[chosen]}

    def _entropy(self, image: str, datastore: Studies) -> float | None:
        if (path := _tile(image, datastore)) is None:
            return None
        try:
            return self.task.entropy(path, datastore.get_image_info(image).get("mpp"))
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
            if _tile(image, datastore) is not None:
                return {"id": image, "weight": 1 / len(images)}
        return None


def _tile(image: str, datastore: Studies) -> str | None:
    """The file of an image of the studies that is read whole; None for slides, and for what cannot be read."""
    try:
        path = datastore.path_of(image)
        return str(path) if slide_of(path) is None else None
    except DataError as error:
        logger.warning("passed over: %s", error)
        return None
