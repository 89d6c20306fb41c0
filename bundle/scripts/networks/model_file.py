"""The format of a model file: weights, and what is said of them."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from scripts.errors import DataError
from scripts.files import atomic_path

__all__ = ["ABOUT", "add_to_model_file", "check_encoder", "read_model_file", "split_about", "write_model_file"]

ABOUT = "about"  # the one entry of a model file that is no tensor


def write_model_file(path: str | os.PathLike, content: Mapping[str, Any]) -> None:
    """
    Write what ``read_model_file`` gives.

    The file is a state dict, as MONAI's tools and the model zoo expect, with one entry more: ``about``, which holds
    what is told beside the weights. Tensors and plain values only, so it loads with ``weights_only=True``.

    Args:
        path: file to write, replaced at once and whole.
        content: the state dict as ``model``, and what is told: see ``model_info.ModelInfo``.
    """
    about = {key: value for key, value in content.items() if key != "model"}
    with atomic_path(path) as partial:
        torch.save({**content["model"], ABOUT: about}, partial)


def add_to_model_file(path: str | os.PathLike, **extras: Any) -> None:
    """Add entries (tensors and plain values) to a model file, or replace them; everything else stays as it is."""
    write_model_file(path, {**read_model_file(path), **extras})


def read_model_file(path: str | os.PathLike, key: str = "ckpt_path") -> dict[str, Any]:
    """
    Content of a model file: ``model`` (the state dict), ``backbone`` (the encoder's type), ``provenance`` and what else
    it tells. Tensors are read from the file when they are used.

    Args:
        path: the file.
        key: of the config that names it, for errors.

    Raises:
        DataError: when it is missing, truncated or something else.
    """
    path, hint = Path(path), f"Name a model.pt that training wrote with --{key}"
    if not path.is_file():
        raise DataError(path, "there is no such model file", f"{hint}, or train one first")
    try:
        # torch's format is a zip, which can be mapped; what is cut short is none, and fails as torch's old format
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as e:
        raise DataError(path, f"it cannot be read as a model ({e})", hint) from e
    except Exception as e:  # torch's own words are a number, or advise to read it as a program
        problem = "it cannot be read as a model: it is damaged, another kind of file, or holds more than weights"
        raise DataError(path, problem, hint) from e
    content = split_about(content) if isinstance(content, dict) else {}
    if not {"model", "backbone"} <= content.keys():
        raise DataError(path, "it is not an AMA-SAM model file", hint)
    return content


def split_about(content: dict[str, Any]) -> dict[str, Any]:
    """What was loaded from a model file, sorted: the state dict as ``model``, beside what the file tells about it."""
    if ABOUT not in content:
        return content
    return {**content[ABOUT], "model": {name: value for name, value in content.items() if name != ABOUT}}


def check_encoder(path: str | os.PathLike, theirs: str, ours: str) -> None:
    """DataError where a file's encoder is not the network's: even tensors that fit are then of another."""
    if theirs != ours:
        raise DataError(path, f"it holds a {theirs} model, not {ours}", f"Leave --backbone out, or give {theirs}")
