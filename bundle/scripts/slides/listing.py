from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.errors import DataError, root_cause
from scripts.files import has_columns, read_text, walk_files, write_table
from scripts.inference.output_names import output_names
from scripts.owned import OwnFiles
from scripts.slides.reading import dicom_series
from scripts.slides.result_folder import check_folders

__all__ = ["list_slides", "name_folders", "segment_slides"]

logger = logging.getLogger(__name__)

SLIDE_SUFFIXES = (
    ".svs", ".tif", ".tiff", ".btf", ".ndpi", ".mrxs", ".scn", ".svslide", ".bif", ".vms", ".vmu", ".czi", ".dcm",
)  # fmt: skip
LIST_SUFFIXES = (".txt", ".csv")
ERROR_COLUMNS = ("slide", "problem")


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
        slides: paths of all slides, whatever the shard: their folders' names depend on all of them.
        output_dir: folder of their folders.
        root: folder whose sub-folders are kept below ``output_dir``, if slides lie in it.

    Raises:
        DataError: when one of them is not free for the slide's results, see ``check_folders``.
    """
    names = output_names(slides, root if root is not None and Path(root).is_dir() else None, folders=True)
    folders = {slide: Path(output_dir) / names[os.path.abspath(slide)] for slide in slides}
    check_folders(folders.items(), output_dir)
    return folders


def segment_slides(
    folders: Mapping[str, Path],
    segmenter: Callable[[str, Path], dict[str, Any]],
    output_dir: str | os.PathLike,
    shard: str | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """
    Segment slides one after the other, each into a folder of its own name; one that cannot be used stops no other.

    Args:
        folders: of all slides, whatever the shard, see :func:`name_folders`.
        segmenter: a ``SlideSegmenter``.
        output_dir: where ``errors.csv`` lists slides that failed, ``errors_<i>_of_<n>.csv`` those of a shard.
        shard: ``i/n`` takes every n-th slide from the i-th on, i from 0 to n - 1, for n jobs that share the work.
        rank: of this process, 0 to ``world_size`` - 1, among those that share the shard.
        world_size: number of those processes.

    Raises:
        DataError: when the shard is none.
        SystemExit: when at least one slide failed.
        OSError: at once, when the disk is full or gone: what is finished of the slide is kept for the next run.
    """
    index, count = _parse_shard(shard)
    index, count = index + count * rank, count * world_size
    slides = list(folders)[index::count]
    if not slides:
        logger.warning("shard %d of %d: %d slides leave none for it", index, count, len(folders))
    report = "errors.csv" if count == 1 else f"errors_{index}_of_{count}.csv"
    files = OwnFiles(output_dir, [report] if has_columns(Path(output_dir) / report, ERROR_COLUMNS) else ())
    files.check([report])
    errors = []
    for number, slide in enumerate(slides, start=1):
        try:
            summary = segmenter(slide, folders[slide])
        except OSError:
            raise
        except Exception as error:  # whatever is wrong with one slide, the others go on
            cause = root_cause(error)
            problem = str(cause) if isinstance(cause, DataError) else f"{type(cause).__name__}: {cause}"
            errors.append({"slide": slide, "problem": problem})
            logger.error("skipped %s", problem)
        else:
            logger.info("%d/%d %s: %d nuclei", number, len(slides), slide, summary["nuclei"])
            pictures = ["overview.jpg", *summary.get("overlays", ())]  # of 0.6 and before: none of tiles
            logger.info("look at %s: %s", folders[slide], ", ".join(pictures))
    files.remove(report)
    if errors:
        path = files.path(report)
        write_table(path, errors, ERROR_COLUMNS)
        raise SystemExit(f"{len(errors)} of {len(slides)} slides failed: {errors[0]['problem']}; see {path}")


def _parse_shard(shard: str | None) -> tuple[int, int]:
    """Index and number of the parts; all is part 0 of 1."""
    try:
        index, count = (int(part) for part in str(shard or "0/1").split("/"))
    except ValueError:
        index = count = -1
    if not 0 <= index < count:
        raise DataError("shard", f"'{shard}' is not i/n with i from 0 to n - 1", "For two jobs give 0/2 and 1/2")
    return index, count
