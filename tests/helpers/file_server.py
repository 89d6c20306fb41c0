"""A server of files on this machine, which knows ranges and can break off."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager

CONTENT = bytes(range(256)) * 8000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT with ranges; the first answer for ``/cut`` breaks off in the middle."""

    def __init__(self, state, *args):
        self.state = state
        super().__init__(*args)

    def do_GET(self):
        self.state["requests"].append((self.path, self.headers.get("Range")))
        if self.path == "/nowhere":
            self.send_error(404)
            return
        content = self.state.get(self.path, CONTENT)
        start = 0
        if (wanted := self.headers.get("Range")) and self.path != "/norange":
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            if start >= len(content):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        cut = self.path in ("/cut", "/norange") and len(self.state["requests"]) == 1
        self.wfile.write(content[start : len(content) // 3] if cut else content[start:])

    def log_message(self, *args):
        pass


@contextmanager
def serving() -> Iterator[dict]:
    """Its state: ``url``, the ``requests`` so far as (path, range), and contents other than CONTENT by path."""
    state = {"requests": []}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, state)) as running:
        state["url"] = f"http://127.0.0.1:{running.server_address[1]}"
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield state
        running.shutdown()
