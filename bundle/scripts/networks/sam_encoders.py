from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from scripts.networks.adapters import is_adapter
from scripts.networks.sam_vit import SamViT
from scripts.networks.tiny_vit import TinyViT
from torch import Tensor, nn

__all__ = [
    "BACKBONES",
    "AdaptedEncoder",
    "FrozenEncoder",
    "build_encoder",
    "fingerprint",
    "full_size",
    "load_backbone",
    "sam_modeling",
]

# SAM's, of RGB in [0, 255]
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
# SAM was trained with 1024 pixels: its position embeddings have this size in the checkpoints
SAM_IMAGE_SIZE, SAM_PATCH, SAM_WINDOW, SAM_NORM_EPS = 1024, 16, 14, 1e-6

TINY_VITS = {
    "vit_t": dict(
        embed_dims=(64, 128, 160, 320),
        depths=(2, 2, 6, 2),
        num_heads=(2, 4, 5, 10),
        window_sizes=(7, 7, 14, 7),
        out_channels=256,
    ),
    # for unit tests: the same classes, small; windows that do and do not divide the grid of a 64-pixel image
    "vit_test": dict(
        embed_dims=(8, 16, 24, 32),
        depths=(1, 1, 1, 1),
        num_heads=(1, 2, 3, 4),
        window_sizes=(4, 4, 3, 3),
        out_channels=32,
    ),
}
SAM_VITS = {
    "vit_b": dict(embed_dim=768, depth=12, num_heads=12, global_attn_indexes=(2, 5, 8, 11)),
    "vit_l": dict(embed_dim=1024, depth=24, num_heads=16, global_attn_indexes=(5, 11, 17, 23)),
    "vit_h": dict(embed_dim=1280, depth=32, num_heads=16, global_attn_indexes=(7, 15, 23, 31)),
}
HALF = "_half"  # of a backbone that looks at the image at half its resolution, with the same weights
BACKBONES = (*TINY_VITS, *SAM_VITS, *(f"{name}{HALF}" for name in (*TINY_VITS, *SAM_VITS)))
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class FrozenEncoder(nn.Module):
    """
    A backbone that is never trained: no gradients, always in eval mode, whatever is asked of the model around it.

    Args:
        backbone: maps a normalised image (B, 3, H, W) to a list of features, fine to coarse.
        backbone_type: key of :data:`BACKBONES`.
        channels: channels of each feature.
        strides: input pixels per feature pixel, of each feature.
        size_multiple: H and W must be multiples of this.
        shrink: the backbone sees the image so many times smaller, each pixel the mean of a square.
        precision: of the arithmetic, a key of :data:`PRECISIONS`; features are float32 in any case. Exports
            (TorchScript, ONNX) always compute in float32.

    What training may store of an image is what :meth:`begin` gives, of ``stored_channels`` and ``stored_strides``;
    :meth:`finish` makes features of it. Here these are the features themselves; see :class:`AdaptedEncoder`.
    """

    version = 1  # of the features of every backbone built here
    adapters = "none"

    def __init__(
        self,
        backbone: nn.Module,
        *,
        backbone_type: str,
        channels: Sequence[int],
        strides: Sequence[int],
        size_multiple: int,
        shrink: int = 1,
        precision: str = "float32",
    ) -> None:
        super().__init__()
        self.shrink = shrink
        if precision not in PRECISIONS:
            raise ValueError(f"precision of the encoder must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        self.precision = precision
        self.backbone = backbone.requires_grad_(False)
        self.backbone_type = backbone_type
        self.channels = tuple(channels)
        self.strides = tuple(strides)
        self.stored_channels, self.stored_strides = self.channels, self.strides
        self.size_multiple = size_multiple
        # constants of the method, not of a checkpoint (SAM's files do not hold them either): not in the state dict
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).view(1, 3, 1, 1), persistent=False)
        self.eval()

    def train(self, mode: bool = True) -> FrozenEncoder:
        """Stays in eval mode: ``mode`` is ignored."""
        return super().train(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """
        Args:
            image: RGB (B, 3, H, W), float in [0, 255].

        Returns:
            features fine to coarse: the i-th is (B, channels[i], H / strides[i], W / strides[i]).

        Raises:
            ValueError: when H or W is not a multiple of ``size_multiple``.
        """
        with torch.no_grad():
            x = self.normalised(image)
            if torch.jit.is_scripting():
                return self.backbone(x)
            return self._run(x)

    def normalised(self, image: Tensor) -> Tensor:
        """What the backbone reads of an image; refuses sizes, see :meth:`forward`."""
        # a tracer records sizes as tensors, on which this test would only warn
        if not torch.jit.is_tracing():
            h, w, m = image.shape[2], image.shape[3], self.size_multiple
            if h % m + w % m > 0:
                wanted = f"{(h + m - 1) // m * m} x {(w + m - 1) // m * m}"
                raise ValueError(
                    f"Image size (H x W) must be a multiple of {m} for {self.backbone_type}, got {h} x {w}: "
                    f"pad it to {wanted}."
                )
        if self.shrink > 1:
            image = F.avg_pool2d(image, self.shrink)
        return (image - self.pixel_mean) / self.pixel_std

    @torch.jit.unused
    def begin(self, image: Tensor) -> list[Tensor]:
        """What of an image, as in :meth:`forward`, no training changes: fine to coarse, and without gradients."""
        return self(image)

    @torch.jit.unused
    def finish(self, begun: list[Tensor]) -> list[Tensor]:
        """The features, from what :meth:`begin` gives."""
        return begun

    @torch.jit.unused
    def _run(self, x: Tensor) -> list[Tensor]:
        with self._arithmetic(x):
            return self._single(self.backbone(x))

    def _arithmetic(self, x: Tensor) -> AbstractContextManager:
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(x.device.type, PRECISIONS[self.precision])

    def _single(self, features: list[Tensor]) -> list[Tensor]:
        return features if self.precision == "float32" else [feature.float() for feature in features]


class AdaptedEncoder(FrozenEncoder):
    """
    A frozen backbone with small trained adapters beside some of its blocks.

    The backbone's own weights stay as they are: adapters alone have gradients. What comes before the first of them no
    training changes, so that can be stored; untrained ones change nothing, so training begins with the frozen encoder.

    Args:
        backbone: built with ``adapters``; ``begin`` and ``finish`` are its two parts, see ``tiny_vit.TinyViT``.
        adapters: a key of ``adapters.ADAPTERS``, not "none".
        stored_channels: channels of each tensor that ``begin`` gives.
        stored_strides: their strides in input pixels.
        **encoder: the other arguments of :class:`FrozenEncoder`.
    """

    version = 1  # of what is stored

    def __init__(
        self,
        backbone: nn.Module,
        *,
        adapters: str,
        stored_channels: Sequence[int],
        stored_strides: Sequence[int],
        **encoder: Any,
    ) -> None:
        super().__init__(backbone, **encoder)
        self.adapters = adapters
        self.stored_channels, self.stored_strides = tuple(stored_channels), tuple(stored_strides)
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(is_adapter(name))

    def forward(self, image: Tensor) -> list[Tensor]:
        """As :meth:`FrozenEncoder.forward`; the features have gradients for the adapters."""
        if torch.jit.is_scripting():
            return self.backbone(self.normalised(image))
        return self.finish(self.begin(image))

    @torch.jit.unused
    def begin(self, image: Tensor) -> list[Tensor]:
        with torch.no_grad(), self._arithmetic(image):
            return self._single(self.backbone.begin(self.normalised(image)))

    @torch.jit.unused
    def finish(self, begun: list[Tensor]) -> list[Tensor]:
        with self._arithmetic(begun[-1]):
            return self._single(self.backbone.finish(begun))


def sam_modeling() -> ModuleType:
    """
    ``segment_anything.modeling`` (ImageEncoderViT, PromptEncoder, MaskDecoder, ...), which needs only torch.

    ``segment_anything/__init__.py`` also imports torchvision, which may be absent or not fit the installed torch. So
    the package's folder is mounted under a second name, whose ``__init__`` is empty; ``segment_anything`` itself is
    left untouched for whoever imports it.
    """
    alias = "_ama_sam_segment_anything"
    if alias not in sys.modules:
        spec = find_spec("segment_anything")  # finds without executing
        if spec is None:
            raise ImportError("SAM's ViT encoders need the package segment-anything: pip install segment-anything")
        package = ModuleType(alias)
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules[alias] = package
    return importlib.import_module(f"{alias}.modeling")


def build_encoder(backbone: str, precision: str = "float32", adapters: str = "none") -> FrozenEncoder:
    """
    The encoder of that name with random weights; :func:`load_backbone` fills it.

    Args:
        backbone: ``vit_t`` (MobileSAM's TinyViT), ``vit_b``, ``vit_l``, ``vit_h`` (SAM's) or ``vit_test`` (a tiny
            TinyViT for unit tests); ``vit_t_half`` and the like see the image at half its resolution, a quarter of the
            work, and have all strides doubled.
        precision: see :class:`FrozenEncoder`.
        adapters: which blocks have trained adapters: "none", "late" (the last two stages of a TinyViT, the last half of
            the blocks of SAM's), "early" (those before) or "all"; with any it is an :class:`AdaptedEncoder`.

    Raises:
        ValueError: for another name.
    """
    kind = full_size(backbone)
    shrink = 1 if kind == backbone else 2
    if kind in TINY_VITS:
        numbers = TINY_VITS[kind]
        dims = numbers["embed_dims"]
        module: nn.Module = TinyViT(**numbers, adapters=adapters)
        # at half resolution these are 16 of its own pixels, its coarsest stride
        shape = dict(channels=(dims[0], dims[1], numbers["out_channels"]), strides=(4, 8, 16), size_multiple=32)
        # before stage 2 features of strides 4 and 8 are done; before stage 0 there is the stem alone
        stored = {0: ((dims[0],), (4,)), 2: (dims[:3], (4, 8, 16))}.get(module.first)
    elif kind in SAM_VITS:
        numbers = SAM_VITS[kind]
        vit = sam_modeling().ImageEncoderViT(
            img_size=SAM_IMAGE_SIZE,
            patch_size=SAM_PATCH,
            window_size=SAM_WINDOW,
            use_rel_pos=True,
            norm_layer=partial(nn.LayerNorm, eps=SAM_NORM_EPS),
            **numbers,
        )
        # the last global block feeds the neck; the others are features of their own
        taps = numbers["global_attn_indexes"][:-1]
        module = SamViT(vit, taps, adapters)
        width, count = numbers["embed_dim"], len(taps) + 1
        shape = dict(
            channels=(width,) * len(taps) + (256,), strides=(SAM_PATCH,) * count, size_multiple=SAM_PATCH * shrink
        )
        begun = sum(tap < module.first for tap in taps) + (module.first - 1 not in taps)
        stored = ((width,) * begun, (SAM_PATCH,) * begun)
    else:
        raise ValueError(f"Unknown backbone {backbone!r}: it must be one of {', '.join(BACKBONES)}.")
    shape.update(backbone_type=backbone, precision=precision, shrink=shrink)
    shape["strides"] = tuple(shrink * stride for stride in shape["strides"])
    if adapters == "none":
        return FrozenEncoder(module, **shape)
    strides = tuple(shrink * stride for stride in stored[1])
    return AdaptedEncoder(module, adapters=adapters, stored_channels=stored[0], stored_strides=strides, **shape)


def full_size(backbone: str) -> str:
    """The backbone whose weights one has: ``vit_t`` for ``vit_t`` and ``vit_t_half``."""
    return backbone.removesuffix(HALF)


def load_backbone(encoder: FrozenEncoder, state_dict: Mapping[str, Tensor]) -> None:
    """
    Fills the encoder's own weights, strictly, with the encoder part of a checkpoint; adapters are no part of it.

    Values are rounded to half precision: the shipped model stores its frozen part so, and must compute exactly what
    the trainable part was trained with.

    Args:
        encoder: made by :func:`build_encoder`.
        state_dict: of a whole SAM or MobileSAM (``image_encoder.*``), a whole AMA-SAM (``image_encoder.backbone.*``)
            or a ``FrozenEncoder`` (``backbone.*``); other parts are ignored.

    Raises:
        ValueError: when it holds no encoder, that of another backbone, or values that half precision cannot hold.
    """
    for prefix in ("image_encoder.backbone.", "image_encoder.", "backbone."):
        found = {k[len(prefix) :]: v for k, v in state_dict.items() if k.startswith(prefix)}
        if found:
            break
    else:
        raise ValueError("no tensors named image_encoder.* in it")
    # an unused ImageNet classifier in MobileSAM's file, and the adapters of an AMA-SAM
    found = {k: v for k, v in found.items() if not (k.startswith(("norm_head.", "head.")) or is_adapter(k))}

    wanted = _frozen(encoder)
    wrong = {
        "missing": [k for k in wanted if k not in found],
        "unexpected": [k for k in found if k not in wanted],
        "of another shape": [k for k, v in wanted.items() if k in found and found[k].shape != v.shape],
    }
    if any(wrong.values()):
        counts = ", ".join(f"{len(keys)} {what} (such as {keys[0]})" for what, keys in wrong.items() if keys)
        raise ValueError(f"its image encoder is not a {encoder.backbone_type}: tensors {counts}")

    rounded = {k: v.half().float() if v.is_floating_point() else v for k, v in found.items()}
    not_finite = [k for k, v in rounded.items() if not torch.isfinite(v).all()]
    if not_finite:
        raise ValueError(f"values that are not finite in half precision in {', '.join(not_finite)}")
    encoder.backbone.load_state_dict(rounded, strict=False)  # adapters stay as they are


def fingerprint(encoder: FrozenEncoder) -> str:
    """
    sha256 (hex) over the backbone type and each frozen tensor of the state dict, by name, in half precision.

    The same for a published checkpoint and for an AMA-SAM model saved with it, in single or half precision.
    """
    digest = hashlib.sha256(encoder.backbone_type.encode())
    for name, value in sorted(_frozen(encoder).items()):
        value = value.half() if value.is_floating_point() else value
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _frozen(encoder: FrozenEncoder) -> dict[str, Tensor]:
    return {name: value for name, value in encoder.backbone.state_dict().items() if not is_adapter(name)}
