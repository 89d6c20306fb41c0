from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
from ignite.engine import Engine, Events
from PIL import Image
from scripts.files import atomic_path, write_json, write_table
from scripts.nuclei.metric_table import METRICS, metric_of, units_of
from scripts.nuclei.metrics import image_metrics, known_mpp
from scripts.nuclei.overlays import fate_overlay, overlay
from scripts.owned import OwnFiles
from scripts.processes import gather

__all__ = ["EvaluationReport", "summarise"]

logger = logging.getLogger(__name__)

IDENTITY = ("file", "domain", "mpp", "nearest_domain")


class EvaluationReport:
    """
    MONAI/ignite handler that measures every image of an evaluator and writes what was found.

    Reads, from the evaluator's decollated items, ``image`` (3, H, W) RGB in [0, 255], ``label`` (1, H, W) instance
    map, ``mask`` and ``instances`` (1, H, W), ``domain_name`` (str), ``mpp`` (float; None or NaN if unknown), the file
    name from the image's meta data, and if there, ``calibration``, ``fates`` and ``domain_score``. At the end of the
    run it writes into ``output_dir``

    - ``metrics.csv``: one row per image;
    - ``metrics.json``: ``units``, ``domains`` and, of several that were asked for, ``overall`` as given by
      :func:`summarise`, and ``provenance``;
    - ``overlays/<domain>_<worst|median|best>_<stem>.png``: three images of each domain, chosen by Dice;
    - ``overlays/<domain>_<worst|median|best>_<stem>_fates.png``: the same ones, coloured by the fate of each nucleus;

    prints a table, and leaves ``<domain>/<metric>`` means in ``engine.state.metrics``. List it before the MLflow
    handler, which logs what it finds there. Of several processes, which take the images in turn, the first one writes
    the files for all, and each one the overlays of its own images, in the same folder.

    Args:
        output_dir: folder of the files; made if missing.
        provenance: plain values stored in ``metrics.json``, such as the weights' sha256.
        tolerance_px: of the surface Dice, in pixels.
        overall_domains: names of the domains that ``overall`` is over, None for all. It is left out where they are one.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        provenance: dict[str, Any] | None = None,
        tolerance_px: float = 2.0,
        overall_domains: Sequence[str] | None = None,
    ) -> None:
        self.files = OwnFiles(output_dir)
        self.provenance = provenance or {}
        self.tolerance_px, self.overall_domains = tolerance_px, overall_domains
        self.rows: list[dict[str, Any]] = []
        self._kept: tempfile.TemporaryDirectory | None = None

    def attach(self, engine: Engine) -> None:
        """Register with a MONAI evaluator."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._measure)
        # not COMPLETED: the MLflow handler reads engine.state.metrics when the epoch completes
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        self.files.check(["metrics.csv", "metrics.json"])
        self.rows = []
        self._kept = tempfile.TemporaryDirectory(prefix="overlays_")

    def _measure(self, engine: Engine) -> None:
        for batch_item, output_item in zip(engine.state.batch, engine.state.output):
            item = {**batch_item, **output_item}
            mpp = known_mpp(item.get("mpp"))
            scores = image_metrics(
                item["mask"], item["label"] > 0, item["instances"], item["label"], mpp, self.tolerance_px
            )
            # which images are worst, median and best is known only at the end: keep them all, but on disk
            np.savez_compressed(
                self._kept_file(len(self.rows)),
                image=np.asarray(item["image"].cpu()).clip(0, 255).astype(np.uint8),
                pred=np.asarray(item["instances"].cpu()),
                true=np.asarray(item["label"].cpu()),
            )
            name = str(item["image"].meta["filename_or_obj"])
            domain = score.values() if (score := item.get("domain_score")) else {}
            extra = {**item.get("calibration", {}), **item.get("fates", {}), **domain}
            self.rows.append({"file": name, "domain": item["domain_name"], "mpp": mpp, **scores, **extra})

    def _finish(self, engine: Engine) -> None:
        own = [row["file"] for row in self.rows]
        self.rows = [row for row in chain.from_iterable(zip_longest(*gather(self.rows))) if row is not None]
        names = list(dict.fromkeys(row["domain"] for row in self.rows))
        summaries = {name: summarise([row for row in self.rows if row["domain"] == name]) for name in names}
        together = [name for name in names if self.overall_domains is None or name in self.overall_domains]
        overall = {}
        if len(together) > 1:
            overall["overall"] = summarise([row for row in self.rows if row["domain"] in together])
        if idist.get_rank() == 0:
            self._write_tables(summaries, overall)
            print(_table({**summaries, **overall}))
            self._tell_empty()
        self._write_overlays(names, own)
        for name, summary in summaries.items():
            engine.state.metrics.update({f"{name}/{key}": _headline(value) for key, value in summary.items()})

    def _tell_empty(self) -> None:
        for of, column in (("labels have no nucleus", "n_true"), ("predictions have no nucleus", "n_pred")):
            empty = sum(not row[column] for row in self.rows)
            if empty:
                table = self.files.folder / "metrics.csv"
                logger.warning("%s: %d of %d %s (%s 0)", table, empty, len(self.rows), of, column)

    def _write_tables(self, summaries: dict[str, Any], overall: dict[str, Any]) -> None:
        # images of unknown mpp have no micrometres: the columns are those that any image has
        write_table(self.files.path("metrics.csv"), self.rows, ("file", "domain", "mpp"))
        names = list(dict.fromkeys(key for row in self.rows for key in row))
        units = units_of(names) | {"std": "sample standard deviation over images"}
        units["surface_dice"] = f"fraction of outlines within {self.tolerance_px:g} pixels"
        content = {"units": units, "domains": summaries, **overall, "provenance": self.provenance}
        write_json(self.files.path("metrics.json"), content)

    def _write_overlays(self, domains: list[str], own: list[str]) -> None:
        if idist.get_rank() == 0:
            for stale in [name for name in self.files if name.startswith("overlays/")]:
                self.files.remove(stale)
        idist.barrier()
        for domain in domains:
            indices = [index for index, row in enumerate(self.rows) if row["domain"] == domain]
            indices.sort(key=lambda index: self.rows[index]["dice"])
            chosen = {"worst": indices[0], "median": indices[len(indices) // 2], "best": indices[-1]}
            for rank, index in chosen.items():
                row = self.rows[index]
                if row["file"] not in own:  # another process has it
                    continue
                file = Path(row["file"])
                title = f"{file.name}   Dice {row['dice']:.3f}   AJI {row['aji']:.3f}   "
                with np.load(self._kept_file(own.index(row["file"]))) as kept:
                    maps = kept["image"], kept["pred"], kept["true"]
                drawn = {
                    "": overlay(*maps, title + "prediction yellow, truth cyan"),
                    "_fates": fate_overlay(*maps, title + "truth by fate"),
                }
                for suffix, picture in drawn.items():
                    with atomic_path(self.files.path(f"overlays/{domain}_{rank}_{file.stem}{suffix}.png")) as path:
                        Image.fromarray(picture).save(path)
        self._kept.cleanup()

    def _kept_file(self, index: int) -> Path:
        return Path(self._kept.name) / f"{index}.npz"


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """
    Rows of :func:`scripts.nuclei.metrics.image_metrics` to one summary.

    Returns:
        ``{"images": count, "undefined": count, "n_true": count, "n_pred": count, metric: {"mean", "std", "n"}, ...}``.
        ``n`` is smaller than ``images`` for micrometres when some images have no mpp; a metric that no image has is
        absent, so there is never a NaN. ``std`` is 0 for a single image.
    """
    summary: dict[str, Any] = {"images": len(rows)}
    for key in dict.fromkeys(key for row in rows for key in row if key not in IDENTITY):
        values = [row[key] for row in rows if key in row]
        if metric_of(key).summed:
            summary[key] = sum(values)
        else:
            std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            summary[key] = {"mean": float(np.mean(values)), "std": std, "n": len(values)}
    return summary


def _headline(value: dict[str, float] | int) -> float:
    return value["mean"] if isinstance(value, dict) else value


def _table(summaries: dict[str, dict[str, Any]]) -> str:
    """Aligned text: a line per domain, and columns that at least one domain has."""
    printed = [name for name, entry in METRICS.items() if entry.printed]
    metrics = [key for key in printed if any(key in summary for summary in summaries.values())]
    lines = [["domain", "images", *metrics, "undefined"]]
    for name, summary in summaries.items():
        means = [metric_of(key).text(summary[key]["mean"]) if key in summary else "-" for key in metrics]
        lines.append([name, str(summary["images"]), *means, str(summary.get("undefined", 0))])
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))])
        for line in lines
    )
