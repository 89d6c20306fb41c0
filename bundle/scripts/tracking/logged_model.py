from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, Run
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.pyfunc import save_model
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import AnyType, Array, DataType
from scripts.files import read_json, sha256_of
from scripts.networks.model_file import read_model_file
from scripts.networks.model_info import DECODERS

__all__ = ["LoggedModel", "save"]

logger = logging.getLogger(__name__)

BEST = "best"  # alias of the version that validates best
_NAME = "model"
_METRIC = "val_dice"


class LoggedModel:
    """
    The kept model of a training as a model of MLflow's: logged once for each run, and registered where that is asked.

    A version of a registered model gets the alias ``best`` when its validation is not worse than that of the version
    that has it; judged on other data the two cannot be compared, and the alias stays where it is.

    Args:
        path: the model file, see ``networks.model_file``.
        bundle_root: folder whose scripts and ``configs/inference.json`` go with it.
        register: name of a registered model; None registers nothing.
        data: fingerprint of what the validation was made on.
    """

    def __init__(
        self, path: str | os.PathLike, bundle_root: str | os.PathLike, register: str | None = None, data: str = ""
    ) -> None:
        self.path, self.bundle_root, self.register, self.data = Path(path), Path(bundle_root), register, data

    def log(self, client: MlflowClient, run: Run) -> None:
        """Log it with a run. What the store refuses is raised; that of a registry, or a foreign network, is told."""
        content = read_model_file(self.path)
        if content.get("decoder", {}).get("type") not in DECODERS:
            logger.warning("%s: its network is none of this bundle's, so MLflow is not given the model", self.path)
            return
        score, digest = content["provenance"].get(_METRIC), sha256_of(self.path)
        model_id = self._logged(client, run, digest) or self._log(client, run, digest)
        if self.register is None or model_id is None:
            return
        try:
            self._register(client, run, model_id, score)
        except MlflowException as error:
            logger.warning("%s: the model is logged, but not registered (%s)", self.register, error.message)

    def _logged(self, client: MlflowClient, run: Run, digest: str) -> str | None:
        """The same model, logged before the run was gone on with."""
        outputs = client.get_run(run.info.run_id).outputs
        for output in outputs.model_outputs if outputs is not None else ():
            if client.get_logged_model(output.model_id).tags.get("sha256") == digest:
                return output.model_id
        return None

    def _log(self, client: MlflowClient, run: Run, digest: str) -> str | None:
        run_id, tags = run.info.run_id, {"sha256": digest, "data_fingerprint": self.data}
        logged = client.create_logged_model(run.info.experiment_id, _NAME, run_id, tags=tags, model_type="segmentation")
        status = "FAILED"
        try:
            with tempfile.TemporaryDirectory() as folder:
                about = Model(run_id=run_id, model_id=logged.model_id, artifact_path=logged.artifact_location)
                try:
                    save(Path(folder, _NAME), self.path, self.bundle_root, about)
                except (OSError, MlflowException) as error:  # such as a full disk
                    logger.warning("%s: the model could not be made ready for MLflow (%s)", self.path, error)
                    return None
                client.log_model_artifacts(logged.model_id, str(Path(folder, _NAME)))
            client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
            status = "READY"
        finally:
            client.finalize_logged_model(logged.model_id, status)
        return logged.model_id

    def _register(self, client: MlflowClient, run: Run, model_id: str, score: float | None) -> None:
        found = [model for model in client.search_registered_models() if model.name == self.register]
        if not found:
            client.create_registered_model(self.register)
        tags = {"data_fingerprint": self.data} | ({} if score is None else {_METRIC: f"{score:.6f}"})
        source = client.get_logged_model(model_id).artifact_location  # of models:/<id> MLflow asks its global store
        new = client.create_model_version(self.register, source, run.info.run_id, tags=tags, model_id=model_id)
        told = f"registered as version {new.version} of {self.register}"
        best = found[0].aliases.get(BEST) if found else None
        tags_of_best = {} if best is None else client.get_model_version(self.register, best).tags
        if best is not None and score is None:
            logger.info("%s; no image has judged it: '%s' stays version %s", told, BEST, best)
        elif best is not None and tags_of_best.get("data_fingerprint") != self.data:
            logger.info("%s; '%s' stays version %s, which was judged on other data", told, BEST, best)
        elif best is not None and score < float(tags_of_best.get(_METRIC, "-inf")):
            logger.info("%s; '%s' stays version %s, which validates better", told, BEST, best)
        else:
            client.set_registered_model_alias(self.register, BEST, new.version)
            logger.info("%s, which is '%s' now: models:/%s@%s", told, BEST, self.register, BEST)


def save(
    folder: str | os.PathLike, model: str | os.PathLike, bundle_root: str | os.PathLike, about: Model | None = None
) -> None:
    """
    Write a model file as a folder that ``mlflow.pyfunc.load_model`` and ``mlflow models serve`` take.

    It holds the model, ``inference.json`` and the package ``scripts``, so nothing of the bundle is needed where it is
    loaded but the packages in its ``requirements.txt``, of the versions that are installed here.

    Args:
        folder: is made.
        model: the model file.
        bundle_root: folder of the bundle.
        about: MLflow's description, to be filled.
    """
    root = Path(bundle_root)
    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)  # it tells each step
    with tempfile.TemporaryDirectory() as place:
        data = Path(place, "nuclei")
        (data / "models").mkdir(parents=True)
        shutil.copyfile(model, data / "models" / "model.pt")
        shutil.copyfile(root / "configs" / "inference.json", data / "inference.json")
        save_model(
            path=str(folder),
            loader_module="scripts.tracking.mlflow_model",
            data_path=str(data),
            code_paths=[str(root / "scripts")],
            mlflow_model=about,
            signature=_signature(),
            input_example=_example(),
            pip_requirements=_requirements(read_json(root / "configs" / "metadata.json")),
        )


def _signature() -> ModelSignature:
    labels, rows = Array(Array(DataType.long)), Array(AnyType())
    return ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))]),
        outputs=Schema([ColSpec(labels, "labels"), ColSpec(rows, "nuclei")]),
        params=ParamSchema([ParamSpec("mpp", DataType.double, None)]),
    )


def _example() -> np.ndarray:
    """A drawn nucleus on pink, no patient's."""
    image = np.full((1, 64, 64, 3), (235, 200, 225), np.uint8)
    y, x = np.mgrid[:64, :64]
    image[0, ((y - 32) / 16) ** 2 + ((x - 30) / 11) ** 2 < 1] = (95, 60, 140)
    return image


def _requirements(metadata: Mapping[str, Any]) -> list[str]:
    found = []
    for name in ("monai", "torch", "numpy", *metadata["required_packages_version"]):
        with suppress(PackageNotFoundError):
            found.append(f"{name}=={installed(name).partition('+')[0]}")
    return found
