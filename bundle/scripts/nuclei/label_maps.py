from __future__ import annotations

import gzip
from collections.abc import Hashable, Mapping
from pathlib import Path

import numpy as np
import tifffile
from monai.transforms import MapTransform
from PIL import Image
from scripts.files import atomic_path
from scripts.nuclei.label_pyramid import id_type, pyramid_of
from scripts.nuclei.ome_tiff import write_ome_tiff

__all__ = ["LABEL_FORMATS", "PNG_LEVEL", "ServedLabelMapd", "save_label_map"]

LABEL_FORMATS = ("png", "tif", "nii.gz", "ome.tif", "ome.zarr")
PNG_LEVEL = 1  # the default level takes thrice as long for 10% less


def save_label_map(path: Path, instances: np.ndarray, mpp: float | None = None) -> None:
    """
    Save an instance map as PNG (16-bit), TIFF, OME-TIFF or NIfTI (16-bit, or 32-bit above 65,535 nuclei), whole or
    not at all.

    Args:
        path: its suffix names the format.
        instances: (H, W) ids.
        mpp: micrometres per pixel, stored where the format has a place for it.

    Raises:
        ValueError: when the ids do not fit a PNG.
    """
    if path.name.endswith(".ome.tif"):
        write_ome_tiff(path, pyramid_of(instances, mpp), path.name.removesuffix(".ome.tif"))
        return
    values = instances.astype(id_type(int(instances.max(initial=0))))
    with atomic_path(path) as partial:
        if path.name.endswith(".png"):
            if values.dtype != np.uint16:
                raise ValueError(f"{path}: {instances.max()} nuclei do not fit a 16-bit PNG")
            Image.fromarray(values).save(partial, compress_level=PNG_LEVEL)
        elif path.name.endswith(".tif"):
            density = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
            tifffile.imwrite(partial, values, compression="zlib", **density)
        else:
            import nibabel  # slow to import, and seldom needed

            side = 1.0 if mpp is None else mpp / 1000  # NIfTI counts in millimetres and stores (x, y)
            volume = nibabel.Nifti1Image(values.T[..., None], np.diag([side, side, 1.0, 1.0]))
            partial.write_bytes(gzip.compress(volume.to_bytes(), compresslevel=1, mtime=0))


class ServedLabelMapd(MapTransform):
    """
    The last transform for MONAI Label: puts the instance map where its writer looks, in the form that it saves right.

    ``pred`` becomes a (W, H) uint16 array (the writer swaps the axes, and a leading channel would give a PNG of one
    pixel's width). ``image`` goes, because the server would resize ``pred`` by its meta data, in which it expects
    (W, H) too. Where the client asks for no other format, the label is a PNG: JPEG, the format of some images, would
    change the ids.

    Args:
        keys: key of the instance map (1, H, W).

    Raises:
        ValueError: when there are more nuclei than 16 bits can number.
    """

    def __init__(self, keys: str = "instances") -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, object]) -> dict:
        item = dict(data)
        instances = np.asarray(item[self.keys[0]])[0]
        if instances.max(initial=0) > np.iinfo(np.uint16).max:
            raise ValueError(f"{instances.max()} nuclei do not fit a 16-bit label map: send a smaller region")
        item["pred"] = np.ascontiguousarray(instances.T.astype(np.uint16))
        item.pop("image", None)
        item["result_extension"] = item.get("result_extension") or ".png"
        return item
