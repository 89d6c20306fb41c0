"""``ama-sam serve``: the MONAI Label app of this package."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

from ama_sam.places import HOME

__all__ = ["ABOUT", "serve"]

APP = HOME / "apps" / "ama_sam"
ABOUT = "serve MONAI Label and QuPath, and learn from what is corrected"


def serve(arguments: Sequence[str]) -> int:
    """Start the server; returns its exit code when it ends."""
    parser = argparse.ArgumentParser(prog="ama-sam serve", description=f"{ABOUT[0].upper()}{ABOUT[1:]}.")
    parser.add_argument("studies", metavar="STUDIES", help="folder of images and slides; made if it is missing")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; %(default)s is this machine only")
    parser.add_argument("--port", type=int, default=8000, help="default %(default)s")
    parser.add_argument(
        "-c", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
        help="a setting of the app, e.g. -c auxiliary_dir DATA; docs/monailabel.md lists them",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    if find_spec("monailabel") is None:
        print("Error: MONAI Label is not installed. docs/monailabel.md has its two commands", file=sys.stderr)
        return 1
    if given.c and (problem := _problem(dict(given.c))):
        print(f"Error: {problem}", file=sys.stderr)
        return 1
    settings = {"model_dir": os.path.join(os.getcwd(), "output", "label_server"), **dict(given.c)}
    command = [sys.executable, "-m", "monailabel.main", "start_server", "-a", str(APP)]
    command += ["-s", str(Path(given.studies).absolute()), "-i", given.host, "-p", str(given.port)]
    command += [word for name, value in settings.items() for word in ("-c", name, value)]
    where = f"http://{given.host}:{given.port}"
    new = "" if os.path.exists(given.studies) else " (a new folder)"
    print(f"Serving {given.studies}{new} at {where}; models in {settings['model_dir']}. Ctrl-C ends it.")
    try:
        return subprocess.run(command).returncode  # nosec B603 # no shell; its words are the user's own
    except KeyboardInterrupt:
        return 0


def _problem(settings: dict[str, str]) -> str:
    """What the app would refuse its settings for when it starts, with a server's traceback."""
    from scripts.errors import DataError

    spec = spec_from_file_location("ama_sam_app_settings", APP / "lib" / "app_settings.py")
    app_settings = module_from_spec(spec)
    spec.loader.exec_module(app_settings)
    try:
        app_settings.check_settings(settings)
    except DataError as error:
        return str(error)
    return ""
