from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from types import ModuleType

import torch
import torch.nn.functional as F
from scripts.networks.sam_attention import FusedBlock
from scripts.networks.tiny_vit import TinyViT
from torch import Tensor, nn

__all__ = ["BACKBONES", "FrozenEncoder", "SamViT", "build_encoder", "fingerprint", "load_backbone", "sam_modeling"]

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
BACKBONES = (*TINY_VITS, *SAM_VITS)
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
        precision: of the arithmetic, a key of :data:`PRECISIONS`; features are float32 in any case. Exports
            (TorchScript, ONNX) always compute in float32.
    """

    version = 1  # of the features of every backbone built here

    def __init__(
        self,
        backbone: nn.Module,
        *,
        backbone_type: str,
        channels: Sequence[int],
        strides: Sequence[int],
        size_multiple: int,
        precision: str = "float32",
    ) -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise ValueError(f"precision of the encoder must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        self.precision = precision
        self.backbone = backbone.requires_grad_(False)
        self.backbone_type = backbone_type
        self.channels = tuple(channels)
        self.strides = tuple(strides)
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
        # a tracer records sizes as tensors, on which this test would only warn
        if not torch.jit.is_tracing():
            h, w, m = image.shape[2], image.shape[3], self.size_multiple
            if h % m + w % m > 0:
                wanted = f"{(h + m - 1) // m * m} x {(w + m - 1) // m * m}"
                raise ValueError(
                    f"Image size (H x W) must be a multiple of {m} for {self.backbone_type}, got {h} x {w}: "
                    f"pad it to {wanted}."
                )
        with torch.no_grad():
            x = (image - self.pixel_mean) / self.pixel_std
            if torch.jit.is_scripting():
                return self.backbone(x)
            return self._run(x)

    @torch.jit.unused
    def _run(self, x: Tensor) -> list[Tensor]:
        if self.precision == "float32":
            return self.backbone(x)
        with torch.autocast(x.device.type, PRECISIONS[self.precision]):
            return [feature.float() for feature in self.backbone(x)]


class SamViT(nn.Module):
    """
    SAM's ViT image encoder with taps: built from segment-anything's own parts, so that its checkpoints fit, with a
    faster attention.

    Position embeddings are stored for 1024 x 1024 and interpolated for other sizes.

    Args:
        vit: segment-anything's ``ImageEncoderViT``.
        taps: indexes of the blocks whose output is a feature.
    """

    def __init__(self, vit: nn.Module, taps: Sequence[int]) -> None:
        super().__init__()
        self.taps = tuple(taps)
        self.patch_embed = vit.patch_embed
        self.pos_embed = vit.pos_embed
        self.blocks = nn.ModuleList(FusedBlock(block) for block in vit.blocks)
        self.neck = vit.neck

    def forward(self, x: Tensor) -> list[Tensor]:
        """
        Args:
            x: normalised image (B, 3, H, W), H and W divisible by 16.

        Returns:
            the tapped blocks' outputs (B, embed_dim, H/16, W/16), then the neck's (B, 256, H/16, W/16).
        """
        x = self.patch_embed(x)  # (B, H/16, W/16, C) here and in the blocks
        position = self.pos_embed
        if position.shape[1:3] != x.shape[1:3]:
            size = (x.shape[1], x.shape[2])
            position = F.interpolate(position.permute(0, 3, 1, 2), size, mode="bicubic", antialias=True)
            position = position.permute(0, 2, 3, 1)
        x = x + position

        features: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.taps:
                features.append(x.permute(0, 3, 1, 2))
        features.append(self.neck(x.permute(0, 3, 1, 2)))
        return features


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


def build_encoder(backbone: str, precision: str = "float32") -> FrozenEncoder:
    """
    The encoder of that name with random weights; :func:`load_backbone` fills it.

    Args:
        backbone: ``vit_t`` (MobileSAM's TinyViT), ``vit_b``, ``vit_l``, ``vit_h`` (SAM's) or ``vit_test`` (a tiny
            TinyViT for unit tests).
        precision: see :class:`FrozenEncoder`.

    Raises:
        ValueError: for another name.
    """
    if backbone in TINY_VITS:
        numbers = TINY_VITS[backbone]
        dims = numbers["embed_dims"]
        return FrozenEncoder(
            TinyViT(**numbers),
            backbone_type=backbone,
            channels=(dims[0], dims[1], numbers["out_channels"]),
            strides=(4, 8, 16),
            size_multiple=32,
            precision=precision,
        )
    if backbone in SAM_VITS:
        numbers = SAM_VITS[backbone]
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
        return FrozenEncoder(
            SamViT(vit, taps),
            backbone_type=backbone,
            channels=(numbers["embed_dim"],) * len(taps) + (256,),
            strides=(SAM_PATCH,) * (len(taps) + 1),
            size_multiple=SAM_PATCH,
            precision=precision,
        )
    raise ValueError(f"Unknown backbone {backbone!r}: it must be one of {', '.join(BACKBONES)}.")


def load_backbone(encoder: FrozenEncoder, state_dict: Mapping[str, Tensor]) -> None:
    """
    Fills the encoder, strictly, with the encoder part of a checkpoint.

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
    # an unused ImageNet classifier in MobileSAM's file
    found = {k: v for k, v in found.items() if not k.startswith(("norm_head.", "head."))}

    wanted = encoder.backbone.state_dict()
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
    encoder.backbone.load_state_dict(rounded)


def fingerprint(encoder: FrozenEncoder) -> str:
    """
    sha256 (hex) over the backbone type and each tensor of the state dict, by name, in half precision.

    The same for a published checkpoint and for an AMA-SAM model saved with it, in single or half precision.
    """
    digest = hashlib.sha256(encoder.backbone_type.encode())
    for name, value in sorted(encoder.backbone.state_dict().items()):
        value = value.half() if value.is_floating_point() else value
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
