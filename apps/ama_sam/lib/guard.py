from __future__ import annotations

import hmac
import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["Guard"]


class Guard:
    """
    Lets no request through that a web page made without leave, and, with a token, none without it.

    Browsers name the page a request comes from, and QuPath, 3D Slicer and curl name none. A page under a name that
    its owner points at this machine (DNS rebinding) is told by that name, which is why the server answers to numeric
    addresses, ``localhost``, the machine's own name and the hosts of ``origins`` only.

    Args:
        app: what answers the requests that pass.
        origins: pages that may ask, as browsers write them, in lower case: ``https://viewer.example.org``.
        token: what ``Authorization: Bearer`` has to give; None lets all in.
    """

    def __init__(self, app: ASGIApp, origins: Iterable[str] = (), token: str | None = None) -> None:
        self.app, self.token, self.origins = app, token, set(origins)
        self.hosts = {"localhost", socket.gethostname().lower(), *(urlsplit(o).hostname for o in self.origins)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (refusal := self._refusal(scope["method"], Headers(scope=scope))) is None:
            return await self.app(scope, receive, send)
        status, detail = refusal
        headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
        await JSONResponse({"detail": detail}, status, headers)(scope, receive, send)

    def _refusal(self, method: str, headers: Headers) -> tuple[int, str] | None:
        """Status and sentence for a request that may not pass."""
        host, origins = headers.get("host", ""), headers.getlist("origin")
        if host and not self._is_ours(host):
            return 403, f"this server does not answer as '{host[:100]}'; start it with -c origins http://{host[:100]}"
        for origin in origins:
            own = host and origin.lower().partition("://")[2] == host.lower()
            if not own and origin.lower() not in self.origins:
                hint = "" if origin == "null" else f"; start it with -c origins {origin[:100]}"  # null is any page's
                return 403, f"pages of '{origin[:100]}' may not ask this server{hint}"
        # images, scripts and links name no origin; browsers tell by this whether they are of a foreign page
        if not origins and headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            return 403, "a page of another site may not ask this server; open its address yourself"
        # a browser asks without the token whether a page may ask with it
        if self.token is None or (method == "OPTIONS" and origins):
            return None
        given = headers.get("authorization", "").encode("latin-1")
        if not hmac.compare_digest(given, f"Bearer {self.token}".encode()):
            return 401, "this server wants a token; send 'Authorization: Bearer TOKEN'"
        return None

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            return name in self.hosts or ipaddress.ip_address(name) is not None
        except ValueError:
            return False
