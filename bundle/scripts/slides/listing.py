from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from scripts.errors import DataError
from scripts.files import read_text, walk_files
from scripts.inference.output_names import output_names
from scripts.slides.reading import dicom_series
from scripts.slides.result_folder import check_folders

__all__ = ["list_slides", "name_folders"]

SLIDE_SUFFIXES = (
    ".svs", ".tif", ".tiff", ".btf", ".ndpi", ".mrxs", ".scn", ".svslide", ".bif", ".vms", ".vmu", ".czi", ".dcm",
)  # fmt: skip
LIST_SUFFIXES = (".txt", ".csv")


def list_slides(slide: str | os.PathLike) -> list[str]:
    """
    Paths of slides, by name.

    Args:
        slide: a slide; a folder, of which all slides count, also in sub-folders; or a text file with one path a line,
            relative to the file's own folder. The level files of one DICOM slide in a folder are one slide.

    Raises:
        DataError: nothing is there.
    """
    path = Path(slide)
    if path.is_dir():
        found = [file for file in walk_files(path) if file.suffix.lower() in SLIDE_SUFFIXES]
        paths = _without_repeated_levels(found)
        if not paths:
            raise DataError(path, "no slide found", f"Put files with one of {', '.join(SLIDE_SUFFIXES)} there")
    elif path.suffix.lower() in LIST_SUFFIXES and path.is_file():
        lines = [line.strip() for line in read_text(path).splitlines()]
        paths = [path.parent / line for line in lines if line and not line.startswith("#")]
        if not paths:
            raise DataError(path, "it names no slide", "Write one path a line")
    elif path.exists():
        paths = [path]
    else:
        raise DataError(path, "there is no such file or folder", "Name a slide, a folder or a list with --slide")
    return [str(path) for path in paths]


def _without_repeated_levels(files: Sequence[Path]) -> list[Path]:
    """Each file of a DICOM series opens as the whole slide: the first of them stays."""
    seen: set[tuple[Path, str]] = set()
    kept = []
    for file in files:
        series = dicom_series(file) if file.suffix.lower() == ".dcm" else None
        if series is None or (file.parent, series) not in seen:
            kept.append(file)
            seen.add((file.parent, series or ""))
    return kept


def name_folders(
    slides: Sequence[str], output_dir: str | os.PathLike, root: str | os.PathLike | None = None
) -> dict[str, Path]:
    """
    The folder of each slide's results, by the slide's path; nothing is made.

    Args:
        slides: paths of all slides, whoever does them: their folders' names depend on all of them.
        output_dir: folder of their folders.
        root: folder whose sub-folders are kept below ``output_dir``, if slides lie in it.

    Raises:
        DataError: when one of them is not free for the slide's results, see ``check_folders``.
    """
    names = output_names(slides, root if root is not None and Path(root).is_dir() else None, folders=True)
    folders = {slide: Path(output_dir) / names[os.path.abspath(slide)] for slide in slides}
    check_folders(folders.items(), output_dir)
    return folders
