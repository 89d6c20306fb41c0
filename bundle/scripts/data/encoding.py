from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence

import torch
from monai.transforms import Compose, RandomizableTransform, ScaleIntensityRanged, SelectItemsd, Transform
from monai.utils import convert_to_tensor
from scripts.data.annotation_style import CloseGaps
from scripts.data.holding_out import CutSpan
from scripts.data.readers import LoadNucleid
from scripts.data.transforms import SplitTargetsd, ToTargetMppd
from scripts.errors import DataError
from scripts.networks.adapters import is_adapter
from torch import nn

__all__ = [
    "DrawVariant",
    "EncodeFeatures",
    "RandFeatureCrop",
    "check_sides",
    "named_steps",
    "training_steps",
    "validation_steps",
]


def named_steps(**steps: Callable[[dict], dict]) -> Compose:
    """Transforms in the order given. In a config each has a name, by which it is replaced, left out or added to."""
    return Compose(list(steps.values()))


def training_steps(
    target_mpp: float | None, augmentation: Compose, targets: str, cache: str, encoder: nn.Module, crop_size: int
) -> Compose:
    """
    From the files of an image and its nuclei to what a batch is made of: the part that is trained on, annotated in
    one style, at one pixel size, augmented; targets; and, with the cache, features.

    Args:
        target_mpp: micrometres per pixel that images are resampled to; None leaves them.
        augmentation: random transforms of ``image`` (3, H, W) and ``label`` (1, H, W); intensities are then clipped to
            [0, 255].
        targets: what is taught, see :func:`scripts.nuclei.targets.make_targets`.
        cache: "on" stores what the frozen encoder makes of augmented windows (with adapters, up to the first of them),
            and cuts each crop from it; "off" leaves encoding to the training step.
        encoder: the network's.
        crop_size: side of a crop in pixels.

    Returns:
        transforms that give ``image``, ``target``, ``domain`` and, with the cache, ``features``.
    """
    clip = ScaleIntensityRanged("image", a_min=0, a_max=255, b_min=0, b_max=255, clip=True)
    augmented = Compose([*augmentation.transforms, clip, SplitTargetsd("label", targets=targets)])
    read = [LoadNucleid(), CutSpan(), CloseGaps(), ToTargetMppd(target_mpp)]
    batched = SelectItemsd(["image", "target", "features", "domain"], allow_missing_keys=True)
    if cache == "off":
        return Compose([*read, augmented, batched])
    encoded = [DrawVariant(augmented), EncodeFeatures(encoder), RandFeatureCrop(crop_size, encoder.stored_strides)]
    return Compose([*read, *encoded, batched])


def check_sides(crop_size: int, window_size: int, cache: str, encoder: nn.Module) -> None:
    """Before any image is encoded: DataError where the encoder does not take windows, or crops, of that side."""
    whole, features = encoder.size_multiple, max(encoder.strides)  # what is encoded; what is cut from features
    sides = {"window_size": (window_size, whole), "crop_size": (crop_size, features)}
    for key, (side, multiple) in (sides if cache == "on" else {"crop_size": (crop_size, whole)}).items():
        if side % multiple:
            what = f"it must be a multiple of {multiple} for {encoder.backbone_type} with cache {cache}"
            raise DataError(key, f"{what}, and {side} is not", f"Give {side + multiple - side % multiple}.")


def validation_steps(target_mpp: float | None) -> Compose:
    """
    From the files of an image and its nuclei to ``image`` and ``label``, whole or the part that was held out.

    Args:
        target_mpp: micrometres per pixel that both are resampled to; None leaves them.
    """
    return Compose([LoadNucleid(), CutSpan(), ToTargetMppd(target_mpp), SelectItemsd(["image", "label"])])


class DrawVariant(Transform):  # renaming it would leave all stored features unused: they are named after it
    """
    One of a fixed number of augmented windows of an image: random transforms, made deterministic.

    What they draw follows from the item alone (``item["content"]``, a digest of its files, and ``item["window"]``, a
    number), never from a run's seed. So it can be computed once, and is shared by all runs.

    Args:
        augmentation: the random transforms.
    """

    version = 1

    def __init__(self, augmentation: Compose) -> None:
        self.augmentation = augmentation

    def __call__(self, data: Mapping[Hashable, object]) -> dict:
        digest = hashlib.sha256(f"{data['content']}/{data['window']}".encode()).digest()
        self.augmentation.set_random_state(seed=int.from_bytes(digest[:4], "big"))
        return self.augmentation(dict(data))


class EncodeFeatures(Transform):
    """
    The frozen encoder as a deterministic transform: adds ``features`` and leaves everything small enough to store.

    Reads ``image`` (3, H, W), float in [0, 255], H and W multiples of the encoder's ``size_multiple``, and ``target``
    (C, H, W) in [0, 1]. The image is rounded to 8 bits before it is encoded, so that what is stored is what was seen.

    Gives ``image`` (uint8), ``target`` (float16) and ``features``, a list of
    (H / s_i, W / s_i, C_i), float16: what the encoder's ``begin`` gives.

    Args:
        encoder: a ``FrozenEncoder``, on any device.

    Raises:
        ValueError: when more of the encoder is trained than adapters, or features do not fit half precision.
    """

    version = 1

    def __init__(self, encoder: nn.Module) -> None:
        if any(p.requires_grad and not is_adapter(name) for name, p in encoder.named_parameters()):
            raise ValueError(
                "parts of the encoder are trained (LoRA, or an encoder that is not frozen), so its features change "
                "with every step and cannot be stored: train with --cache off"
            )
        self.encoder = encoder

    def bytes_per_pixel(self, target_channels: int) -> float:
        """Stored bytes for each pixel of the window: features, image and target."""
        features = sum(c / s**2 for c, s in zip(self.encoder.stored_channels, self.encoder.stored_strides))
        return 2 * features + 3 + 2 * target_channels

    def __call__(self, data: Mapping[Hashable, object]) -> dict:
        return self.together([data])[0]

    def together(self, items: Sequence[Mapping[Hashable, object]]) -> list[dict]:
        """The same of several items, which takes less time: images of one size are one batch."""
        # plain tensors: the encoder's many small steps take an eighth longer on a MetaTensor
        images = [convert_to_tensor(item["image"]).round().clamp(0, 255) for item in items]
        device = next(self.encoder.parameters()).device
        sizes: dict[torch.Size, list[int]] = {}
        for at, image in enumerate(images):
            sizes.setdefault(image.shape, []).append(at)
        features: dict[int, list[torch.Tensor]] = {}
        for places in sizes.values():
            with torch.no_grad():
                begun = self.encoder.begin(torch.stack([images[at] for at in places]).to(device))
            for i, at in enumerate(places):
                # channels last: a crop is then a few long pieces, and convolutions on a CPU want it so
                features[at] = [f[i].permute(1, 2, 0).half().cpu().contiguous() for f in begun]
        return [self._stored(item, images[at], features[at]) for at, item in enumerate(items)]

    def _stored(self, data: Mapping[Hashable, object], image: torch.Tensor, features: list[torch.Tensor]) -> dict:
        item = dict(data)
        # a sum is finite only where all values are, and costs a tenth of looking at each
        if not all(f.sum(dtype=torch.float32).isfinite() for f in features):
            raise ValueError(f"features of {data.get('file', 'an image')} do not fit half precision: use --cache off")
        item["features"], item["image"] = features, image.to(torch.uint8)
        item["target"] = torch.as_tensor(item["target"]).half()
        return item


class RandFeatureCrop(RandomizableTransform):
    """
    A random square of ``image`` and ``target`` and the same of ``features``: its corner lies on the coarsest stride.

    Args:
        crop_size: side in pixels, a multiple of every stride; cut down to the image's where that is smaller.
        strides: of the features, in pixels.

    Raises:
        ValueError: when ``crop_size`` is not a multiple of a stride.
    """

    def __init__(self, crop_size: int, strides: Sequence[int]) -> None:
        RandomizableTransform.__init__(self)
        self.crop_size, self.strides = crop_size, tuple(strides)
        if any(crop_size % stride for stride in strides):
            raise ValueError(f"crop_size must be a multiple of {max(strides)} with cached features, got {crop_size}")
        self._corner = (0, 0)

    def randomize(self, data: Sequence[int]) -> None:
        """Draw the corner of the crop in an image of size ``data``, (H, W)."""
        step = max(self.strides)
        self._corner = tuple(step * self.R.randint(max(side - self.crop_size, 0) // step + 1) for side in data)

    def __call__(self, data: Mapping[Hashable, object]) -> dict:
        item = dict(data)
        self.randomize(item["image"].shape[1:])
        y, x = self._corner
        for key in ("image", "target"):
            item[key] = item[key][:, y : y + self.crop_size, x : x + self.crop_size].float()
        side = self.crop_size
        item["features"] = [
            feature[y // s : (y + side) // s, x // s : (x + side) // s]
            for feature, s in zip(item["features"], self.strides)
        ]
        return item
