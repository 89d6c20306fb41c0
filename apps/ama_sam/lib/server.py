from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from urllib.parse import urlsplit

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from lib import routes, studies_routes
from lib.guard import Guard
from monailabel.config import settings
from monailabel.endpoints import batch_infer, datastore, info, login, logs, model, train
from scripts.errors import DataError
from starlette.middleware import Middleware

__all__ = ["TOKEN_VARIABLE", "protect"]

logger = logging.getLogger(__name__)

# no setting of the app: MONAI Label writes those into its log, which it serves
TOKEN_VARIABLE = "AMA_SAM_TOKEN"  # nosec B105 # a name
# of MONAI Label's own addresses those that hand nothing of a request on to the app. Not served are: exchanging models,
# which is for training; DICOM's viewer and proxy
KEPT = {
    "/auth/": {"GET"},
    "/auth/token": {"POST"},
    "/auth/token/valid": {"GET"},
    "/batch/infer": {"GET", "DELETE"},
    "/datastore/": {"GET", "DELETE"},
    "/datastore/dataset": {"GET"},
    "/datastore/image": {"GET", "HEAD", "DELETE"},
    "/datastore/image/info": {"GET"},
    "/datastore/label": {"GET", "HEAD", "DELETE"},
    "/datastore/label/info": {"GET"},
    "/info/": {"GET"},
    "/logs/": {"GET"},
    "/logs/gpu": {"GET"},
    "/model/{model}": {"GET"},
    "/model/info/{model}": {"GET"},
    "/train/": {"DELETE"},
}
PAGES = {"/", "/docs", "/favicon.ico", "/openapi.json", "/reload", "/static"}


def protect(server: FastAPI, origins: Iterable[str]) -> None:
    """
    Put our routes in the place of MONAI Label's, and the guard in front of everything; once, before the first request.

    Args:
        server: MONAI Label's.
        origins: web pages that may ask it, beside those of ``MONAI_LABEL_CORS_ORIGINS``.

    Raises:
        DataError: for what is no origin, and when the environment gives an empty token.
    """
    allowed = sorted(map(_checked_origin, {*origins, *map(str, settings.MONAI_LABEL_CORS_ORIGINS)}))
    token = os.environ.get(TOKEN_VARIABLE)
    if token is not None and not token:
        raise DataError(TOKEN_VARIABLE, "the token is empty", "Give one, or unset the variable.")
    server.router.routes[:] = [route for route in server.router.routes if getattr(route, "path", None) in PAGES]
    for part in (routes.router, studies_routes.router, _kept()):
        server.include_router(part, prefix=settings.MONAI_LABEL_API_STR)
    server.add_exception_handler(RequestValidationError, _tell)
    # the server is starting: its middleware was put together before the app was known
    server.user_middleware.insert(0, Middleware(Guard, origins=allowed, token=token))
    server.middleware_stack = server.build_middleware_stack()
    logger.info("web pages that may ask: %s; token: %s", ", ".join(allowed) or "none", "wanted" if token else "none")


def _checked_origin(origin: str) -> str:
    parts = urlsplit(origin.strip().rstrip("/").lower())
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or parts.geturl() != f"{parts.scheme}://{parts.netloc}"
    ):
        raise DataError("origins", f"'{origin}' is no web page's origin", "Write e.g. https://viewer.example.org.")
    return parts.geturl()


def _kept() -> APIRouter:
    """MONAI Label's routes that are served as they are."""
    modules = [info, model, batch_infer, train, datastore, logs]
    if settings.MONAI_LABEL_AUTH_ENABLE:
        modules.append(login)
    found = APIRouter()
    for module in modules:
        found.routes += [route for route in module.router.routes if route.methods <= KEPT.get(route.path, set())]
    return found


def _tell(request: Request, error: RequestValidationError) -> JSONResponse:
    """The first thing that is wrong with a request, in a sentence that names the field."""
    first = error.errors()[0]
    fields = ".".join(str(part) for part in first["loc"][1:])
    return JSONResponse({"detail": f"{fields}: {first['msg']}" if fields else first["msg"]}, 422)
