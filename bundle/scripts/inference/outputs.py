from __future__ import annotations

import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from ignite.engine import Engine, Events
from monai.data import IterableDataset
from PIL import Image
from torch.utils.data import get_worker_info

from scripts.data.readers import file_suffix
from scripts.errors import DataError, root_cause
from scripts.evaluation.overlays import overlay
from scripts.files import atomic_path, write_table

__all__ = ["PredictionWriter", "TolerantDataset", "output_names"]

logger = logging.getLogger(__name__)

IMAGES_IN_FLIGHT = 2  # written while the network goes on: memory holds no more than these
MESSAGE_BYTES = 1000  # room for one file's problem, as UTF-8


class TolerantDataset(IterableDataset):
    """
    Yields the transformed items of a list, passing over files that cannot be used and remembering why.

    Works with any number of data-loader workers: problems are written to memory that the processes share. There is
    no ``__len__``, because how many items come is known only at the end (ignite would start again from the first file
    to reach a promised number); ``total`` is how many there are to try.

    Args:
        data: items such as ``{"image": path}``.
        transform: applied to each item.
        path_key: the entry of an item that names its file.
    """

    def __init__(
        self, data: Sequence[dict[str, Any]], transform: Callable[[dict[str, Any]], Any], path_key: str = "image"
    ) -> None:
        super().__init__(data=data, transform=transform)
        self.path_key = path_key
        self._problems = torch.zeros((len(data), MESSAGE_BYTES), dtype=torch.uint8).share_memory_()

    @property
    def total(self) -> int:
        """Number of items to try."""
        return len(self.data)

    @property
    def errors(self) -> list[tuple[str, str]]:
        """(file, problem) of every item that failed so far, in the order of the list."""
        messages = (bytes(row.tolist()).rstrip(b"\0").decode(errors="ignore") for row in self._problems)
        return [(str(item[self.path_key]), text) for item, text in zip(self.data, messages) if text]

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for index in range(first, len(self.data), step):
            item = self.data[index]
            self._problems[index] = 0
            try:
                sample = self.transform(item)
            except Exception as error:  # whatever is wrong with one file, the others go on
                problem = _root_problem(error)
                self._problems[index, : len(problem)] = torch.tensor(list(problem), dtype=torch.uint8)
                logger.error("skipped %s: %s", item[self.path_key], problem.decode(errors="ignore"))
            else:
                yield sample

    def write_errors(self, output_dir: str | os.PathLike) -> None:
        """Write ``errors.csv`` (file, problem) if any file failed; remove one of an earlier run if none did."""
        path, errors = Path(output_dir) / "errors.csv", self.errors
        if errors:
            write_table(path, [{"file": file, "problem": problem} for file, problem in errors])
        else:
            path.unlink(missing_ok=True)

    def finish(self, output_dir: str | os.PathLike) -> None:
        """
        Write ``errors.csv`` and, if any file failed, end the process with a message and exit code 1.

        Raises:
            SystemExit: when at least one file failed.
        """
        self.write_errors(output_dir)
        if failed := len(self.errors):
            raise SystemExit(f"{failed} of {self.total} files failed; see {Path(output_dir) / 'errors.csv'}")


class PredictionWriter:
    """
    MONAI/ignite handler that writes what an evaluator predicts, image by image, beside the network's work on the next.

    Reads, from the evaluator's decollated items, ``image`` (3, H, W) RGB in [0, 255] with ``filename_or_obj`` in
    the meta data, and ``mask`` and ``instances`` (1, H, W). Writes into ``output_dir``, under names by
    :func:`output_names`,

    - ``<name>_mask.png``: 8-bit, 0 and 255;
    - ``<name>_instances.png``: 16-bit ids (or ``.tif``, 32-bit, for an image of more than 65,535 nuclei);
    - ``<name>_overlay.jpg``: outlines on the image, to look at;
    - ``summary.csv`` at the end: file, nuclei, share of the area, seconds of network and post-processing.

    Args:
        output_dir: folder of the files; made if missing.
        data: the items that will come, such as ``{"image": path}``: names that would clash are told apart.
        root: folder whose sub-folders are kept below ``output_dir``; by default the one that holds all the files.

    Raises:
        DataError: when a prediction would be written over one of the input files.
    """

    def __init__(
        self, output_dir: str | os.PathLike, data: Sequence[dict[str, Any]], root: str | os.PathLike | None = None
    ) -> None:
        self.output_dir = Path(output_dir)
        files = [item["image"] for item in data]
        self.names = output_names(files, root)
        inputs = {Path(file).resolve() for file in files}
        for name in self.names.values():
            for kind in ("mask.png", "instances.png", "instances.tif", "overlay.jpg"):
                if (target := self._target(name, kind)).resolve() in inputs:
                    raise DataError(target, "is an input file and would be written over", "Choose another output_dir.")
        self.rows: list[dict[str, Any]] = []
        self._started = 0.0
        self._writing: deque[Future] = deque()

    def attach(self, engine: Engine) -> None:
        """Register with a MONAI evaluator."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_STARTED, self._start_clock)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write_summary)

    def _reset(self, engine: Engine) -> None:
        self.rows = []
        self._thread = ThreadPoolExecutor(1, "writing")

    def _start_clock(self, engine: Engine) -> None:
        self._started = time.perf_counter()

    def _write(self, engine: Engine) -> None:
        seconds = (time.perf_counter() - self._started) / len(engine.state.output)
        for item in engine.state.output:
            self._wait(IMAGES_IN_FLIGHT - 1)
            file = str(item["image"].meta["filename_or_obj"])
            pixels = [np.asarray(item[key].cpu()) for key in ("image", "mask", "instances")]
            self._writing.append(self._thread.submit(self._write_image, file, *pixels, seconds))

    def _wait(self, pending: int) -> None:
        """Until at most so many images remain to be written; raises what went wrong with one."""
        while len(self._writing) > pending:
            try:
                self._writing.popleft().result()
            except BaseException:
                self._thread.shutdown(cancel_futures=True)
                raise

    def _write_image(
        self, file: str, image: np.ndarray, mask: np.ndarray, instances: np.ndarray, seconds: float
    ) -> None:
        mask, instances = mask[0] > 0, instances[0]
        name = self.names[os.path.abspath(file)]
        self._save_image(name, "mask.png", mask.astype(np.uint8) * 255)
        nuclei = self._save_instances(name, instances)
        self._save_image(name, "overlay.jpg", overlay(image, instances))
        row = {"file": file, "nuclei": nuclei, "area_fraction": round(float(mask.mean()), 6)}
        self.rows.append({**row, "seconds": round(seconds, 3)})

    def _save_instances(self, name: str, instances: np.ndarray) -> int:
        """Save an (H, W) map of nuclei with ids 1..N, and count them."""
        nuclei = int(instances.max(initial=0))
        other_kind = self._target(name, "instances.tif")
        if nuclei <= np.iinfo(np.uint16).max:
            self._save_image(name, "instances.png", instances.astype(np.uint16))
        else:
            logger.warning("%s: %d nuclei do not fit a 16-bit PNG, written as 32-bit TIFF", name, nuclei)
            other_kind = self._target(name, "instances.png")
            with atomic_path(self._target(name, "instances.tif")) as path:
                tifffile.imwrite(path, instances.astype(np.uint32), compression="zlib")
        other_kind.unlink(missing_ok=True)  # of an earlier run
        return nuclei

    def _save_image(self, name: str, kind: str, pixels: np.ndarray) -> None:
        with atomic_path(self._target(name, kind)) as path:
            # PNG's default level takes thrice as long for 10% less; lines of one pixel need JPEG's full colour
            Image.fromarray(pixels).save(path, compress_level=1, quality=90, subsampling=0)

    def _target(self, name: str, kind: str) -> Path:
        return self.output_dir / f"{name}_{kind}"

    def _write_summary(self, engine: Engine) -> None:
        self._wait(0)
        self._thread.shutdown()
        write_table(self.output_dir / "summary.csv", self.rows, ("file", "nuclei", "area_fraction", "seconds"))


def output_names(files: Sequence[str | os.PathLike], root: str | os.PathLike | None = None) -> dict[str, str]:
    """
    A name for the outputs of each file, different for all: its path below ``root`` without the suffix.

    Files that differ only in suffix get it appended (``a.png``, ``a.tif`` become ``a_png``, ``a_tif``), and a number
    where that is not enough. Upper and lower case count as equal, as some file systems have it.

    Args:
        files: paths.
        root: by default the deepest folder that holds all of them.

    Returns:
        {absolute path: name}.

    Raises:
        DataError: when a file is not below ``root``.
    """
    paths = [Path(os.path.abspath(file)) for file in files]
    if not paths:
        return {}
    root = Path(os.path.abspath(root) if root is not None else os.path.commonpath([path.parent for path in paths]))
    outside = [path for path in paths if not path.is_relative_to(root)]
    if outside:
        raise DataError(outside[0], f"is not below the root folder {root}", "Give a root that holds all files.")
    suffixes = {path: path.name[len(path.name) - len(file_suffix(path)) :] for path in paths}
    stems = {path: path.relative_to(root).as_posix()[: -len(end) or None] for path, end in suffixes.items()}
    clashes = Counter(stem.casefold() for stem in stems.values())
    taken = {stem for stem, count in clashes.items() if count == 1}
    names = {}
    for path, stem in stems.items():
        name = stem
        if clashes[stem.casefold()] > 1:
            with_suffix = name = f"{stem}_{suffixes[path].lstrip('.')}"
            number = 2
            while name.casefold() in taken:
                name, number = f"{with_suffix}_{number}", number + 1
            taken.add(name.casefold())
        names[str(path)] = name
    return names


def _root_problem(error: BaseException) -> bytes:
    """What first went wrong (MONAI wraps it in one 'applying transform' after another), cut to fit the table."""
    error = root_cause(error)
    text = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split()).encode()[:MESSAGE_BYTES]
