from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scripts.download import fetch
from scripts.errors import DataError
from scripts.networks.model_file import split_about
from scripts.networks.sam_encoders import BACKBONES, FrozenEncoder, build_encoder, full_size, load_backbone

__all__ = ["OFFICIAL_WEIGHTS", "find_backbone_weights", "load_encoder", "read_checkpoint", "user_cache"]


class Weights(NamedTuple):
    """A published checkpoint: file name, address and sha256."""

    name: str
    url: str
    sha256: str


_META = "https://dl.fbaipublicfiles.com/segment_anything/"
OFFICIAL_WEIGHTS = {
    "vit_t": Weights(
        "mobile_sam.pt",
        "https://github.com/ChaoningZhang/MobileSAM/raw/34bbbfdface3c18e5221aa7de6032d7220c6c6a1/weights/mobile_sam.pt",
        "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
    ),
    "vit_b": Weights(
        "sam_vit_b_01ec64.pth",
        _META + "sam_vit_b_01ec64.pth",
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
    "vit_l": Weights(
        "sam_vit_l_0b3195.pth",
        _META + "sam_vit_l_0b3195.pth",
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    ),
    "vit_h": Weights(
        "sam_vit_h_4b8939.pth",
        _META + "sam_vit_h_4b8939.pth",
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    ),
}


def load_encoder(
    backbone: str,
    path: str | os.PathLike | None = None,
    models_dir: str | os.PathLike | None = None,
    precision: str = "float32",
    adapters: str = "none",
) -> FrozenEncoder:
    """
    The encoder with its weights: builds, finds (see :func:`find_backbone_weights` for the arguments) and loads.

    ``precision`` is that of its arithmetic, see ``FrozenEncoder``, and ``adapters`` which it has, see
    ``build_encoder``; they are untrained.

    Raises:
        ValueError: for an unknown backbone.
        DataError: when no weights are found, or the file is broken or of another network.
    """
    file = find_backbone_weights(backbone, path, models_dir)
    encoder = build_encoder(backbone, precision, adapters)
    if file is None:
        return encoder
    checkpoint = read_checkpoint(file, _hint(backbone))
    try:
        load_backbone(encoder, checkpoint["model"] if isinstance(checkpoint.get("model"), dict) else checkpoint)
    except ValueError as e:
        raise DataError(file, f"no weights for {backbone}: {e}", _hint(backbone)) from e
    return encoder


def find_backbone_weights(
    backbone: str, path: str | os.PathLike | None = None, models_dir: str | os.PathLike | None = None
) -> Path | None:
    """
    The file that holds a backbone's weights, from the first of: ``path``; ``models_dir/backbones/<official name>``;
    ``models_dir/model.pt`` if it was trained with this backbone, at whatever resolution; the user cache
    (``$AMA_SAM_CACHE`` or ``~/.cache/ama_sam``); a download into that cache, checked by sha256.

    Args:
        backbone: ``vit_t``, ``vit_b``, ``vit_l`` or ``vit_h``; those of ``vit_t_half`` and the like are the same.
        path: a checkpoint of SAM, MobileSAM or AMA-SAM; nothing else is tried. ``"random"`` is for tests only: it
            gives None, and the encoder keeps random weights.
        models_dir: the bundle's ``models`` folder.

    Raises:
        ValueError: for an unknown backbone.
        DataError: when ``path`` does not exist, ``model.pt`` cannot be read, or nothing is found and the download
            fails.
    """
    if backbone not in BACKBONES:
        raise ValueError(f"Unknown backbone {backbone!r}: it must be one of {', '.join(BACKBONES)}.")
    if path == "random":
        return None
    if path is not None:
        path = Path(path).expanduser()
        if not path.is_file():
            raise DataError(path, f"there is no such file to take the weights of {backbone} from", _hint(backbone))
        return path

    official = OFFICIAL_WEIGHTS.get(full_size(backbone))
    if models_dir is not None:
        if official and (file := Path(models_dir) / "backbones" / official.name).is_file():
            return file
        file = Path(models_dir) / "model.pt"
        kind = read_checkpoint(file, _hint(backbone)).get("backbone") if file.is_file() else None
        if kind is not None and full_size(kind) == full_size(backbone):
            return file
    if official is None:
        raise DataError(backbone, "this backbone has no published weights", _hint(backbone))
    file = user_cache() / official.name
    if not file.is_file():
        _download(backbone, official, file)
    return file


def read_checkpoint(file: str | os.PathLike, hint: str) -> dict[str, Any]:
    """
    A checkpoint's dict, lazily: tensors are read from the file when they are used.

    Raises:
        DataError: with ``hint``, when the file is no checkpoint.
    """
    try:
        # only torch's present format, a zip, can be mapped; a file cut short is not a zip and fails as the old format
        checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as e:  # what a foreign file raises depends on its first bytes
        raise DataError(file, f"not a readable checkpoint ({type(e).__name__}); cut short?", hint) from e
    if not isinstance(checkpoint, dict):
        raise DataError(file, f"a checkpoint is a dict, this is a {type(checkpoint).__name__}", hint)
    return split_about(checkpoint)


def user_cache() -> Path:
    """Where what can be had again is kept: ``$AMA_SAM_CACHE`` or ``~/.cache/ama_sam``."""
    return Path(os.environ.get("AMA_SAM_CACHE") or "~/.cache/ama_sam").expanduser()


def _download(backbone: str, official: Weights, file: Path) -> None:
    try:
        fetch(official.url, file, official.sha256)
    except DataError as e:
        problem = f"the weights of {backbone} are not here, and downloading {official.url} failed: {e.problem}"
        raise DataError(file, problem, f"Run the same command again to go on. Or: {_hint(backbone)}") from e


def _hint(backbone: str) -> str:
    official = OFFICIAL_WEIGHTS.get(backbone)
    give = "give another file with `--backbone_weights PATH`"
    if official is None:
        return f"Please {give} (`random` in tests)"
    return f"Run `curl -fL --create-dirs -o {user_cache() / official.name} {official.url}`, or {give}"
