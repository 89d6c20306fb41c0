from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_dst_type
from scripts.data.pixel_size import same_mpp
from scripts.nuclei.targets import channel_count, make_targets

__all__ = ["SplitTargetsd", "ToInputSized", "ToTargetMppd"]


class ToTargetMppd(Transform):
    """
    Resample an item to a common pixel size.

    The image is resampled bilinearly, with anti-aliasing when it shrinks; the label takes the nearest pixel, so ids
    survive. ``item["mpp"]``, and with the pixels ``mpp`` in the image's meta data, become the target. Nothing happens
    when the target is None, the item's mpp is missing or nan, or both are the same by ``pixel_size.same_mpp``.

    Args:
        target_mpp: wanted micrometres per pixel, or None to keep every item as it is.
        keys: key of the image (C, H, W), float, then optionally of the label (1, H, W), integer. A key that an item
            lacks is passed over.
    """

    version = 1

    def __init__(self, target_mpp: float | None, keys: Sequence[str] = ("image", "label")) -> None:
        if target_mpp is not None and not target_mpp > 0:
            raise ValueError(f"target_mpp must be positive micrometres per pixel or None, got {target_mpp}.")
        self.target_mpp = target_mpp
        self.image_key, *self.label_keys = keys

    def resamples(self, mpp: float | None) -> bool:
        """Whether an item of that pixel size is resampled."""
        known = self.target_mpp is not None and mpp is not None and float(mpp) > 0
        return known and not same_mpp(float(mpp), self.target_mpp)

    def __call__(self, data: Mapping[Hashable, object]) -> dict:
        item = dict(data)
        mpp = item.get("mpp")
        if not self.resamples(mpp):
            return item
        height, width = item[self.image_key].shape[1:]
        size = tuple(max(round(side * float(mpp) / self.target_mpp), 1) for side in (height, width))
        item["mpp"] = float(self.target_mpp)
        if size == (height, width):
            return item
        image = torch.nn.functional.interpolate(item[self.image_key][None], size, mode="bilinear", antialias=True)[0]
        item[self.image_key] = _with_mpp(image, item["mpp"])
        for key in self.label_keys:
            if key in item:
                item[key] = _at_centres(item[key], size)
        return item


class ToInputSized(Transform):
    """
    Undo :class:`ToTargetMppd` for results: bring image, maps and nuclei back to the size of the image file.

    Float maps are resampled bilinearly; of instances each pixel takes the id at its centre, so nuclei stay as they were
    separated where the network saw them, and are numbered anew. The ``mpp`` in the meta data of each map, and in the
    item, becomes the file's again.

    Args:
        maps: keys of float maps (C, H, W), the image first: its ``spatial_shape`` tells the size of the file.
        instances: key of the nuclei (1, H, W), integer.
        mask: key of where they are (1, H, W).
    """

    def __init__(
        self, maps: Sequence[str] = ("image", "pred", "spread"), instances: str = "instances", mask: str = "mask"
    ) -> None:
        self.maps, self.instances, self.mask = tuple(maps), instances, mask

    def __call__(self, data: Mapping[Hashable, object]) -> dict:
        item = dict(data)
        image = item[self.maps[0]]
        seen, size = tuple(image.shape[1:]), tuple(int(side) for side in image.meta["spatial_shape"])
        if size == seen:
            return item
        zoom = seen[0] / size[0]
        if item.get("mpp") is not None:
            item["mpp"] = float(item["mpp"]) * zoom
        for key in self.maps:
            if key in item:
                values = torch.nn.functional.interpolate(item[key][None], size, mode="bilinear", antialias=True)[0]
                mpp = getattr(values, "meta", {}).get("mpp")
                item[key] = values if mpp is None else _with_mpp(values, float(mpp) * zoom)
        if self.instances in item:
            nuclei = _at_centres(item[self.instances], size)
            nuclei = torch.unique(torch.cat([nuclei.new_zeros(1), nuclei.flatten()]), return_inverse=True)[1][1:]
            nuclei = nuclei.reshape(1, *size).to(item[self.instances].dtype)
            mask = (nuclei > 0).to(item[self.mask].dtype)
            item[self.instances] = convert_to_dst_type(nuclei, item["image"], dtype=nuclei.dtype)[0]
            item[self.mask] = convert_to_dst_type(mask, item["image"], dtype=mask.dtype)[0]
        return item


def _at_centres(labels: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Labels (1, H, W) at the centres of the pixels of another size, as plain values: ids survive."""
    rows, columns = (
        ((torch.arange(new) + 0.5) * (old / new)).long() for new, old in zip(size, labels.shape[1:], strict=True)
    )
    return labels[:, rows][:, :, columns]


def _with_mpp(image: torch.Tensor, mpp: float) -> torch.Tensor:
    """The same pixels with ``mpp`` in meta data of their own; a tensor without meta data as it is."""
    if not isinstance(image, MetaTensor):
        return image
    return MetaTensor(image.as_tensor(), meta={**image.meta, "mpp": mpp}, applied_operations=image.applied_operations)


class SplitTargetsd(MapTransform):
    """
    Make the training target (channels, H, W) float32 in [0, 1] from an instance map (1, H, W).

    Args:
        keys: key of the instance map.
        target_key: key of the result; the instance map is kept.
        targets: what is taught, see :func:`scripts.nuclei.targets.make_targets`.
    """

    version = 1

    def __init__(
        self, keys: Sequence[str] | str = "label", target_key: str = "target", targets: str = "distance"
    ) -> None:
        super().__init__(keys)
        channel_count(targets)  # a wrong name must be told here, not when the first image is read
        self.target_key = target_key
        self.targets = targets

    def __call__(self, data: Mapping[Hashable, object]) -> dict:
        item = dict(data)
        label = item[self.keys[0]]
        target = make_targets(np.asarray(label)[0], self.targets)
        item[self.target_key] = MetaTensor(target, meta=getattr(label, "meta", None))
        return item
