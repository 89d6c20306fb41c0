"""MONAI Label app for tiles, slide regions and whole slides, with online learning; see bundle/docs/monailabel.md."""

from __future__ import annotations

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
from lib.app_settings import check_settings  # noqa: E402
from lib.http_errors import told_to_client  # noqa: E402
from lib.infer import SegmentNuclei  # noqa: E402
from lib.next_tile import MostUncertain, RandomTile  # noqa: E402
from lib.schema import InferOptions, RegionRequest, TrainOptions  # noqa: E402
from lib.scoring import Agreement  # noqa: E402
from lib.studies import Studies  # noqa: E402
from lib.train import TrainOnLabelled  # noqa: E402
from monailabel.interfaces.app import MONAILabelApp  # noqa: E402
from monailabel.tasks.activelearning.first import First  # noqa: E402
from scripts.errors import DataError  # noqa: E402

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
        origins: web pages that may ask this server, separated by commas: ``https://viewer.example.org``; default none.

    The environment variable ``AMA_SAM_TOKEN`` is what requests then have to give as ``Authorization: Bearer``.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        check_settings(conf)
        conf = {"model_dir": os.path.join(app_dir, "model"), **conf}
        super().__init__(
            app_dir, studies, conf, name="AMA-SAM", description="Nuclei in H&E, on tiles and slides", version="1"
        )

    def init_datastore(self) -> Studies:
        return Studies(self.studies)

    def init_infers(self) -> dict:
        return {MODEL: SegmentNuclei(BUNDLE, self.conf)}

    def init_trainers(self) -> dict:
        return {MODEL: TrainOnLabelled(BUNDLE, self.conf)}

    def init_strategies(self) -> dict:
        return {"uncertain": MostUncertain(self._infers[MODEL]), "random": RandomTile(), "first": First()}

    def init_scoring_methods(self) -> dict:
        return {"agreement": Agreement()}

    def async_scoring(self, method: str | None, params: dict | None = None) -> dict:
        """MONAI Label would score after each label and training, in a new process each time: here only who asks."""
        return {}

    def on_init_complete(self) -> None:
        """Called by a server that is about to answer, and by no training."""
        from lib.server import protect
        from monailabel.app import app

        protect(app, filter(None, self.conf.get("origins", "").split(",")))
        super().on_init_complete()

    def segment(self, model: str, image: Path | str, options: InferOptions) -> dict:
        """
        The label map of an image.

        Args:
            model: name of the model.
            image: an id in the studies, or a file that the server keeps for a request.
            options: ``save_label`` keeps the result as the label of an image of the studies.

        Returns:
            ``{"file", "params"}``: the label map and what is told of it.
        """
        self.check_model(model)
        file, params = self._infers[model].segment(self._path(image), options, self._known_mpp(image))
        if options.save_label and isinstance(image, str):
            self.datastore().save_label(image, file, options.label_tag, {"model": model, "params": params})
        return {"file": file, "params": params}

    def annotate(self, model: str, image: Path | str, request: RegionRequest, output: str | None) -> dict:
        """Polygons of a tile, a region or a whole slide; never cut into the tiles that the client wishes for."""
        self.check_model(model)
        return self._infers[model].annotate(self._path(image), request, output, self._known_mpp(image))

    def infer(self, request: dict, datastore=None) -> dict:
        """One image of a batch, for MONAI Label."""
        return self.segment(request["model"], str(request["image"]), InferOptions.of(request))

    def next_sample(self, request: dict) -> dict:
        with told_to_client():
            return super().next_sample(request)

    def score(self, method: str) -> dict:
        """Scores of the images of the studies, see ``lib.scoring``."""
        if method not in self._scoring_methods:
            raise HTTPException(404, f"there is no score '{method[:60]}'; there is {', '.join(self._scoring_methods)}")
        return self.scoring({"method": method})

    def progress(self, begun: float) -> dict:
        """How far the training is that was begun at that time (seconds since 1970); nothing before its first files."""
        stats = self._trainers[MODEL].stats()
        return stats if stats and stats["start_ts"] >= int(begun) else {}

    def trainers(self) -> list[str]:
        """Names of the models that can be trained."""
        return list(self._trainers)

    def check_model(self, model: str) -> None:
        """Refuse an unknown model."""
        if model not in self._infers:
            raise HTTPException(404, f"there is no model '{model[:60]}'; there is {', '.join(self._infers)}")

    def check_training(self, model: str, options: TrainOptions) -> None:
        """Refuse a training that cannot run: the last moment at which a client can be told."""
        if model not in self._trainers:
            raise HTTPException(404, f"there is no model '{model[:60]}' to train; there is {', '.join(self._trainers)}")
        self._trainers[model].check(options)
        if not self.datastore().datalist():
            raise DataError("studies", "nothing is labelled yet", "Save at least one label (PUT /datastore/label).")

    def _path(self, image: Path | str) -> str:
        path = image if isinstance(image, Path) else self.datastore().path_of(image)
        if path is None or not path.is_file():
            raise HTTPException(404, f"there is no image '{str(image)[:60]}' in the studies")
        return str(path)

    def _known_mpp(self, image: Path | str) -> object:
        return self.datastore().get_image_info(image).get("mpp") if isinstance(image, str) else None
