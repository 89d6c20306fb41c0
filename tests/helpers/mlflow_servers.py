"""A real MLflow server on this machine, and what makes one unreachable."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """Address of a server that keeps runs in SQLite and serves artefacts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store, artifacts = f"sqlite:///{folder / 'server.db'}", str(folder / "artifacts")
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", store, "--artifacts-destination", artifacts,
    ]  # fmt: skip
    log = (folder / "server.log").open("w")
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # not needed, and slow to start
    # a session of its own, so that its workers end with it
    process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment, start_new_session=True)
    uri = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "server.log").read_text()
                time.sleep(0.5)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.close()


class Line:
    """
    A line to a server, which can be cut and mended: who is connected loses the connection, and nobody answers.

    Args:
        uri: of the server; None is a line on which everything is accepted and nothing is ever answered.
    """

    def __init__(self, uri: str | None) -> None:
        self._target = None if uri is None else ("127.0.0.1", int(uri.rpartition(":")[2]))
        self._ends: list[socket.socket] = []
        self._address = ("127.0.0.1", 0)
        self.mend()
        self.uri = "http://{}:{}".format(*self._address)

    def mend(self) -> None:
        self._listener = socket.create_server(self._address)
        self._address = self._listener.getsockname()
        threading.Thread(target=self._accept, args=[self._listener], daemon=True).start()

    def cut(self) -> None:
        ends = [self._listener, *self._ends]
        self._ends = []
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for it
            end.close()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):  # cut
            while True:
                here, _ = listener.accept()
                self._ends.append(here)
                if self._target is None:
                    continue
                there = socket.create_connection(self._target)
                self._ends.append(there)
                for one, other in ((here, there), (there, here)):
                    threading.Thread(target=self._forward, args=[one, other], daemon=True).start()

    def _forward(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):  # cut
            while data := one.recv(65536):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)
