"""
A network run by OpenVINO instead of PyTorch, on a CPU: in bfloat16 it pays, in single precision it does not; ONNX
Runtime does not either (docs/experiments.md).

What it compiles is kept in the user's cache: of a model one that takes tiles of any size and number and one, a sixth
faster, for single tiles of one size. Which of them a tile goes to is told by its shape alone, so answers do not depend
on what came before.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from scripts.errors import DataError
from scripts.files import atomic_path, sha256_of
from scripts.networks.ama_sam import AMASAM
from scripts.networks.sam_encoders import TINY_VITS, full_size
from scripts.networks.weights import user_cache
from torch import nn

__all__ = ["RUNTIMES", "TOLERANCE", "OpenVinoNetwork", "import_openvino", "run_by"]

logger = logging.getLogger(__name__)

RUNTIMES = ("torch", "openvino")
# root mean square of the differences of logits to PyTorch's, as a share of that of the logits, of the first tile
TOLERANCE = {"float32": 0.01, "bfloat16": 0.2}
ANY = (-1, 3, -1, -1)
VERSION = 1  # raised when the same model file gives another compiled model
# what is traced; no window of TinyViT divides its grids, so the graph has the filling that other sizes may need
TRACED = (2, 3, 96, 160)
_KEEP = "Leave --runtime out"


def run_by(
    runtime: str,
    network: nn.Module,
    path: str | os.PathLike,
    device: torch.device | str,
    amp: bool = False,
    tile_size: int | None = None,
) -> nn.Module:
    """
    The network as that runtime runs it.

    Args:
        runtime: one of :data:`RUNTIMES`; ``torch`` gives the network itself back.
        network: in eval mode.
        path: its model file, whose content names the compiled model.
        device: where it runs.
        amp: in bfloat16 instead of single precision.
        tile_size: side of the tiles that most of the work is on, if there is one.

    Raises:
        DataError: when OpenVINO is not installed, or cannot run this network, here, so.
    """
    if runtime == "torch":
        return network
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime must be one of {', '.join(RUNTIMES)}, got {runtime!r}")
    if torch.device(device).type != "cpu":
        raise DataError("runtime", f"OpenVINO is for CPUs, and the device is {device}", f"{_KEEP}, or add --device cpu")
    if not isinstance(network, AMASAM) or full_size(network.image_encoder.backbone_type) not in TINY_VITS:
        problem = f"OpenVINO runs model files whose encoder is vit_t, and {path} is another"
        raise DataError("runtime", problem, _KEEP)
    if network.image_encoder.precision != "float32":
        raise DataError("runtime", "OpenVINO has one precision for all", "Leave --encoder_precision out, --amp is it")
    return OpenVinoNetwork(network, path, "bfloat16" if amp else "float32", tile_size)


class OpenVinoNetwork(nn.Module):
    """
    An ``AMASAM`` that OpenVINO runs, with as many threads as PyTorch would.

    Args:
        network: which; PyTorch runs it too, for the first tile, to compare.
        path: its model file.
        precision: of the products, ``float32`` or ``bfloat16``.
        tile_size: side of the square tiles for which a model of their own is compiled; None: for no size.

    Raises:
        DataError: when OpenVINO is not installed, or the CPU has no units for bfloat16.
    """

    def __init__(self, network: AMASAM, path: str | os.PathLike, precision: str, tile_size: int | None = None) -> None:
        super().__init__()
        self.targets, self.precision = network.targets, precision
        self.image_encoder = _Heard(network.image_encoder.strides[-2:])
        self._path, self._core = Path(path), _core(precision)
        self._eager = [network]  # in a list it is no part of this module
        self._own_shape = (1, 3, tile_size, tile_size)
        self._models: dict[tuple, Any] = {}

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """
        (B, 3, H, W) RGB in [0, 255] -> logits (B, C, H, W).

        Raises:
            DataError: when those of the first tile are not PyTorch's, see :data:`TOLERANCE`.
        """
        shape = self._own_shape if image.shape == self._own_shape else ANY
        model = self._models.get(shape)
        first = model is None
        if first:
            with torch.autocast("cpu", enabled=False):  # what is traced would be cast for PyTorch
                model = _compiled(self._core, self._eager[0], self._path, self.precision, shape)
        request = model.create_infer_request()  # one for each call: several threads may
        answer = request.infer([image.detach().float().contiguous().numpy()], share_inputs=True)
        logits, *features = (torch.from_numpy(answer[index]) for index in range(len(answer)))
        if first:
            self._check(image, logits)
            self._models[shape] = model
        self.image_encoder(features)
        return logits

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Refuses: ``torch.compile`` has nothing to do here."""
        raise DataError("compile", "OpenVINO compiles the network itself", "Leave --compile or --runtime out")

    def _check(self, image: torch.Tensor, logits: torch.Tensor) -> None:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            wanted = self._eager[0](image.float())
        share = float((logits - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())
        if not share <= TOLERANCE[self.precision]:  # nor is what is not a number
            problem = (
                f"OpenVINO in {self.precision} is {share:.2g} of the logits away from PyTorch on the first tile, "
                f"more than {TOLERANCE[self.precision]}"
            )
            raise DataError(self._path, problem, f"{_KEEP}, and please report it")


class _Heard(nn.Module):
    """Stands for the encoder before those who listen to it: gives on the features that it is given."""

    def __init__(self, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.strides = strides

    def forward(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        return features


class _Whole(nn.Module):
    """Logits, and of the encoder's features those that tell how far an image lies from the training domains."""

    def __init__(self, network: AMASAM) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = self.network.image_encoder(image)
        return (self.network.decoder(features, image)[0], *features[-2:])


def import_openvino() -> ModuleType:
    """
    The package, without the part of it that tells Google Analytics each time it is imported.

    Raises:
        DataError: when it is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # "not installed": OpenVINO then does without
    try:
        import openvino
    except ImportError as e:
        hint = f"Run `python -m pip install openvino`, or leave --runtime out ({e})"
        raise DataError("runtime", "OpenVINO is not installed", hint) from e
    return openvino


def _core(precision: str) -> Any:
    core = import_openvino().Core()
    if precision == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        problem = "this CPU has no units for bfloat16, without which OpenVINO is no faster"
        raise DataError("runtime", problem, f"{_KEEP}, or add --amp false")
    return core


def _compiled(core: Any, network: AMASAM, path: Path, precision: str, shape: tuple) -> Any:
    """From the cache, or made and kept there."""
    settings = _settings(precision)
    of_here = [core.get_versions("CPU")["CPU"].build_number, core.get_property("CPU", "FULL_DEVICE_NAME")]
    about = [VERSION, sha256_of(path), shape, *of_here, platform.platform(), sorted(settings.items())]
    file = user_cache() / "openvino" / f"{hashlib.sha256(repr(about).encode()).hexdigest()[:32]}.blob"
    if (kept := _kept(file)) is not None:
        try:
            return core.import_model(kept, "CPU", settings)
        except RuntimeError as error:
            logger.warning("%s: OpenVINO cannot read it (%s); it is made anew", file, error)
    model = core.compile_model(_converted(network, shape), "CPU", settings)
    content = model.export_model().getvalue()
    try:
        with atomic_path(file) as partial:
            partial.write_bytes(hashlib.sha256(content).digest() + content)
    except OSError as error:  # the next run compiles again, which takes seconds
        logger.warning("%s: the compiled model cannot be kept there (%s)", file, error.strerror or error)
    return model


def _kept(file: Path) -> bytes | None:
    """A compiled model as it was kept, behind the checksum of its content; None where there is none that is whole."""
    try:
        stored = file.read_bytes()
    except OSError:
        return None
    checksum, content = stored[:32], stored[32:]
    if hashlib.sha256(content).digest() == checksum:
        return content
    logger.warning("%s: it is damaged, and made anew", file)
    return None


def _settings(precision: str) -> dict[str, Any]:
    """What OpenVINO compiles and runs with, in this process."""
    return {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
        "ENABLE_CPU_PINNING": False,  # several processes would be pinned to the same cores
    }


def _converted(network: AMASAM, shape: tuple[int, ...]) -> Any:
    """An ``openvino.Model``: images of a shape, -1 being any number, to logits and the encoder's last two features."""
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    image = torch.zeros(TRACED)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # of the filling, see TRACED
        traced = torch.jit.trace(_Whole(network), image, check_trace=False)
    decoder = TorchScriptPythonDecoder(traced, example_input=image)  # has to live until all is converted
    frontend = FrontEndManager().load_by_framework("pytorch")
    model = frontend.convert(frontend.load(decoder))
    model.reshape(list(shape))
    return model
