from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from scripts.errors import DataError
from scripts.files import read_json
from scripts.training.history import read_history

__all__ = ["newest_run", "train_stats"]

_METRIC = "val_dice"


def newest_run(folder: Path) -> Path | None:
    """The run in a folder of trainings that was begun last, by the ``train.json`` that each begins with."""
    begun = sorted(folder.glob("*/train.json"), key=lambda file: file.stat().st_mtime)
    return begun[-1].parent if begun else None


def train_stats(run: Path) -> dict[str, Any]:
    """
    How far a training is and what it reached, by the names that MONAI Label's clients know; what is not known is left
    out, for null breaks QuPath's reader.

    Args:
        run: folder of the run; what it wrote so far is read, so it may be another process that trains.

    Returns:
        ``run``, ``start_ts`` (seconds since 1970), ``epoch``, ``max_epochs``, ``current_time`` (``0:01:30`` since the
        start, as of the last epoch), of a finished one ``total_time`` instead, and from the first validation on
        ``best_metric`` and ``eval``.
    """
    config, rows = run / "train.json", read_history(run / "history.csv")
    start, stats = config.stat().st_mtime, {"run": run.name}
    epoch = rows[-1]["epoch"] if rows else 0
    last = (run / "history.csv").stat().st_mtime if rows else start
    try:
        most = read_json(config)["max_epochs"]
    except (DataError, KeyError):  # just being written
        most = None
    stats |= {"start_ts": int(start), "epoch": epoch}
    stats["total_time" if epoch == most else "current_time"] = str(datetime.timedelta(seconds=int(last - start)))
    if isinstance(most, int):
        stats["max_epochs"] = most
    judged = [row for row in rows if _METRIC in row]
    if judged:
        best = max(judged, key=lambda row: row[_METRIC])
        stats["best_metric"] = best[_METRIC]
        stats["eval"] = {
            "key_metric_name": _METRIC,
            "best_metric": best[_METRIC],
            "best_metric_epoch": best["epoch"],
            "metrics": {name: value for name, value in judged[-1].items() if name.startswith("val_")},
        }
    return stats
