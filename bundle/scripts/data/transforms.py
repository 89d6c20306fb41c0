from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_dst_type
from scipy import ndimage
from scripts.data.pixel_size import same_mpp

__all__ = ["SplitTargetsd", "ToInputSized", "ToTargetMppd", "normalised_distance"]


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
    Make the training target (channels, H, W) float32 from an instance map (1, H, W).

    Channel 0 is the foreground in {0, 1}: every labelled pixel. Channel 1 is :func:`normalised_distance`.

    Args:
        keys: key of the instance map.
        target_key: key of the result; the instance map is kept.
        channels: 2, or 1 for the foreground alone.
    """

    version = 1

    def __init__(self, keys: Sequence[str] | str = "label", target_key: str = "target", channels: int = 2) -> None:
        super().__init__(keys)
        if channels not in (1, 2):
            raise ValueError(f"channels must be 1 (foreground) or 2 (foreground, distance), got {channels}.")
        self.target_key = target_key
        self.channels = channels

    def __call__(self, data: Mapping[Hashable, object]) -> dict:
        item = dict(data)
        label = np.asarray(item[self.keys[0]])[0]
        target = [(label > 0).astype(np.float32)]
        if self.channels == 2:
            target.append(normalised_distance(label))
        item[self.target_key] = MetaTensor(np.stack(target), meta=getattr(item[self.keys[0]], "meta", None))
        return item


def normalised_distance(label: np.ndarray) -> np.ndarray:
    """
    Per-nucleus distance map, as in the distance regression of Naylor et al. (2019), doi:10.1109/TMI.2018.2865709.

    For a pixel of a nucleus: the Euclidean distance to the nearest pixel that is not of this nucleus, be it
    background or a touching neighbour, divided by the greatest such distance in the nucleus. The image border is
    no border of a nucleus.

    Args:
        label: (H, W) integer instance map, 0 is background.

    Returns:
        (H, W) float32 in [0, 1]: 1 at the centre of every nucleus, towards 0 at its border, 0 in the background.
    """
    result = np.zeros(label.shape, np.float32)
    for index, box in enumerate(ndimage.find_objects(label), start=1):
        if box is None:
            continue
        # one pixel of margin shows the surroundings, except at the image border
        window = tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in box)
        nucleus = label[window] == index
        if nucleus.all():  # nothing but this nucleus in the whole image: there is no border to measure from
            return nucleus.astype(np.float32)
        distance = ndimage.distance_transform_edt(nucleus)
        result[window] += (distance / distance.max()).astype(np.float32)
    return result
