"""A network from a model file, and a model file from a network."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from scripts.errors import DataError
from scripts.networks.adapters import ADAPTERS, is_adapter
from scripts.networks.ama_sam import AMASAM
from scripts.networks.exported import read_export
from scripts.networks.model_file import check_encoder, read_model_file, write_model_file
from scripts.networks.model_info import DECODERS, EXPORTS, ModelInfo, describe_decoder, model_info, taught
from scripts.networks.runtime import run_by
from scripts.networks.sam_encoders import BACKBONES, build_encoder
from torch import nn

__all__ = ["build_network", "is_frozen", "kept_weights", "load_model", "load_network", "save_model", "start_from"]

_ENCODER = "image_encoder."


def save_model(
    path: str | os.PathLike, network: nn.Module, provenance: Mapping[str, Any], about: Mapping[str, Any] | None = None
) -> None:
    """
    Write a whole model: frozen encoder (half precision, which it is exact in), trained decoder and adapters (as
    trained).

    Args:
        path: file to write, see ``model_file.write_model_file``.
        network: an ``AMASAM``.
        provenance: plain values: how these weights came to be.
        about: ``mpp``, ``domains`` and ``version``, see ``model_info.ModelInfo``.
    """
    state = {
        name: tensor.detach().cpu().half() if is_frozen(name) and tensor.is_floating_point() else tensor.cpu()
        for name, tensor in network.state_dict().items()
    }
    content = {
        "model": state,
        "backbone": network.image_encoder.backbone_type,
        "adapters": network.image_encoder.adapters,
        "decoder": describe_decoder(network.decoder),
        "targets": network.targets,
        "provenance": dict(provenance),
    }
    write_model_file(path, {**content, **(about or {})})


def is_frozen(name: str) -> bool:
    """Whether a tensor of an ``AMASAM``, by its name in the state dict, is SAM's, hence never trained."""
    return name.startswith(_ENCODER) and not is_adapter(name)


def build_network(
    path: str | os.PathLike,
    backbone: str,
    decoder: Mapping[str, Any],
    precision: str = "float32",
    targets: str = "distance",
    adapters: str = "none",
) -> AMASAM:
    """
    A network with random weights, as a model file describes it.

    Args:
        path: the file, for errors.
        backbone: see ``model_info.ModelInfo``.
        decoder: see there.
        precision: of the encoder's arithmetic, see ``sam_encoders.FrozenEncoder``.
        targets: see ``model_info.ModelInfo``.
        adapters: see there.

    Raises:
        DataError: for an encoder, adapters or a decoder that are none of ours.
    """
    settings = dict(decoder)
    kind = settings.pop("type")
    known = {"encoder": (backbone, BACKBONES), "decoder": (kind, DECODERS), "adapters": (adapters, ADAPTERS)}
    for what, (name, names) in known.items():
        if name not in names:
            hint = "Give a network of your own to load_network"
            raise DataError(path, f"its {what} '{name}' is none of this version's", hint)
    encoder = build_encoder(backbone, precision, adapters)
    return AMASAM(encoder, DECODERS[kind](encoder.channels, encoder.strides, **settings), targets)


def load_network(
    path: str | os.PathLike,
    device: torch.device | str = "cpu",
    precision: str = "float32",
    info: ModelInfo | None = None,
    network: nn.Module | None = None,
    runtime: str = "torch",
    amp: bool = False,
    tile_size: int | None = None,
) -> nn.Module:
    """
    The network to segment with, from whatever the file is: ``.ts`` is TorchScript and ``.onnx`` ONNX, both as MONAI's
    ``ckpt_export`` and ``onnx_export`` write them; anything else is a model file, which says what to build.

    Args:
        path: the file.
        device: where to run it.
        precision: of the encoder's arithmetic, see ``sam_encoders.FrozenEncoder``; exports compute in single precision.
        info: what the file says, as ``model_info.model_info`` gives it; None reads it.
        network: is filled instead of what the file describes, for one whose parts are not ours.
        runtime: ``openvino`` has a model file run by OpenVINO, see ``runtime.run_by``.
        amp: whether it then computes in bfloat16; PyTorch is told so where the network is called.
        tile_size: see ``runtime.run_by``.

    Returns:
        in eval mode, (B, 3, H, W) RGB in [0, 255] -> logits (B, C, H, W).

    Raises:
        DataError: when the file is missing or broken, or the runtime cannot run it.
    """
    device = torch.device(device)
    if Path(path).suffix in EXPORTS:
        return run_by(runtime, read_export(path, device), path, device, amp, tile_size)
    if network is None:
        info = info or model_info(path)
        network = build_network(path, info.backbone, info.decoder, precision, info.targets, info.adapters)
    return run_by(runtime, load_model(network.to(device), path), path, device, amp, tile_size)


def load_model(network: nn.Module, path: str | os.PathLike) -> nn.Module:
    """
    Fill a network with the weights of a model file, strictly.

    Args:
        network: an ``AMASAM`` built with the same backbone and decoder as the file's.
        path: file written by :func:`save_model`.

    Returns:
        the same network, in eval mode.
    """
    _fill(network, read_model_file(path), path)
    return network.eval()


@contextmanager
def kept_weights(network: nn.Module, kept_model: str | os.PathLike) -> Iterator[None]:
    """
    Puts the weights that a training keeps into its network for a while; others may still want the last ones.

    Args:
        network: the segmentation network.
        kept_model: file of the weights, see ``keeping.KeptModel``; it is written by then, with or without validation.
    """
    last = {name: value.clone() for name, value in network.state_dict().items() if not is_frozen(name)}
    if Path(kept_model).is_file():
        load_model(network, kept_model)
    try:
        yield
    finally:
        network.load_state_dict(last, strict=False)


def start_from(network: nn.Module, path: str | os.PathLike | None) -> nn.Module:
    """
    Let a training begin with the trained parts of an existing model.

    Args:
        network: an ``AMASAM`` whose encoder has its weights.
        path: file written by :func:`save_model` with the same encoder and decoder; None leaves the network as it is.
            Adapters that the file does not have begin untrained.

    Raises:
        DataError: when the file cannot be read or is of another encoder or decoder.
    """
    if path is None:
        return network
    content = read_model_file(path, "init_model")
    own = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    if content.get("adapters", "none") == "none":
        untrained = {name: tensor for name, tensor in own.items() if name.startswith(_ENCODER) and is_adapter(name)}
        content = {**content, "adapters": network.image_encoder.adapters, "model": {**content["model"], **untrained}}
    _fill(network, content, path)
    if any(is_frozen(name) and not torch.equal(own[name], tensor) for name, tensor in network.state_dict().items()):
        hint = f"Add --backbone_weights {path}, or train without init_model"
        raise DataError(path, "it was trained on another encoder's features", hint)
    return network


def _fill(network: nn.Module, content: Mapping[str, Any], path: str | os.PathLike) -> None:
    check_encoder(path, content["backbone"], network.image_encoder.backbone_type)
    ours, theirs = network.image_encoder.adapters, content.get("adapters", "none")
    if theirs != ours:
        raise DataError(path, f"it has adapters {theirs}, not {ours}", f"Leave --adapters out, or give {theirs}")
    if (targets := taught(content)) != network.targets:
        raise DataError(path, f"it was taught {targets}, not {network.targets}", f"Add --targets {targets}")
    try:
        network.load_state_dict(content["model"], strict=True)
    except RuntimeError as e:
        theirs, ours = model_info(path).decoder, describe_decoder(network.decoder)
        settings = ", ".join(f"{key} {value}" for key, value in theirs.items())
        hint = f"Build the same decoder, e.g. by --decoder_size {theirs['size']}" if "size" in theirs else "Build that"
        if theirs == ours:  # the sizes agree, so the file is not what it says
            raise DataError(path, f"its tensors do not fit its own description ({e})", "Train it anew") from e
        raise DataError(path, f"its decoder is another than the config's: {settings}", hint) from e
