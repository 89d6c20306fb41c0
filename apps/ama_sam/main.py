"""MONAI Label app for tiles, slide regions and whole slides, with online learning; see bundle/docs/monailabel.md."""

from __future__ import annotations

import copy
import logging
import os
import sys
from pathlib import Path

BUNDLE = Path(__file__).resolve().parents[2] / "bundle"
sys.path.append(str(BUNDLE))  # in front of nothing: `scripts` is the only name that is looked for there
# else MONAI Label imports `scripts` anew for each bundle it meets, and an error's class is no longer the one we know
os.environ.setdefault("MONAI_LABEL_RELOAD_APP_LIB", "false")

import lib.torchvision_operators  # noqa: E402, F401 before MONAI Label
from fastapi import HTTPException  # noqa: E402
from lib.http_errors import told_to_client  # noqa: E402
from lib.infer import SegmentNuclei  # noqa: E402
from lib.studies import Studies  # noqa: E402
from lib.train import TrainOnLabelled  # noqa: E402
from lib.uncertainty import MostUncertain  # noqa: E402
from monailabel.interfaces.app import MONAILabelApp  # noqa: E402
from monailabel.tasks.activelearning.first import First  # noqa: E402
from monailabel.tasks.activelearning.random import Random  # noqa: E402

logger = logging.getLogger(__name__)

MODEL = "ama_sam"


class AmaSamApp(MONAILabelApp):
    """
    Nuclei of tiles and slides; learns from what is labelled as the new primary domain.

    Settings (``-c NAME VALUE``):
        mpp: micrometres per pixel of images that do not say it themselves; without it they are taken as they are, and
            slides are refused.
        auxiliary_dir: folder of domain folders that stay auxiliary in training; default none.
        auxiliary: names of those to use, separated by commas; default all of that folder.
        model_dir: where trained models are published and training keeps its files; default ``model`` in the app. As
            long as no model is there, the bundle's own one is served.
        cache_dir: where encoded features are kept; default in ``model_dir``.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        conf = {"model_dir": os.path.join(app_dir, "model"), **conf}
        super().__init__(
            app_dir, studies, conf, name="AMA-SAM", description="Nuclei in H&E, on tiles and slides", version="1"
        )

    def init_datastore(self) -> Studies:
        return Studies(self.studies)

    def init_infers(self) -> dict:
        return {MODEL: SegmentNuclei(BUNDLE, self.conf, self.datastore())}

    def init_trainers(self) -> dict:
        return {MODEL: TrainOnLabelled(BUNDLE, self.conf)}

    def init_strategies(self) -> dict:
        return {"uncertain": MostUncertain(self._infers[MODEL]), "random": Random(), "first": First()}

    def infer(self, request: dict, datastore=None) -> dict:
        with told_to_client():
            self._check(request)
            return super().infer(request, datastore)

    def infer_wsi(self, request: dict, datastore=None) -> dict:
        """Polygons of a tile, a region or a whole slide; never cut into the tiles that the client wishes for."""
        with told_to_client():
            task, path = self._check(request)
            return task.annotate(path, copy.deepcopy(request))

    def next_sample(self, request: dict) -> dict:
        with told_to_client():
            return super().next_sample(request)

    def bundle_path(self, model: str) -> str:
        """Asked for by the server just before it starts a training: the last moment at which a client can be told."""
        if model not in self._trainers:
            raise HTTPException(404, f"there is no model '{model}' to train; there is {', '.join(self._trainers)}")
        if not self.datastore().datalist():
            raise HTTPException(422, "nothing is labelled yet: save at least one label (PUT /datastore/label)")
        return str(BUNDLE)

    def _check(self, request: dict) -> tuple[SegmentNuclei, str]:
        """The task and the image's file that a request means."""
        if (task := self._infers.get(request.get("model"))) is None:
            raise HTTPException(404, f"there is no model '{request.get('model')}'; there is {', '.join(self._infers)}")
        image = request.get("image")
        path = image if image and os.path.isfile(image) else self.datastore().get_image_uri(image)
        if not path:
            raise HTTPException(404, f"there is no image '{image}' in the studies")
        return task, path
