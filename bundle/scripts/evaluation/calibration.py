from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import ignite.distributed as idist
import numpy as np
from ignite.engine import Engine, Events
from matplotlib.figure import Figure
from scripts.files import atomic_path, write_json, write_table
from scripts.nuclei.measures import nucleus_means
from scripts.nuclei.metrics import best_iou
from scripts.owned import OwnFiles
from scripts.processes import gather
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score

__all__ = ["BINS", "CalibrationReport", "PixelBins"]

BINS = 15
NUCLEUS_BINS = 10
MATCH = 0.5  # IoU above which a nucleus counts as found


class PixelBins:
    """
    Pixels counted by their foreground probability, in 15 bins of equal width.

    Args:
        probability: (H, W) in [0, 1].
        truth: (H, W), nuclei above 0.
    """

    def __init__(self, probability: np.ndarray, truth: np.ndarray) -> None:
        p, y = probability.astype(np.float64).ravel(), (truth > 0).ravel()
        bins = np.minimum((p * BINS).astype(int), BINS - 1)
        self.count, self.predicted, self.observed = (
            np.bincount(bins, weights, minlength=BINS).astype(np.float64) for weights in (None, p, y)
        )
        self.squares = float(((p - y) ** 2).sum())

    def __add__(self, other: PixelBins) -> PixelBins:
        total = PixelBins.__new__(PixelBins)
        for name in ("count", "predicted", "observed", "squares"):
            setattr(total, name, getattr(self, name) + getattr(other, name))
        return total

    @property
    def ece(self) -> float:
        """Expected calibration error (Guo et al., ICML 2017): mean over pixels of |predicted - observed| of the bin."""
        return float(np.abs(self.predicted - self.observed).sum() / self.count.sum())

    @property
    def brier(self) -> float:
        """Mean squared difference of probability and truth."""
        return self.squares / float(self.count.sum())

    def rows(self) -> list[dict[str, Any]]:
        """Bins that hold pixels: their limits, number of pixels, mean probability, share that is nucleus."""
        return [
            {
                "low": round(index / BINS, 4),
                "high": round((index + 1) / BINS, 4),
                "count": int(self.count[index]),
                "predicted": self.predicted[index] / self.count[index],
                "observed": self.observed[index] / self.count[index],
            }
            for index in np.flatnonzero(self.count)
        ]


class CalibrationReport:
    """
    MONAI/ignite handler that compares what an evaluator's network claims with what is true.

    Reads, from the decollated items, ``pred`` (C, H, W) logits with the foreground first, ``label`` and ``instances``
    (1, H, W) instance maps, ``domain_name``, the image's file name, and if there, ``spread`` and ``domain_score``. Adds
    ``ece`` and ``brier`` of its pixels to each item as ``calibration``; list it before ``EvaluationReport``, which
    files them. At the end of the run it writes into ``output_dir``

    - ``calibration.csv``: bins of pixels by foreground probability, and of nuclei by their mean probability and by
      certainty (1 - uncertainty), with the share of nuclei that match a true one (IoU above 0.5);
    - ``calibration.json``: for each domain ECE and Brier score of pixels, number of nuclei and share of matches, and
      how well probability, uncertainty and spread tell matches from the others (AUROC, 0.5 is chance);
    - ``nuclei.csv``: one row for each predicted nucleus;
    - ``calibration.png``: these as curves, and Dice against the distance from the training domains.

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
        self.files.check([*(f"calibration.{end}" for end in ("csv", "json", "png")), "nuclei.csv"])
        self._pixels: dict[str, PixelBins] = {}
        self._nuclei: list[dict[str, Any]] = []
        self._images: list[dict[str, Any]] = []

    def _measure(self, engine: Engine) -> None:
        for batch_item, item in zip(engine.state.batch, engine.state.output):
            label, instances = (np.asarray(values.cpu())[0] for values in (batch_item["label"], item["instances"]))
            probability = np.asarray(item["pred"][0].detach().float().sigmoid().cpu())
            spread = np.asarray(item["spread"][0].cpu()) if "spread" in item else None
            bins, domain = PixelBins(probability, label), batch_item["domain_name"]
            item["calibration"] = {"ece": bins.ece, "brier": bins.brier}
            self._count(domain, bins)
            about = {"file": str(batch_item["image"].meta["filename_or_obj"]), "domain": domain}
            values = {**nucleus_means(instances, probability, spread), "iou": best_iou(instances, label)}
            self._nuclei += [
                {**about, "id": index + 1, **{name: float(column[index]) for name, column in values.items()}}
                for index in range(len(values["iou"]))
            ]
            both = ((instances > 0) & (label > 0)).sum()
            dice = 2 * both / max((instances > 0).sum() + (label > 0).sum(), 1)
            if score := item.get("domain_score"):
                self._images.append({**about, "dice": dice, "domain_distance": score.domain_distance})

    def _gather(self) -> None:
        """Take over what other processes have measured."""
        pixels, nuclei, images = zip(*gather((self._pixels, self._nuclei, self._images)))
        self._nuclei, self._images = ([one for part in parts for one in part] for parts in (nuclei, images))
        self._pixels = {}
        for domain, bins in (item for part in pixels for item in part.items()):
            self._count(domain, bins)

    def _count(self, domain: str, bins: PixelBins) -> None:
        self._pixels[domain] = self._pixels[domain] + bins if domain in self._pixels else bins

    def _finish(self, engine: Engine) -> None:
        self._gather()
        rows, summary = [], {}
        for domain, bins in self._pixels.items():
            rows += [{"domain": domain, "of": "pixels", **row} for row in bins.rows()]
            nuclei = [nucleus for nucleus in self._nuclei if nucleus["domain"] == domain]
            for name, curve in _nucleus_curves(nuclei).items():
                rows += [{"domain": domain, "of": f"nuclei by {name}", **row} for row in curve]
            summary[domain] = {"ece": bins.ece, "brier": bins.brier, **_ranking(nuclei)}
            engine.state.metrics.update({f"{domain}/ece": bins.ece, f"{domain}/brier": bins.brier})
        if idist.get_rank() > 0:
            return
        write_table(self.files.path("calibration.csv"), rows, ("domain", "of"))
        write_table(self.files.path("nuclei.csv"), self._nuclei, ("file", "domain", "id"))
        write_json(self.files.path("calibration.json"), summary)
        with atomic_path(self.files.path("calibration.png")) as path:
            _draw(rows, self._images, list(self._pixels)).savefig(path, dpi=110)


def _nucleus_curves(nuclei: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Share of matches by mean probability and by certainty, in bins of equally many nuclei."""
    if not nuclei:
        return {}
    matches = np.array([nucleus["iou"] > MATCH for nucleus in nuclei])
    claims = {
        "probability": np.array([nucleus["probability"] for nucleus in nuclei]),
        "certainty": 1 - np.array([nucleus["uncertainty"] for nucleus in nuclei]),
    }
    curves = {}
    for name, claim in claims.items():
        claim = claim.clip(0, 1)
        observed, predicted = calibration_curve(matches, claim, n_bins=NUCLEUS_BINS, strategy="quantile")
        curves[name] = [{"predicted": p, "observed": o} for p, o in zip(predicted, observed)]
    return curves


def _ranking(nuclei: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many nuclei match, and how well each measure tells those that do not."""
    missed = np.array([nucleus["iou"] <= MATCH for nucleus in nuclei])
    found: dict[str, Any] = {"nuclei": len(missed)}
    if not len(missed):
        return found
    found["matches"] = float((~missed).mean())
    if 0 < missed.mean() < 1:
        for name, sign in (("probability", -1), ("uncertainty", 1), ("view_spread", 1)):
            if name in nuclei[0]:
                found[f"auroc_{name}"] = float(roc_auc_score(missed, [sign * nucleus[name] for nucleus in nuclei]))
    return found


def _draw(rows: Sequence[Mapping[str, Any]], images: Sequence[Mapping[str, Any]], domains: Sequence[str]) -> Figure:
    """Three reliability diagrams, and Dice against distance where that is known."""
    figure = Figure(figsize=(17 if images else 13, 4.4), layout="constrained")
    panels = figure.subplots(1, 4 if images else 3)
    titles = {
        "pixels": ("Pixels", "foreground probability", "share that is nucleus"),
        "nuclei by probability": ("Nuclei by probability", "mean probability of the nucleus", "share with IoU > .5"),
        "nuclei by certainty": ("Nuclei by certainty", "1 - uncertainty of the nucleus", "share with IoU > .5"),
    }
    for axis, (kind, (title, x, y)) in zip(panels, titles.items()):
        if kind != "nuclei by certainty":  # an entropy is no probability: only the order counts
            axis.plot([0, 1], [0, 1], "--", color="grey", linewidth=0.8, label="calibrated")
        for domain in domains:
            curve = [row for row in rows if row["domain"] == domain and row["of"] == kind]
            axis.plot([row["predicted"] for row in curve], [row["observed"] for row in curve], "o-", ms=4, label=domain)
        axis.set(title=title, xlabel=x, ylabel=y, xlim=(0, 1), ylim=(0, 1))
    panels[1].set_xlim(0.5, 1)  # a nucleus is where the probability is above a threshold, by default that
    if images:
        for number, domain in enumerate(domains):
            points = [(i["domain_distance"], i["dice"]) for i in images if i["domain"] == domain]
            panels[3].plot(*zip(*points), "o", ms=4, color=f"C{number}") if points else None
        panels[3].set(title="Images", xlabel="distance from the training domains", ylabel="Dice", ylim=(0, 1))
        panels[3].set_xlim(left=0)
    for number, axis in enumerate(panels[:3]):
        for line, domain in zip(axis.get_lines()[-len(domains) :], range(len(domains))):
            line.set_color(f"C{domain}")
        if number == 0:
            axis.legend(fontsize="small")
    return figure
