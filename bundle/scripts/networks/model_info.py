"""What a model file says of its network, whichever version wrote it."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from scripts.errors import DataError
from scripts.networks.baselines import SAMMaskDecoder, UNetDecoder
from scripts.networks.decoder import Decoder
from scripts.networks.hr_decoder import SIZES, HRDecoder
from scripts.networks.model_file import read_model_file
from scripts.networks.sam_encoders import build_encoder
from torch import nn

__all__ = ["DECODERS", "EXPORTS", "ModelInfo", "describe_decoder", "described", "model_info", "taught"]

logger = logging.getLogger(__name__)

# what a model file may name: it is data, so it can ask for these and nothing else
DECODERS: dict[str, type[Decoder]] = {"hr": HRDecoder, "unet": UNetDecoder, "sam": SAMMaskDecoder}
EXPORTS = (".ts", ".onnx")  # networks without their Python, which tell nothing
# what is said of a model on the command line -> where its file holds it
SETTINGS = {"decoder_size": "size", "out_channels": "out_channels", "aligned_stride": "aligned_stride"}


@dataclass(frozen=True)
class ModelInfo:
    """
    What a model file says of its network.

    Args:
        backbone: type of the encoder, see ``sam_encoders.BACKBONES``; None of an export.
        decoder: ``type``, a key of :data:`DECODERS`, and the arguments of its constructor.
        mpp: pixel size it was trained at, in micrometres; None if nobody said.
        domains: name and role of those it was trained on, the primary first.
        nucleus_area_px: median area of the nuclei of each domain it was trained on, in pixels at ``mpp``.
        targets: what the channels mean, a key of ``nuclei.targets.CHANNELS``.
        adapters: which blocks of the encoder have trained adapters, one of ``adapters.ADAPTERS``; None of an export.
        version: of the bundle that wrote it.
        lacks: names of what an old file does not tell and had to be assumed.
    """

    backbone: str | None = None
    decoder: Mapping[str, Any] | None = None
    mpp: float | None = None
    domains: Sequence[Mapping[str, str]] = ()
    nucleus_area_px: Mapping[str, float] | None = None
    targets: str | None = None
    adapters: str | None = None
    version: str | None = None
    lacks: Sequence[str] = ()

    def setting(self, name: str, default: Any) -> Any:
        """An argument of the decoder, or the default where there is none."""
        return (self.decoder or {}).get(name, default)


def model_info(
    path: str | os.PathLike | None,
    given: Mapping[str, Any] | None = None,
    needs: Sequence[str] = (),
    key: str = "ckpt_path",
    exports: bool = True,
) -> ModelInfo:
    """
    Read what a model file says of its network; an export (``.ts``, ``.onnx``) says nothing, nor does no file.

    Args:
        path: the file.
        given: what a user says of it, by key: ``backbone``, ``targets`` and those of :data:`SETTINGS`; None says
            nothing. Where the file says it too, both must be the same; where an old file or an export does not, this
            is taken.
        needs: keys that must be known, and not assumed.
        key: of the config that names the file, for errors.
        exports: False refuses them: they can be run, not trained or looked into.

    Raises:
        DataError: when the file cannot be read, is an export that will not do, contradicts what is given, or lacks
            what is needed.
    """
    said = {key: value for key, value in (given or {}).items() if value is not None}
    if path is not None and Path(path).suffix in EXPORTS and not exports:
        hint = f"Name the model.pt that it was made of with --{key}"
        raise DataError(path, "it is an export, which can segment images and nothing else", hint)
    if path is None or Path(path).suffix in EXPORTS:
        return ModelInfo(targets=said.get("targets"))
    content = read_model_file(path, key)
    decoder, lacks = content.get("decoder"), []
    if decoder is None:
        decoder, lacks = _recognised(path, content)
        for name in [name for name in lacks if name in said]:
            decoder[SETTINGS[name]] = said[name]
            lacks.remove(name)
    lacks += [name for name in ("mpp", "domains") if not content.get(name)]
    targets = taught(content)
    known = {
        "backbone": content["backbone"],
        "targets": targets,
        **{name: decoder.get(stored) for name, stored in SETTINGS.items()},
    }
    for name, value in said.items():
        if str(value) != str(known[name]):
            hint = f"Leave --{name} out: a model file knows it"
            raise DataError(path, f"it has {name} {known[name]}, and --{name} says {value}", hint)
    for name in set(needs) & set(lacks):
        raise DataError(path, f"it was written by an earlier version, which did not store its {name}", f"Give --{name}")
    if lacks:
        _tell_once(str(path), ", ".join(lacks))
    return ModelInfo(
        backbone=content["backbone"],
        decoder=decoder,
        mpp=content.get("mpp"),
        domains=content.get("domains") or (),
        nucleus_area_px=content.get("nucleus_area_px"),
        targets=targets,
        adapters=content.get("adapters", "none"),
        version=content.get("version"),
        lacks=tuple(lacks),
    )


def described(path: str | os.PathLike) -> ModelInfo:
    """As :func:`model_info`, for a network that a file fills later; of a file that is not there nothing is known."""
    return model_info(path) if Path(path).is_file() else ModelInfo()


def describe_decoder(decoder: nn.Module) -> dict[str, Any]:
    """``type`` and arguments of a decoder, as a model file holds them; the type of a foreign one is its class' name."""
    kind = next((name for name, known in DECODERS.items() if type(decoder) is known), None)
    return {"type": kind or type(decoder).__qualname__, **getattr(decoder, "settings", {})}


def taught(content: Mapping[str, Any]) -> str:
    """``targets`` of a model file; one that does not say was taught the distance, or in one channel the foreground."""
    stated = {**content.get("provenance", {}).get("network", {}), **content.get("decoder", {})}
    return content.get("targets") or ("foreground" if stated.get("out_channels") == 1 else "distance")


def _recognised(path: str | os.PathLike, content: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The decoder of a file of version 0.1 to 0.4, by the shapes of its tensors, and what they do not tell."""
    found = {
        name.removeprefix("decoder."): value.shape
        for name, value in content["model"].items()
        if name.startswith("decoder.")
    }
    stated = content.get("provenance", {}).get("network", {})
    kinds = [("hr", {"size": size}) for size in SIZES] + [("unet", {}), ("sam", {})]
    with torch.device("meta"):
        encoder = build_encoder(content["backbone"])
        for channels, (kind, settings) in itertools.product((2, 1), kinds):
            try:
                decoder = DECODERS[kind](encoder.channels, encoder.strides, out_channels=channels, **settings)
            except ValueError:  # an encoder without what this decoder reads
                continue
            if {name: value.shape for name, value in decoder.state_dict().items()} != found:
                continue
            described = describe_decoder(decoder)
            if kind != "hr":
                return described, []
            stride = stated.get("aligned_stride")
            return {**described, "aligned_stride": stride or 16}, [] if stride else ["aligned_stride"]
    raise DataError(path, "its decoder is none that this version knows", "Use the version that trained it")


@cache
def _tell_once(path: str, lacks: str) -> None:
    logger.warning("%s was written by an earlier version and does not say its %s", path, lacks)
