"""Addresses that keep what is sent: images and labels in the studies, and sessions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Form, HTTPException, Query, UploadFile
from lib import schema
from lib.http_errors import told_to_client
from lib.uploads import stored
from monailabel.config import settings
from monailabel.endpoints import session
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.sessions import SessionInfo, Sessions
from pydantic import Field, Json
from scripts.data.readers import file_suffix
from scripts.errors import DataError

__all__ = ["router", "session_of"]

router = APIRouter()
user = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
annotator = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))


# --- the studies


class NewImageQuery(schema.Strict):
    image: str | None = None


class LabelQuery(schema.Strict):
    image: str
    tag: str = "final"


class ImageInfoQuery(schema.Strict):
    image: str


class LabelInfoQuery(schema.Strict):
    label: str
    tag: str


LabelInfo = Json[dict[str, Any]] | None  # kept for the client that sent it, and read by nothing here


@router.put("/datastore/", include_in_schema=False)
@router.put("/datastore/image", tags=["Datastore"])
async def put_image(
    query: Annotated[NewImageQuery, Query()],
    file: UploadFile,
    params: Annotated[Json[schema.ImageInfo] | None, Form()] = None,
    who: Annotated[User, annotator] = None,
):
    """Store an image."""
    name = query.image or Path(file.filename).name.removesuffix(file_suffix(file.filename))
    with told_to_client(), stored(file) as upload:
        details = {**(params or schema.ImageInfo()).model_dump(exclude_none=True), "user": who.username}
        return {"image": app_instance().datastore().add_image(name, str(upload), details)}


@router.put("/datastore/label", tags=["Datastore"])
async def put_label(
    query: Annotated[LabelQuery, Query()],
    label: UploadFile,
    params: Annotated[LabelInfo, Form()] = None,
    who: Annotated[User, annotator] = None,
):
    """Store an image's label."""
    with told_to_client(), stored(label) as upload:
        details = {**(params or {}), "user": who.username}
        saved = app_instance().datastore().save_label(query.image, str(upload), query.tag or "final", details)
    return {"image": query.image, "label": saved}


@router.put("/datastore/image/info", tags=["Datastore"])
async def put_image_info(
    query: Annotated[ImageInfoQuery, Query()],
    info: Annotated[Json[schema.ImageInfo] | None, Form()] = None,
    who: Annotated[User, annotator] = None,
):
    """Tell of an image what its file does not say."""
    details = {**(info or schema.ImageInfo()).model_dump(exclude_none=True), "user": who.username}
    return app_instance().datastore().update_image_info(query.image, details)


@router.put("/datastore/label/info", tags=["Datastore"])
async def put_label_info(
    query: Annotated[LabelInfoQuery, Query()],
    info: Annotated[LabelInfo, Form()] = None,
    who: Annotated[User, annotator] = None,
):
    """Tell of a label what a client wants to keep with it."""
    return app_instance().datastore().update_label_info(query.label, query.tag, {**(info or {}), "user": who.username})


@router.put("/datastore/updatelabelinfo", include_in_schema=False)
async def put_label_params(
    query: Annotated[LabelInfoQuery, Query()],
    params: Annotated[LabelInfo, Form()] = None,
    who: Annotated[User, annotator] = None,
):
    return await put_label_info(query, params, who)


# --- sessions: an image that is sent once and asked about several times


class NewSessionQuery(schema.Strict):
    expiry: Annotated[int, Field(ge=0, lt=2**31)] = 0  # seconds; 0 is the server's


class SessionQuery(schema.Strict):
    update_ts: bool = False
    image: bool = False


@router.put("/session/", tags=["Session"], dependencies=[user])
async def put_session(query: Annotated[NewSessionQuery, Query()], files: list[UploadFile]):
    """Keep one image for a while."""
    with told_to_client():
        if len(files) != 1:
            raise DataError("files", f"a session is of one image, not of {len(files)}", "Send one file.")
        with stored(files[0]) as upload:
            session_id, kept_image = _sessions().add_session(str(upload), query.expiry)
    return {"session_id": session_id, "session_info": kept_image.to_json()}


@router.get("/session/{session_id}", tags=["Session"], dependencies=[user])
async def get_session(session_id: UUID, query: Annotated[SessionQuery, Query()]):
    """What is known of a session, or its image."""
    return session.get_session(str(session_id), query.update_ts, query.image)


@router.delete("/session/{session_id}", tags=["Session"], dependencies=[user])
async def delete_session(session_id: UUID):
    """Forget a session and its image."""
    return session.remove_session(str(session_id))


def session_of(session_id: UUID) -> SessionInfo:
    """What is known of a session."""
    if (found := _sessions().get_session(str(session_id))) is None:
        raise HTTPException(404, f"there is no session '{session_id}'; it may have expired")
    return found


def _sessions() -> Sessions:
    if (sessions := app_instance().sessions()) is None:
        raise HTTPException(406, "sessions are switched off (MONAI_LABEL_SESSIONS)")
    return sessions
