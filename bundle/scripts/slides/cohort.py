from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from scripts.cluster import on_cluster
from scripts.errors import DataError
from scripts.executed_config import executed_config
from scripts.files import atomic_path, has_columns, walk_files, write_table
from scripts.owned import OwnFiles
from scripts.slides.on_worker import attempt, segment_on_worker
from scripts.slides.result_folder import read_summary
from tqdm import tqdm

__all__ = ["SLIDE_COLUMNS", "segment_slides", "write_slide_tables"]

logger = logging.getLogger(__name__)

ERROR_COLUMNS = ("slide", "problem")
TABLES = ("slides.csv", "slides.parquet")
SLIDE_COLUMNS = {
    "slide": pa.string(),
    "folder": pa.string(),
    "nuclei": pa.int64(),
    "tissue_mm2": pa.float64(),
    "nuclei_per_mm2": pa.float64(),
    "uncertainty": pa.float64(),
    "out_of_domain": pa.float64(),
    "unusual_tiles": pa.float64(),
    "nearest_domain": pa.string(),
    "mpp": pa.float64(),
    "tiles": pa.int64(),
    "tiles_with_unread_areas": pa.int64(),
    "cut": pa.int64(),
    "seconds": pa.float64(),
}


def segment_slides(
    folders: Mapping[str, Path],
    segmenter: Callable[[str, Path], dict[str, Any]],
    output_dir: str | os.PathLike,
    cluster: str | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """
    Segment slides, each into a folder of its own name; one that cannot be used stops no other.

    Args:
        folders: of all slides, whoever does them, see :func:`name_folders`.
        segmenter: a ``SlideSegmenter``. Workers of a cluster make their own; that it could be made here shows that
            they can, before any begins.
        output_dir: where ``errors.csv`` lists slides that failed, ``errors_<i>_of_<n>.csv`` those of one of several
            processes of torchrun; and where the tables of :func:`write_slide_tables` go.
        cluster: see :func:`on_cluster`; None does one slide after the other, here.
        rank: of this process among those of torchrun, 0 to ``world_size`` - 1: it takes every n-th slide.
        world_size: number of those processes.

    Raises:
        DataError: when a cluster is to be used from several processes, or there is none.
        SystemExit: when at least one slide failed.
        OSError: at once, when the disk is full or gone: what is finished of the slide is kept for the next run.
    """
    if cluster and world_size > 1:
        raise DataError("cluster", "torchrun shares the slides among its processes already", "Start it without")
    mine = dict(list(folders.items())[rank::world_size])
    if not mine:
        logger.warning("process %d of %d: %d slides leave none for it", rank, world_size, len(folders))
    report = "errors.csv" if world_size == 1 else f"errors_{rank}_of_{world_size}.csv"
    files = OwnFiles(output_dir, [report] if has_columns(Path(output_dir) / report, ERROR_COLUMNS) else ())
    files.check([report, *TABLES])
    errors = []
    for number, (slide, outcome) in enumerate(_outcomes(mine, segmenter, cluster, output_dir), start=1):
        if problem := outcome.get("problem"):
            errors.append({"slide": slide, "problem": problem})
            logger.error("skipped %s", problem)
        else:
            told = f"{outcome['nuclei']} nuclei, computed in {outcome['arithmetic']}"
            logger.info("%d/%d %s: %s", number, len(mine), slide, told)
            logger.info("look at %s: %s", folders[slide], ", ".join(outcome["pictures"]))
    write_slide_tables(output_dir)
    files.remove(report)
    if errors:
        errors.sort(key=lambda error: list(mine).index(error["slide"]))
        path = files.path(report)
        write_table(path, errors, ERROR_COLUMNS)
        raise SystemExit(f"{len(errors)} of {len(mine)} slides failed: {errors[0]['problem']}; see {path}")


def _outcomes(
    folders: Mapping[str, Path],
    segmenter: Callable[[str, Path], dict[str, Any]],
    cluster: str | None,
    output_dir: str | os.PathLike,
) -> Iterator[tuple[str, dict[str, Any]]]:
    if cluster is None:
        yield from ((slide, attempt(segmenter, slide, folder)) for slide, folder in folders.items())
        return
    config = json.dumps({key: value for key, value in executed_config().items() if key != "_meta_"}, default=str)
    calls = ((slide, (config, slide, str(folder))) for slide, folder in folders.items())
    quiet = {"TQDM_DISABLE": "1"}
    nuclei = failed = 0
    with tqdm(total=len(folders), desc="slides", unit="slide", smoothing=0.05) as bar:
        for slide, outcome, problem in on_cluster(cluster, segment_on_worker, calls, output_dir, quiet):
            outcome = {"problem": problem} if problem else outcome
            nuclei, failed = nuclei + outcome.get("nuclei", 0), failed + ("problem" in outcome)
            bar.set_postfix(nuclei=nuclei, failed=failed, refresh=False)
            bar.update()
            yield slide, outcome


def write_slide_tables(output_dir: str | os.PathLike) -> None:
    """
    ``slides.csv`` and ``slides.parquet``: one row for each finished slide below a folder, whichever run finished it.
    """
    files, written = OwnFiles(output_dir), None
    # another process may have finished a slide, and written its table, since the results were read
    while (rows := _rows(Path(output_dir))) != written:
        write_table(files.path("slides.csv"), rows, tuple(SLIDE_COLUMNS))
        with atomic_path(files.path("slides.parquet")) as path:
            pq.write_table(pa.Table.from_pylist(rows, pa.schema(SLIDE_COLUMNS)), path)
        written = rows


def _rows(output_dir: Path) -> list[dict[str, Any]]:
    rows = []
    for path in walk_files(output_dir):
        if path.name == "summary.json" and (summary := read_summary(path.parent)) is not None:
            about = {**summary, "folder": path.parent.relative_to(output_dir).as_posix()}
            about["mpp"] = summary["settings"].get("mpp")
            rows.append({name: about.get(name) for name in SLIDE_COLUMNS})
    return rows
