from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.networks import convert_to_onnx, convert_to_torchscript
from scripts.data.readers import read_image
from scripts.errors import DataError
from scripts.files import read_json
from scripts.networks.ama_sam import AMASAM
from scripts.networks.loading import load_network
from scripts.networks.model_info import model_info
from scripts.nuclei.targets import CHANNELS

__all__ = ["bioimageio_files"]

FORMAT = "0.5.4"  # of the description, see https://github.com/bioimage-io/spec-bioimage-io
_COVER = "docs/figures/tnbc_median.png"
_SIDE = 128  # of the test image, pixels
_README = """# {name}

{description}.

Input: RGB in [0, 255] at {mpp} um a pixel, sides multiples of 32. Output: logits of the same size, {channels}: a pixel
belongs to a nucleus where the first is above 0 (its sigmoid is the probability); the others tell touching nuclei apart.
Nuclei themselves, their outlines and measures come from the bundle that this package was made of, or from a watershed
of your own.

{intended_use}

## Validation
Means over the images of test parts: {figures}. Trained on {data_source}. `test_input.npy` is a part of a tile of
TNBC (Naylor et al., CC BY 4.0), as is the cover.
"""


def bioimageio_files(bundle_root: str | os.PathLike) -> dict[str, bytes]:
    """
    The bundle's network as a model of the BioImage Model Zoo: ``rdf.yaml`` (JSON, which is YAML too), TorchScript,
    ONNX, test tensors, cover and documentation.

    Args:
        bundle_root: folder of the bundle.

    Returns:
        content by file name.

    Raises:
        DataError: when a part is missing, or the packages that ONNX needs are.
    """
    root = Path(bundle_root)
    model = root / "models" / "model.pt"
    metadata, info, network = read_json(root / "configs" / "metadata.json"), model_info(model), load_network(model)
    tile = sorted((root / "sample" / "sample_tnbc" / "images").iterdir())[0]
    pixels = np.asarray(read_image(tile))[:_SIDE, :_SIDE]
    image = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32)
    with torch.no_grad():
        logits = network(torch.from_numpy(image)).numpy()
    channels = list(CHANNELS[info.targets])
    script, onnx, opset = _exports(network, read_json(root / "configs" / "onnx_export.json"))
    figures = ", ".join(f"{name} Dice {values['dice_mean']:.3f}" for name, values in metadata["eval_metrics"].items())
    readme = _README.format(**metadata, mpp=info.mpp or 0.25, channels=", ".join(channels), figures=figures)
    files = {
        "README.md": readme.encode(),
        "cover.png": (root / _COVER).read_bytes(),
        "model.ts": script,
        "model.onnx": onnx,
        "test_input.npy": _npy(image),
        "test_output.npy": _npy(logits),
    }
    description = _description(metadata, files, channels, info.mpp or 0.25, opset)
    return {"rdf.yaml": json.dumps(description, indent=2).encode(), "LICENSE": (root / "LICENSE").read_bytes(), **files}


def _exports(network: AMASAM, settings: Mapping[str, Any]) -> tuple[bytes, bytes, int]:
    """TorchScript, ONNX, and ONNX's opset, as the commands in docs/exporting.md make them."""
    try:
        import onnx
        import onnxscript  # noqa: F401 torch needs it to write ONNX
    except ImportError as error:
        hint = "python -m pip install onnx onnxscript"
        raise DataError("onnx", "the packages to write ONNX are not installed", hint) from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.ts")
        convert_to_torchscript(network, filename_or_obj=str(path))
        example = [torch.rand(settings["input_shape"])]
        exported = convert_to_onnx(network, example, **settings["converter_kwargs"])
        opset = next(entry.version for entry in exported.opset_import if entry.domain == "")
        onnx.save(exported, Path(folder, "model.onnx"))
        return path.read_bytes(), Path(folder, "model.onnx").read_bytes(), opset


def _description(
    metadata: Mapping[str, Any], files: Mapping[str, bytes], channels: list[str], mpp: float, opset: int
) -> dict[str, Any]:
    def file(name: str, **more: Any) -> dict[str, Any]:
        return {"source": name, "sha256": hashlib.sha256(files[name]).hexdigest(), **more}

    def axes(names: list[str], size: Any) -> list[dict[str, Any]]:
        space = [
            {"type": "space", "id": axis, "unit": "micrometer", "scale": mpp, "size": size(axis)} for axis in ("y", "x")
        ]
        return [{"type": "batch"}, {"type": "channel", "channel_names": names}, *space]

    return {
        "format_version": FORMAT,
        "type": "model",
        "name": metadata["name"],
        "version": metadata["version"],
        "description": metadata["description"],
        "authors": [{"name": metadata["authors"]}],
        "license": "Apache-2.0",
        "documentation": "README.md",
        "covers": ["cover.png"],
        "cite": [
            {"text": text, "url": text.split()[-1]} for text in metadata["references"] if text.split()[-1][:4] == "http"
        ],
        "tags": ["nuclei", "segmentation", "instance-segmentation", "histology", "pathology", "H&E", "2d", "pytorch"],
        "inputs": [
            {
                "id": "image",
                "description": "RGB in [0, 255]",
                "axes": axes(["red", "green", "blue"], lambda axis: {"min": 64, "step": 32}),
                "data": {"type": "float32", "range": [0.0, 255.0]},
                "test_tensor": file("test_input.npy"),
            }
        ],
        "outputs": [
            {
                "id": "pred",
                "description": "logits",
                "axes": axes(channels, lambda axis: {"tensor_id": "image", "axis_id": axis}),
                "data": {"type": "float32"},
                "test_tensor": file("test_output.npy"),
            }
        ],
        "weights": {
            "torchscript": file("model.ts", pytorch_version=metadata["pytorch_version"]),
            "onnx": file("model.onnx", opset_version=opset, parent="torchscript"),
        },
    }


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
