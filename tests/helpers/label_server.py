"""A real MONAI Label server in a process of its own, and what it needs where only torch's CPU build is installed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import requests

__all__ = ["LabelServer", "missing_package"]

REPO = Path(__file__).resolve().parents[2]
NEEDED = ("monailabel", "pydicom_seg", "shapely", "torchvision")


def missing_package() -> str | None:
    """Name of the first package without which the server does not start; see requirements-label.txt."""
    return next((name for name in NEEDED if find_spec(name) is None), None)


class LabelServer:
    """
    ``python -m monailabel.main start_server`` on a free port of 127.0.0.1, stopped by its process id.

    Args:
        app: folder of the app.
        folder: where the server works: its ``studies`` and its log ``server.log``.
        settings: of the app, ``-c NAME VALUE``.
        python_path: folders of modules that its configs name.
        token: what our app wants of every request.
    """

    def __init__(
        self,
        app: Path,
        folder: Path,
        settings: Mapping[str, Any],
        python_path: Sequence[str | Path] = (),
        token: str | None = None,
    ) -> None:
        self.app, self.folder, self.settings, self.python_path = app, folder, settings, python_path
        self.token = token
        self.http = requests.Session()  # that of a client which knows the token
        if token is not None:
            self.http.headers["Authorization"] = f"Bearer {token}"
        self.studies = folder / "studies"
        self.url = ""

    def __enter__(self) -> LabelServer:
        self.studies.mkdir(parents=True, exist_ok=True)
        # MONAI Label's own apps cannot declare what torchvision lacks beside a CPU build of torch; ours does it itself
        site = self.folder / "site"
        site.mkdir(exist_ok=True)
        shutil.copy(REPO / "apps" / "ama_sam" / "lib" / "torchvision_operators.py", site / "sitecustomize.py")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "monailabel.main", "start_server", "-a", str(self.app)]
        command += ["-s", str(self.studies), "-i", "127.0.0.1", "-p", str(port)]
        for name, value in self.settings.items():
            command += ["-c", name, str(value)]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (site, *self.python_path))),
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        environment["MONAI_LABEL_DATASTORE_AUTO_RELOAD"] = "false"
        environment["MONAI_LABEL_SESSION_PATH"] = str(self.folder / "sessions")
        if self.token is not None:
            environment["AMA_SAM_TOKEN"] = self.token
        self.log = (self.folder / "server.log").open("w")
        self.process = subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=self.log, stderr=subprocess.STDOUT
        )
        deadline = time.monotonic() + 180
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError(f"the server did not start: {(self.folder / 'server.log').read_text()[-3000:]}")
            time.sleep(0.3)
        return self

    def __exit__(self, *error: object) -> None:
        self.http.close()
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def train(self, model: str, request: dict, timeout: float = 300) -> dict:
        """Train and wait for the end: the task's status."""
        answer = self.http.post(f"{self.url}/train/{model}", json=request, timeout=60)
        if answer.status_code != 200:
            raise RuntimeError(f"{answer.status_code}: {answer.text}")
        return self.wait(timeout)

    def wait(self, timeout: float = 300) -> dict:
        """Until the training ends: its status."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            status = self.http.get(f"{self.url}/train/", timeout=60).json()
            if status["status"] in ("DONE", "ERROR", "STOPPED"):
                return status
            time.sleep(0.5)
        raise TimeoutError(f"still training after {timeout} s")

    def _answers(self) -> bool:
        try:
            return self.http.get(f"{self.url}/info/", timeout=60).status_code == 200
        except requests.ConnectionError:
            return False
