from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import tifffile
from PIL import Image

from scripts.files import atomic_path

__all__ = ["LABEL_FORMATS", "PNG_LEVEL", "save_label_map"]

LABEL_FORMATS = ("png", "tif", "nii.gz")
PNG_LEVEL = 1  # the default level takes thrice as long for 10% less


def save_label_map(path: Path, instances: np.ndarray, mpp: float | None = None) -> None:
    """
    Save an instance map as PNG (16-bit), TIFF or NIfTI (16-bit, or 32-bit above 65,535 nuclei), whole or not at all.

    Args:
        path: its suffix names the format.
        instances: (H, W) ids.
        mpp: micrometres per pixel, stored where the format has a place for it.

    Raises:
        ValueError: when the ids do not fit a PNG.
    """
    wide = instances.max(initial=0) > np.iinfo(np.uint16).max
    values = instances.astype(np.uint32 if wide else np.uint16)
    with atomic_path(path) as partial:
        if path.name.endswith(".png"):
            if wide:
                raise ValueError(f"{path}: {instances.max()} nuclei do not fit a 16-bit PNG")
            Image.fromarray(values).save(partial, compress_level=PNG_LEVEL)
        elif path.name.endswith(".tif"):
            density = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
            tifffile.imwrite(partial, values, compression="zlib", **density)
        else:
            side = 1.0 if mpp is None else mpp / 1000  # NIfTI counts in millimetres and stores (x, y)
            volume = nibabel.Nifti1Image(values.T[..., None], np.diag([side, side, 1.0, 1.0]))
            partial.write_bytes(gzip.compress(volume.to_bytes(), compresslevel=1, mtime=0))
