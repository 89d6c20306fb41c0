"""
Addresses that ask for something: inference, training, the image to label next.

MONAI Label's own hand on what a request says as it came; here each kind of request is one of :mod:`lib.schema`. What
takes its time is no coroutine: the server runs it in a thread, and answers others meanwhile.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, BackgroundTasks, Body, Depends, File, Form, HTTPException, Query, UploadFile
from lib import schema
from lib.http_errors import told_to_client
from lib.studies_routes import session_of
from lib.uploads import stored
from monailabel.config import settings
from monailabel.endpoints import activelearning, infer, train, wsi_infer
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks.task import AsyncTask
from pydantic import Json
from scripts.errors import DataError

__all__ = ["router"]

# QuPath sends JSON without saying that it is JSON
router = APIRouter(strict_content_type=False)

user = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
annotator = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))
admin = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))


# --- inference


class ImageQuery(schema.Strict):
    image: str = ""
    session_id: UUID | None = None


class InferQuery(ImageQuery):
    output: Literal["image", "json", "all"] | None = None


class RegionQuery(ImageQuery):
    output: Literal["asap", "dsa", "json"] | None = None


@router.post("/infer/{model}", tags=["Infer"], dependencies=[user])
def infer_image(
    background: BackgroundTasks,
    model: str,
    query: Annotated[InferQuery, Query()],
    params: Annotated[Json[schema.InferOptions] | None, Form()] = None,
    file: Annotated[UploadFile | None, File()] = None,
):
    """The label map of an image: one that is sent, one of the studies, or a session's."""
    with told_to_client(), stored(file) as upload:
        result = app_instance().segment(model, _image(query, upload), params or schema.InferOptions())
    return infer.send_response(app_instance().datastore(), result, query.output, background)


@router.post("/infer/wsi/{model}", tags=["Infer"], dependencies=[user])
def infer_region(
    background: BackgroundTasks,
    model: str,
    query: Annotated[RegionQuery, Query()],
    wsi: schema.RegionRequest | None = None,
):
    """Polygons of a slide, or of a region of one, in the studies."""
    return _annotate(background, model, query, wsi, None)


@router.post("/infer/wsi_v2/{model}", tags=["Infer"], dependencies=[user])
def infer_uploaded_region(
    background: BackgroundTasks,
    model: str,
    query: Annotated[RegionQuery, Query()],
    wsi: Annotated[Json[schema.RegionRequest] | None, Form()] = None,
    file: Annotated[UploadFile | None, File()] = None,
):
    """Polygons of an image or slide that is sent, or of one in the studies."""
    return _annotate(background, model, query, wsi, file)


def _annotate(background, model, query, wsi, file):
    with told_to_client(), stored(file) as upload:
        result = app_instance().annotate(model, _image(query, upload), wsi or schema.RegionRequest(), query.output)
    return wsi_infer.send_response(app_instance().datastore(), result, query.output, background)


class BatchQuery(schema.Strict):
    images: Literal["all", "labeled", "unlabeled"] = "all"


@router.post("/batch/infer/{model}", tags=["Infer"], dependencies=[admin])
async def infer_batch(model: str, query: Annotated[BatchQuery, Query()], options: schema.BatchOptions | None = None):
    """Label maps of images of the studies, kept as their labels, in the background."""
    options = options or schema.BatchOptions()
    app_instance().check_model(model)
    # one after the other on one device: with several workers MONAI Label would choose the devices
    request = {"model": model, "images": query.images, "multi_gpu": False, "max_workers": 1}
    device = options.device or schema.default_device()
    return _run("batch_infer", {**request, **options.model_dump(exclude_none=True), "device": device})


# --- training and choosing what to label


class TrainQuery(schema.Strict):
    enqueue: bool = False


@router.post("/train/{model}", tags=["Train"], dependencies=[admin])
async def train_model(model: str, query: Annotated[TrainQuery, Query()], options: schema.TrainOptions | None = None):
    """Learn from what is labelled, in the background."""
    return _train(model, options or schema.TrainOptions(), query.enqueue)


@router.post("/train/", tags=["Train"], dependencies=[admin])
async def train_models(options: Annotated[dict[str, schema.TrainOptions] | None, Body()] = None):
    """The same with the options of each model, as OHIF sends them."""
    chosen = options or {name: schema.TrainOptions() for name in app_instance().trainers()}
    return {name: {"result": _train(name, chosen[name], True), "detail": None} for name in chosen}


@router.get("/train/", tags=["Train"], dependencies=[user])
def training_status(all: bool = False, check_if_running: bool = False):
    """MONAI Label's status of the training, and of one that runs its ``progress``: see ``lib.train_stats``."""
    status = train.status(all, check_if_running)
    if isinstance(status, dict) and status.get("status") == "RUNNING":
        begun = datetime.strptime(status["start_ts"], "%Y-%m-%d %H:%M:%S").timestamp()
        return {**status, "progress": app_instance().progress(begun)}
    return status


def _train(model, options, enqueue):
    with told_to_client():
        app_instance().check_training(model, options)
    return _run("train", {"model": model, **options.model_dump(exclude_none=True)}, enqueue)


def _run(method, request, enqueue=False):
    task, detail = AsyncTask.run(method, request=request, enqueue=enqueue)
    if task is None:
        raise HTTPException(429, detail)
    return task


@router.post("/scoring/{method}", tags=["Scoring"], dependencies=[annotator])
def score(method: str):
    """Scores of the images that have a label of the model's and one of a person's."""
    with told_to_client():
        return app_instance().score(method)


@router.post("/activelearning/{strategy}", tags=["ActiveLearning"])
def next_sample(strategy: str, options: schema.SampleOptions | None = None, who: Annotated[User, user] = None):
    """The image to label next."""
    options = options or schema.SampleOptions()
    return activelearning.sample(strategy, options.model_dump(exclude_none=True), who.username)


def _image(query: ImageQuery, upload: Path | None) -> Path | str:
    """The image that a request means: a file the server keeps for it, or an id in the studies."""
    if query.session_id is not None:
        return Path(session_of(query.session_id).image)
    if upload is None and not query.image:
        raise DataError("image", "the request has none", "Send a file, or name an image of the studies.")
    return upload or query.image
