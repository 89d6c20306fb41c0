from __future__ import annotations

import csv
import os
from pathlib import Path

from ignite.engine import Engine, Events
from scripts.files import atomic_path, write_table

__all__ = ["History", "read_history"]


def read_history(path: str | os.PathLike) -> list[dict[str, float]]:
    """Rows of a ``history.csv``: ``epoch``, a whole number, and the metrics that epoch has; none without the file."""
    if not Path(path).is_file():
        return []
    with open(path, newline="") as f:
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(f)]
    return [{**row, "epoch": int(row["epoch"])} for row in rows]


class History:
    """
    Metrics of every epoch as ``history.csv``, and as pictures in ``curves.png``, renewed after each epoch.

    Args:
        output_dir: folder of both files. A resumed run goes on with the rows it finds.
        title: title of the picture, e.g. the name of the run.
    """

    def __init__(self, output_dir: str | os.PathLike, title: str = "") -> None:
        self.output_dir, self.title = Path(output_dir), title
        self.rows: list[dict[str, float]] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        path = self.output_dir / "history.csv"
        epoch = engine.state.epoch
        if not self.rows and epoch > 1:
            self.rows = [row for row in read_history(path) if row["epoch"] < epoch]
        metrics = {k: float(v) for k, v in engine.state.metrics.items()}
        self.rows.append({"epoch": epoch, **metrics})
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        write_table(path, self.rows)
        self._plot(names)

    def _plot(self, names: list[str]) -> None:
        from matplotlib.figure import Figure  # not pyplot: no global state, no display needed

        panels = {
            "loss": [n for n in names if n.endswith("loss")],
            "Dice": [n for n in names if "dice" in n],
            "Hausdorff distance, 95 % (px)": [n for n in names if n == "val_hd95"],
            "domain accuracy, lambda": [n for n in names if n.startswith("domain_accuracy") or n == "lambda"],
        }
        panels = {title: members for title, members in panels.items() if members}
        figure = Figure(figsize=(5 * len(panels), 3.6), layout="constrained")
        for axis, (title, members) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
            for name in members:
                points = [(row["epoch"], row[name]) for row in self.rows if name in row]
                axis.plot(*zip(*points), label=name, marker="." if len(points) < 30 else None)
            axis.set(title=title, xlabel="epoch")
            axis.legend(fontsize="x-small")
        figure.suptitle(self.title)
        with atomic_path(self.output_dir / "curves.png") as partial:
            figure.savefig(partial, dpi=100)
