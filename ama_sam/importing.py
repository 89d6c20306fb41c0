"""
Importing MONAI sooner. On its import MONAI loads each optional package that it finds, whether or not anything uses it:
they, and Python's search for garbage among what is loaded, are half of the time. ``benchmarks/startup.py`` measures it.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from typing import Any

__all__ = ["OPTIONAL", "without_garbage_search", "without_optional_packages"]

# of MONAI's optional packages the slow ones that no part of inference.json and wsi.json uses through MONAI
OPTIONAL = ("itk", "matplotlib", "mlflow", "nibabel", "pandas", "scipy.signal", "sklearn", "torchvision")


@contextmanager
def without_garbage_search() -> Iterator[None]:
    """Import without Python's searches for garbage: modules stay, so that there is none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _NotThere(MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name in OPTIONAL:
            raise ModuleNotFoundError(f"{name} is left out by ama-sam; with --config it is not", name=name)


@contextmanager
def without_optional_packages() -> Iterator[None]:
    """
    Meanwhile the packages of ``OPTIONAL`` that are not loaded yet seem not to be installed.

    What is imported meanwhile does without them, as MONAI can; afterwards they are imported as ever. For a process of
    our own that is going to run a config of ours, not for one that is a user's.
    """
    finder = _NotThere()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
