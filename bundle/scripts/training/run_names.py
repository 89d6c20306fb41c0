from __future__ import annotations

import atexit
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from scripts.errors import DataError
from scripts.processes import gather
from scripts.training.checkpoints import ANEW, read_checkpoint
from scripts.training.run_settings import differences

__all__ = ["name_run"]


def name_run(output_dir: str | os.PathLike, base: str, identity: Mapping[str, Any], resume: bool = False) -> str:
    """
    A run's name, which is also its folder in ``output_dir``: ``base``, or ``base_2``, ``base_3`` ... for later runs.

    The folder of a new run is made at once, so that two runs that begin together have one each. If nothing was written
    into it when the process ends, it is taken away again.

    Args:
        output_dir: folder of all runs and of their MLflow store.
        base: what the run is, e.g. "tnbc_ama_seed0".
        identity: what the checkpoint of a resumed run must tell, see ``checkpoints.TrainingCheckpoint``.
        resume: take the newest run of that base that has such a checkpoint instead of a new one.

    Raises:
        DataError: when there is nothing to resume, naming what there is.

    With several processes the first one decides.
    """
    name, error = "", None
    if idist.get_rank() == 0:
        folder = Path(output_dir).absolute()
        try:
            name = _find(folder, base, identity) if resume else _reserve(folder, base)
        except DataError as problem:
            error = problem
    name, error = gather((name, error))[0]  # all processes end, not the first one alone
    if error is not None:
        raise error
    return name


def _numbered(output_dir: Path, base: str) -> dict[int, str]:
    """Names of the folders of that base by number, the newest first."""
    pattern = re.compile(re.escape(base) + r"(?:_([1-9]\d*))?")
    folders = output_dir.iterdir() if output_dir.is_dir() else ()
    found = {int(match[1] or 1): match[0] for folder in folders if (match := pattern.fullmatch(folder.name))}
    return dict(sorted(found.items(), reverse=True))


def _reserve(output_dir: Path, base: str) -> str:
    output_dir.mkdir(parents=True, exist_ok=True)
    while True:
        n = max(_numbered(output_dir, base), default=0) + 1
        name = base if n == 1 else f"{base}_{n}"
        try:
            (output_dir / name).mkdir()
        except FileExistsError:  # another run has just taken it
            continue
        atexit.register(_give_back, output_dir / name)
        return name


def _give_back(folder: Path) -> None:
    with suppress(OSError):  # it is gone, or something is in it
        folder.rmdir()


def _find(output_dir: Path, base: str, identity: Mapping[str, Any]) -> str:
    others = []
    for name in _numbered(output_dir, base).values():
        path = output_dir / name / "checkpoint.pt"
        if not path.is_file():
            continue
        other = differences(read_checkpoint(path)["identity"], identity)
        if not other:
            return name
        others.append(f"{name} is of another run: {', '.join(other)}")
    known = f" ({'; '.join(others)})" if others else ""
    raise DataError(output_dir / base, f"there is no checkpoint to resume from{known}", ANEW)
