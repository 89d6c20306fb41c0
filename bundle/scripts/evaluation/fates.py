from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import ignite.distributed as idist
import numpy as np
from ignite.engine import Engine, Events
from scripts.files import write_json, write_table
from scripts.nuclei.fates import DETECTION_FATES, TRUE_FATES, contrast, fates, touching
from scripts.owned import OwnFiles
from scripts.processes import gather

__all__ = ["FateReport"]

QUINTILES = 5


class FateReport:
    """
    MONAI/ignite handler that tells what became of each true nucleus and what each detection is.

    The fates are those of :func:`scripts.nuclei.fates.fates`. Reads, from the decollated items, ``image`` (3, H, W) RGB
    in [0, 255], ``label`` and ``instances`` (1, H, W) instance maps, ``domain_name`` and the image's file name. Adds
    the shares of an image's nuclei to each item as ``fates``: ``merged, split, missed, mostly_missed,
    wrong_outline`` of the true nuclei, ``touching_merged`` of those that touch another, and of the detections
    ``false`` (with mostly false ones); list it before ``EvaluationReport``, which files them. At the end of the run it
    writes into ``output_dir``

    - ``fates.csv``: one row for each true nucleus and each detection. ``quintile`` is that of the true nucleus'
      contrast among its domain's, 1 for the palest;
    - ``fates.json``: for each domain the shares of all its true nuclei, of those that touch another and those that do
      not, of each quintile of contrast, and of its detections;

    and leaves ``<domain>/merged_nuclei``, ``<domain>/merged_touching_nuclei`` and ``<domain>/missed_nuclei`` (with
    mostly missed ones), shares of all nuclei of the domain, in ``engine.state.metrics``.

    Args:
        output_dir: folder of the files; made if missing.
    """

    def __init__(self, output_dir: str | os.PathLike) -> None:
        self.files = OwnFiles(output_dir)

    def attach(self, engine: Engine) -> None:
        """Register with a MONAI evaluator."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._measure)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        self.files.check(["fates.csv", "fates.json"])
        self._rows: list[dict[str, Any]] = []

    def _measure(self, engine: Engine) -> None:
        for batch_item, item in zip(engine.state.batch, engine.state.output):
            both = {**batch_item, **item}  # the image, too, as the item gives it back: in the pixels of the label
            true, pred = (np.asarray(both[key].cpu())[0] for key in ("label", "instances"))
            found, touch = fates(pred, true), touching(true)
            stands_out = contrast(np.asarray(both["image"].cpu()), true)
            about = {"file": str(both["image"].meta["filename_or_obj"]), "domain": both["domain_name"]}
            areas = np.bincount(true.ravel())
            rows = [
                {
                    **about,
                    "of": "truth",
                    "id": int(found.true_ids[n]),
                    "fate": TRUE_FATES[found.true[n]],
                    "area_px": int(areas[found.true_ids[n]]),
                    "touching": bool(touch[n]),
                    "contrast": None if np.isnan(stands_out[n]) else round(float(stands_out[n]), 2),
                }
                for n in range(len(found.true_ids))
            ]
            areas = np.bincount(pred.ravel())
            detections = [
                {
                    **about,
                    "of": "detection",
                    "id": int(found.detection_ids[n]),
                    "fate": DETECTION_FATES[found.detections[n]],
                    "area_px": int(areas[found.detection_ids[n]]),
                }
                for n in range(len(found.detection_ids))
            ]
            item["fates"] = _of_image(rows, detections)
            self._rows += rows + detections

    def _finish(self, engine: Engine) -> None:
        rows = [row for part in gather(self._rows) for row in part]
        domains = {}
        for name in dict.fromkeys(row["domain"] for row in rows):
            truth = [row for row in rows if row["domain"] == name and row["of"] == "truth"]
            detections = [row for row in rows if row["domain"] == name and row["of"] == "detection"]
            _tell_quintiles(truth)
            domains[name] = summary = {
                "all": _shares(truth, TRUE_FATES),
                "touching": _shares([row for row in truth if row["touching"]], TRUE_FATES),
                "apart": _shares([row for row in truth if not row["touching"]], TRUE_FATES),
                "by_contrast": [
                    _shares([row for row in truth if row.get("quintile") == quintile], TRUE_FATES)
                    for quintile in range(1, QUINTILES + 1)
                ],
                "detections": _shares(detections, DETECTION_FATES),
            }
            if truth:
                everyone = summary["all"]
                engine.state.metrics[f"{name}/merged_nuclei"] = everyone["merged"]
                engine.state.metrics[f"{name}/missed_nuclei"] = everyone["missed"] + everyone["mostly missed"]
            if summary["touching"]["nuclei"]:
                engine.state.metrics[f"{name}/merged_touching_nuclei"] = summary["touching"]["merged"]
        if idist.get_rank() == 0:
            write_table(self.files.path("fates.csv"), rows, ("file", "domain", "of", "id", "fate"))
            write_json(self.files.path("fates.json"), domains)


def _of_image(truth: Sequence[dict[str, Any]], detections: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Columns of ``metrics.csv``; what an image has nothing of to take a share of is left out."""
    shares: dict[str, float] = {}
    if truth:
        of_all = _shares(truth, TRUE_FATES)
        shares |= {fate.replace(" ", "_"): of_all[fate] for fate in TRUE_FATES if fate != "matched"}
    if touch := [row for row in truth if row["touching"]]:
        shares["touching_merged"] = _shares(touch, TRUE_FATES)["merged"]
    if detections:
        of_all = _shares(detections, DETECTION_FATES)
        shares["false"] = of_all["false"] + of_all["mostly false"]
    return shares


def _shares(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Number of nuclei, and if there are any, the share of each fate."""
    found = [row["fate"] for row in rows]
    return {"nuclei": len(rows), **({name: found.count(name) / len(rows) for name in names} if rows else {})}


def _tell_quintiles(truth: Sequence[dict[str, Any]]) -> None:
    """Adds to each true nucleus of a domain the fifth, 1 to 5, that its contrast is in."""
    known = sorted((row for row in truth if row["contrast"] is not None), key=lambda row: row["contrast"])
    for rank, row in enumerate(known):
        row["quintile"] = rank * QUINTILES // len(known) + 1
