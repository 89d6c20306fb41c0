from __future__ import annotations

import os
import zipfile
from pathlib import Path

from scripts.errors import DataError
from scripts.files import atomic_path, read_json
from scripts.owned import OwnFiles
from scripts.sharing.bioimageio import bioimageio_files
from scripts.sharing.hub_card import hub_card

__all__ = ["FORMATS", "bundle_files", "pack"]

FORMATS = ("zoo", "huggingface", "bioimageio")

# what a bundle is made of; runs, data, caches, exports and frozen backbones beside it are not
CONTENT = (
    "LICENSE",
    "configs/**/*.json",
    "configs/logging.conf",
    "docs/**/*",
    "models/model.pt",
    "sample/**/*",
    "scripts/**/*.py",
)
ZOO_LIMIT = 25 * 2**20  # bytes of a file that the model zoo takes


def pack(bundle_root: str | os.PathLike, output_dir: str | os.PathLike, name: str, format: str = "zoo") -> Path:
    """
    Write the bundle as the zip that the model zoo and ``monai.bundle.download`` use; as one to be unpacked and sent to
    the Hugging Face hub, with a ``README.md`` on top; or its network alone for the BioImage Model Zoo.

    The same files give the same bytes: entries are sorted and carry neither dates nor owners.

    Args:
        bundle_root: folder of the bundle.
        output_dir: folder of the zip.
        name: of the folder in the zip, and, with the version in the metadata, of the zip.
        format: one of ``FORMATS``.

    Returns:
        the zip, ``<name>_v<version>.zip``, or with the format such as ``<name>_v<version>_huggingface.zip``.

    Raises:
        DataError: when a part is missing, a file is larger than the zoo takes, or the zip is there and not ours.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be {' or '.join(FORMATS)}, got {format!r}")
    root = Path(bundle_root)
    if format == "bioimageio":
        contents = bioimageio_files(root)
    else:
        contents = {f"{name}/{file.relative_to(root).as_posix()}": file.read_bytes() for file in bundle_files(root)}
    if format == "huggingface":
        contents[f"{name}/README.md"] = hub_card(root).encode()
    version = read_json(root / "configs" / "metadata.json")["version"]
    target = OwnFiles(output_dir).path(f"{name}_v{version}{'' if format == 'zoo' else f'_{format}'}.zip")
    with (
        atomic_path(target) as partial,
        zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive,
    ):
        for path, content in sorted(contents.items()):
            entry = zipfile.ZipInfo(path)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED, compresslevel=6)
    print(f"{len(contents)} files, {target.stat().st_size / 1e6:.1f} MB: {target}")
    return target


def bundle_files(bundle_root: str | os.PathLike) -> list[Path]:
    """
    The files that make the bundle, sorted by path.

    Raises:
        DataError: see :func:`pack`.
    """
    root, files = Path(bundle_root), set()
    for pattern in CONTENT:
        found = {file for file in root.glob(pattern) if file.is_file() and not _hidden(file.relative_to(root))}
        if not found:
            raise DataError(root / pattern, "a bundle needs it", "Restore it, then pack again.")
        files |= found
    for file in files:
        if (size := file.stat().st_size) > ZOO_LIMIT:
            raise DataError(file, f"{size / 2**20:.1f} MB are more than the zoo takes (25 MB)", "Make it smaller.")
    return sorted(files)


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "__pycache__")) for part in path.parts)
