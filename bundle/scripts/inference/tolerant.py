"""Files that cannot be used stop no others, and are told."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import IterableDataset
from scripts.errors import DataError, root_cause
from scripts.files import write_table
from scripts.owned import OwnFiles
from torch.utils.data import get_worker_info

__all__ = ["TolerantDataset", "printable", "root_problem"]

logger = logging.getLogger(__name__)

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
                file = str(item[self.path_key])
                problem = root_problem(error).removeprefix(f"{printable(file)}: ")
                self._keep(index, problem)
                logger.error("skipped %s: %s", printable(file), problem)
            else:
                yield sample

    def add_error(self, file: str, problem: str) -> None:
        """Remember what went wrong with a file after it was read."""
        index = next(i for i, item in enumerate(self.data) if str(item[self.path_key]) == file)
        self._keep(index, problem)

    def _keep(self, index: int, problem: str) -> None:
        text = problem.encode(errors="replace")[:MESSAGE_BYTES]
        self._problems[index, : len(text)] = torch.tensor(list(text), dtype=torch.uint8)

    def write_errors(self, output_dir: str | os.PathLike) -> None:
        """Write ``errors.csv`` (file, problem) if any file failed; remove one of an earlier run if none did."""
        files, errors = OwnFiles(output_dir), self.errors
        if errors:
            rows = [{"file": printable(file), "problem": problem} for file, problem in errors]
            write_table(files.path("errors.csv"), rows)
        else:
            files.remove("errors.csv")

    def finish(self, output_dir: str | os.PathLike) -> None:
        """
        Write ``errors.csv`` and, if any file failed, end the process with a message and exit code 1.

        Raises:
            SystemExit: when at least one file failed.
        """
        self.write_errors(output_dir)
        if failed := len(self.errors):
            raise SystemExit(f"{failed} of {self.total} files failed; see {Path(output_dir) / 'errors.csv'}")


def printable(text: str | os.PathLike) -> str:
    """A path as text that can be printed and filed, though its name is not UTF-8."""
    return str(text).encode(errors="backslashreplace").decode()


def root_problem(error: BaseException) -> str:
    """What first went wrong (MONAI wraps it in one 'applying transform' after another), in one line."""
    error = root_cause(error)
    text = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
    return printable(" ".join(text.split()))
