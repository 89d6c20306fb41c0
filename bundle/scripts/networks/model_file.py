from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from scripts.errors import DataError
from scripts.files import atomic_path
from torch import nn

__all__ = [
    "ABOUT",
    "add_to_model_file",
    "load_model",
    "read_model_file",
    "save_model",
    "split_about",
    "start_from",
    "write_model_file",
]

ABOUT = "about"  # the one entry of a model file that is no tensor

_FROZEN = "image_encoder."


def save_model(path: str | os.PathLike, network: nn.Module, provenance: Mapping[str, Any]) -> None:
    """
    Write a whole model: frozen encoder (half precision, which it is exact in) and trained decoder (as trained).

    The file is a state dict, as MONAI's tools and the model zoo expect, with one entry more: ``about``, which holds
    ``backbone`` (the encoder's type), ``provenance``, and later also ``domain_reference`` (see
    ``domain_reference.DomainReference``). Tensors and plain values only, so it loads with ``weights_only=True``.

    Args:
        path: file to write, replaced at once and whole.
        network: an ``AMASAM``.
        provenance: plain values: how these weights came to be.
    """
    state = {
        name: tensor.detach().cpu().half() if name.startswith(_FROZEN) and tensor.is_floating_point() else tensor.cpu()
        for name, tensor in network.state_dict().items()
    }
    write_model_file(
        path, {"model": state, "backbone": network.image_encoder.backbone_type, "provenance": dict(provenance)}
    )


def write_model_file(path: str | os.PathLike, content: Mapping[str, Any]) -> None:
    """Write what ``read_model_file`` gives: the state dict ``model``, and plain values and tensors beside it."""
    about = {key: value for key, value in content.items() if key != "model"}
    with atomic_path(path) as partial:
        torch.save({**content["model"], ABOUT: about}, partial)


def add_to_model_file(path: str | os.PathLike, **extras: Any) -> None:
    """Add entries (tensors and plain values) to a model file, or replace them; everything else stays as it is."""
    write_model_file(path, {**read_model_file(path), **extras})


def read_model_file(path: str | os.PathLike) -> dict[str, Any]:
    """
    Content of a file written by ``save_model``: ``model`` (the state dict), ``backbone``, ``provenance`` and
    what else it tells.

    Raises:
        DataError: when it is missing, truncated or something else.
    """
    path = Path(path)
    hint = "Name a model.pt that training wrote with --ckpt_path"
    if not path.is_file():
        raise DataError(path, "there is no such model file", f"{hint}, or train one first")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:
        raise DataError(path, f"it cannot be read as a model ({e})", hint) from e
    content = split_about(content) if isinstance(content, dict) else {}
    if not {"model", "backbone"} <= content.keys():
        raise DataError(path, "it is not an AMA-SAM model file", hint)
    return content


def split_about(content: dict[str, Any]) -> dict[str, Any]:
    """What was loaded from a model file, sorted: the state dict as ``model``, beside what the file tells about it."""
    if ABOUT not in content:
        return content
    return {**content[ABOUT], "model": {name: value for name, value in content.items() if name != ABOUT}}


def load_model(network: nn.Module, path: str | os.PathLike) -> nn.Module:
    """
    Fill a network with the weights of a model file, strictly.

    Args:
        network: an ``AMASAM`` built with the same backbone and decoder as the file's.
        path: file written by ``save_model``.

    Returns:
        the same network, in eval mode.
    """
    _load(network, read_model_file(path), path)
    return network.eval()


def start_from(network: nn.Module, path: str | os.PathLike | None) -> nn.Module:
    """
    Let a training begin with the trained parts of an existing model.

    Args:
        network: an ``AMASAM`` whose encoder has its weights.
        path: file written by ``save_model`` with the same encoder and decoder; None leaves the network as it is.

    Raises:
        DataError: when the file cannot be read or is of another encoder or decoder.
    """
    if path is None:
        return network
    content = read_model_file(path)
    own = {name: tensor.clone() for name, tensor in network.image_encoder.state_dict().items()}
    _load(network, content, path)
    if any(not torch.equal(own[name], tensor) for name, tensor in network.image_encoder.state_dict().items()):
        hint = f"Add --backbone_weights {path}, or train without init_model"
        raise DataError(path, "it was trained on another encoder's features", hint)
    return network


def _load(network: nn.Module, content: Mapping[str, Any], path: str | os.PathLike) -> None:
    expected = network.image_encoder.backbone_type
    if content["backbone"] != expected:
        raise DataError(
            path, f"it holds a {content['backbone']} model, not {expected}", f"Add --backbone {content['backbone']}"
        )
    try:
        network.load_state_dict(content["model"], strict=True)
    except RuntimeError as e:
        settings = content.get("provenance", {}).get("network", {})
        told = ", ".join(f"--{k} {v}" for k, v in settings.items()) or "the training's own settings"
        raise DataError(path, f"its decoder has other sizes than the config's ({e})", f"Add {told}") from e
