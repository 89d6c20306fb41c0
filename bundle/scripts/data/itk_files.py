from __future__ import annotations

import functools
from pathlib import Path
from types import ModuleType

import numpy as np
from scripts.data.size_limits import check_size

__all__ = ["read_itk"]


def read_itk(path: Path) -> tuple[np.ndarray, int | None]:
    """
    Stored values of MetaImage, NRRD or any other file that ITK knows, (H, W) or (H, W, C), and which channel is the
    transparency, if the file says so; whatever ITK raises.
    """
    itk = _load_itk()
    header = itk.ImageIOFactory.CreateImageIO(str(path), itk.CommonEnums.IOFileMode_ReadMode)
    if header is None:
        raise ValueError("it is not of the format its name says")
    header.SetFileName(str(path))
    header.ReadImageInformation()
    channels = header.GetNumberOfComponents()
    stored = header.GetComponentTypeAsString(header.GetComponentType())
    kind = header.GetPixelTypeAsString(header.GetPixelType())
    if "complex" in kind:
        raise ValueError("pixels are complex numbers, which are no colours")
    sides = [header.GetDimensions(axis) for axis in range(header.GetNumberOfDimensions())]
    check_size(path, sides, channels, np.dtype(f"V{header.GetComponentSize()}"))
    if channels == 1:
        return np.asarray(itk.array_from_image(itk.imread(str(path)))).squeeze(), None
    # itk's Python wheels have no 8-bit or 16-bit vectors; float32 holds their values exactly
    pixels = itk.array_from_image(itk.imread(str(path), pixel_type=itk.Vector[itk.F, channels])).squeeze()
    pixels = pixels.astype({"unsigned_char": np.uint8, "unsigned_short": np.uint16}.get(stored, np.float32))
    return pixels, channels - 1 if kind == "rgba" else None


@functools.cache
def _load_itk() -> ModuleType:
    """
    ITK's package, which must not change the working directory.

    It loads its libraries when they are first used, and moves the whole process into its own folder meanwhile: other
    threads would not find relative paths. Wheels do not need that, their libraries lie in the package.
    """
    import itk  # takes a while and few need it
    from itk.support.base import LibraryLoader

    LibraryLoader.setup = LibraryLoader.cleanup = lambda loader: None
    return itk
