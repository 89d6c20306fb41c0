"""
What the name of a file of stored features is made of. MONAI's ``pickle_hashing`` does not serve as ``hash_transform``:
its digest changes with what random transforms have drawn, and takes neither versions nor an encoder's fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Hashable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scripts.data.readers import image_mpp, related_files
from scripts.data.transforms import ToTargetMppd
from scripts.errors import DataError
from scripts.files import is_store
from scripts.networks.sam_encoders import AdaptedEncoder, FrozenEncoder, fingerprint

__all__ = ["Recipe", "content_of", "describe"]

VERSION = 1  # raise when a new release of MONAI or PyTorch gives other pixels
LIBRARIES = ("monai", "torch", "numpy", "builtins")


class Recipe:
    """
    What transforms do to an item, as far as stored results depend on it.

    Args:
        transforms: deterministic ones, in order; see :func:`describe` for what they may be.
    """

    def __init__(self, transforms: Sequence[Any]) -> None:
        self._steps = [(step if isinstance(step, ToTargetMppd) else None, describe(step)) for step in transforms]

    def of(self, item: Mapping[Hashable, Any]) -> str:
        """Digest for an item; a pixel size, its own or the wanted one, counts only where it is resampled."""
        mpp = _mpp(item) if any(step is not None for step, _ in self._steps) else math.nan
        parts = [f"{text} {mpp if step else ''}" for step, text in self._steps if step is None or step.resamples(mpp)]
        return _digest(parts)


def describe(thing: Any) -> str:
    """
    Digest of a transform, a list of them or a network: classes, their versions, and settings; of a network the
    weights too.

    A library's classes count by name and attributes. Any other says with a class attribute of its own, ``version``,
    when it began to give other results for the same settings; its settings are its attributes without underscore.
    What random generators hold is left out.

    Raises:
        DataError: for a class or function without ``version``, and for a function without a name.
    """
    return _digest([VERSION, _plain(thing)])


def content_of(*paths: str | os.PathLike) -> str:
    """Digest of the bytes of files; in a store of zarr also of their names, which say where in the image they are."""
    digest = hashlib.sha256()
    for path in paths:
        for file in related_files(path):
            content = file.read_bytes()
            if is_store(path):
                digest.update(f"{file.relative_to(path).as_posix()}\n".encode())
            digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()


def _mpp(item: Mapping[Hashable, Any]) -> float:
    """The pixel size that ``LoadNucleid`` will give an item."""
    given = float(item.get("mpp") or math.nan)
    try:
        return given if given > 0 else image_mpp(item["image"]) or math.nan
    except DataError:  # which reading the image will raise again, where it is collected
        return math.nan


def _plain(thing: Any) -> Any:
    """The same in what JSON has."""
    if thing is None or isinstance(thing, (bool, int, float, str)):
        return thing
    if isinstance(thing, (complex, bytes, Enum, Path, torch.dtype, np.dtype)):
        return repr(thing)
    if isinstance(thing, (np.random.RandomState, np.random.Generator, torch.Generator)):
        return None
    if isinstance(thing, (np.ndarray, np.generic, torch.Tensor)):
        array = np.asarray(thing)
        return [str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).hexdigest()]
    if isinstance(thing, Mapping):
        return [[repr(key), _plain(thing[key])] for key in sorted(thing, key=repr)]
    if isinstance(thing, (list, tuple)):
        return [_plain(value) for value in thing]
    if isinstance(thing, (set, frozenset)):
        return sorted(map(repr, thing))
    if callable(thing) and hasattr(thing, "__qualname__"):  # a class or function as a setting
        return _name(thing)
    if isinstance(thing, FrozenEncoder):
        # of an adapted one that part is stored which no adapter changes
        until = [thing.backbone.first] if isinstance(thing, AdaptedEncoder) else []
        # until 0.7 a CPU computed convolutions in bfloat16 too
        precision = "bfloat16 2" if thing.precision == "bfloat16" else thing.precision
        return [_name(type(thing)), fingerprint(thing), precision, *until]
    name = _name(type(thing))
    if isinstance(thing, torch.nn.Module):
        return [name, _plain(thing.state_dict())]
    if not hasattr(thing, "__dict__"):
        return [name, repr(thing)]
    settings = vars(thing)
    if not _of_library(type(thing)):  # an underscore of our own is what was drawn last
        settings = {key: value for key, value in settings.items() if not key.startswith("_")}
    return [name, _plain(settings)]


def _name(kind: Any) -> str:
    """Name of a class or function, with its version."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    if _of_library(kind) and not name.endswith("<lambda>"):  # a config's says that it is of builtins
        return name
    version = getattr(kind, "__dict__", {}).get("version")
    if not isinstance(version, int):
        raise DataError(
            name,
            "it has no version of its own, so features stored before it is changed would be taken for those after",
            "Make it a class with `version = 1`, to be raised whenever it gives other results, or use --cache off.",
        )
    return f"{name} {version}"


def _of_library(kind: Any) -> bool:
    return str(kind.__module__).partition(".")[0] in LIBRARIES


def _digest(parts: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
