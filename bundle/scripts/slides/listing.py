from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from scripts.errors import DataError
from scripts.files import is_store, read_text, walk_files
from scripts.inference.output_names import output_names
from scripts.owned import own_among
from scripts.slides.dicom_files import read_dicom_file
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
            relative to the file's own folder. The files of one DICOM series in a folder are one slide, and so is an
            OME-Zarr store. Results of ours are passed over.

    Raises:
        DataError: nothing is there.
    """
    path = Path(slide)
    if path.is_dir() and not is_store(path):
        found = [file for file in walk_files(path, stores=True) if _is_slide(file)]
        results = own_among(found)  # a label map is a file of the same kind as a slide
        paths = _one_of_each_series([file for file in found if file not in results])
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


def _is_slide(file: Path) -> bool:
    return is_store(file) or file.suffix.lower() in SLIDE_SUFFIXES


def _one_of_each_series(files: Sequence[Path]) -> list[Path]:
    """
    Each level of a DICOM slide opens as the whole slide: the first stays, before label, overview and thumbnail.

    Annotations, segmentations and reports on a slide, ours or others', are no slides.
    """
    chosen: dict[object, tuple[Path, bool]] = {}
    for file in files:
        about = read_dicom_file(file) if file.suffix.lower() == ".dcm" else None
        if about is not None and not about.slide:
            continue
        key, tissue = (file, True) if about is None else ((file.parent, about.series), about.tissue)
        if key not in chosen or tissue > chosen[key][1]:
            chosen[key] = file, tissue
    return sorted((file for file, _ in chosen.values()), key=files.index)


def name_folders(
    slides: Sequence[str], output_dir: str | os.PathLike, root: str | os.PathLike | None = None
) -> dict[str, Path]:
    """
    The folder of each slide's results, by the slide's path; nothing is made.

    Where ``root`` was searched, a DICOM series that has a folder for itself is called by that: its files' names, often
    numbers, say nothing, and which comes first is chance.

    Args:
        slides: paths of all slides, whoever does them: their folders' names depend on all of them.
        output_dir: folder of their folders.
        root: folder whose sub-folders are kept below ``output_dir``, if slides lie in it.

    Raises:
        DataError: when one of them is not free for the slide's results, see ``check_folders``.
    """
    root = Path(root) if root is not None and Path(root).is_dir() else None
    named = {slide: os.path.abspath(slide) for slide in slides} if root is None else _named(slides, root)
    names = output_names(list(named.values()), root, folders=True)
    folders = {slide: Path(output_dir) / names[name] for slide, name in named.items()}
    check_folders(folders.items(), output_dir)
    return folders


def _named(slides: Sequence[str], root: Path) -> dict[str, str]:
    """Absolute path that each slide's results are named by; of a series' folder as if it were a file."""
    paths = {slide: Path(os.path.abspath(slide)) for slide in slides}
    alone = Counter(path.parent for path in paths.values())
    taken = set(paths.values())
    for slide, path in paths.items():
        folder = path.parent
        if path.suffix.lower() == ".dcm" and alone[folder] == 1:
            below = folder if folder == Path(os.path.abspath(root)) else folder.parent
            name = below / f"{folder.name}.dcm"
            if name not in taken:
                taken.add(name)
                paths[slide] = name
    return {slide: str(path) for slide, path in paths.items()}
