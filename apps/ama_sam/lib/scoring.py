from __future__ import annotations

import numpy as np
from lib.studies import Studies, label_map, slide_of
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.tasks.scoring import ScoringMethod
from scripts.nuclei.metrics import instance_scores, mask_scores

__all__ = ["Agreement"]


class Agreement(ScoringMethod):
    """How much of what the model found (label ``original``) a person left as it was (label ``final``), by image."""

    def __init__(self) -> None:
        super().__init__("Dice, AJI and PQ of what was found, against what was submitted")

    def __call__(self, request: dict, datastore: Studies) -> dict[str, dict[str, float]]:
        """Scores of the images that have both labels; they are kept with the image, too."""
        scores = {}
        for image in datastore.list_images():
            path, labels = datastore.path_of(image), []
            for tag in (DefaultLabelTag.ORIGINAL, DefaultLabelTag.FINAL):
                if (label := datastore.label_path_of(image, tag)) is not None:
                    labels.append(label)
            if len(labels) < 2 or slide_of(path) is not None:
                continue
            found, true = (np.asarray(label_map(path, label)) for label in labels)
            all_scores = {**mask_scores(found > 0, true > 0), **instance_scores(found, true)}
            scores[image] = {name: round(float(all_scores[name]), 4) for name in ("dice", "aji", "pq")}
            datastore.update_image_info(image, scores[image])
        return scores
