from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from scripts.alignment.markdown import markdown
from scripts.alignment.measure import WindowSamples, describe, measure
from scripts.alignment.picture import draw
from scripts.alignment.verdict import short
from scripts.errors import DataError
from scripts.files import atomic_path, write_json
from scripts.owned import OwnFiles

__all__ = ["AlignmentReport"]

METHOD = {
    "accuracy": "balanced over domains, of a fresh logistic regression, cross-validated with groups kept together",
    "group": "patient or field; all of a domain's groups count alike",
    "low, high": "95 % percentile bootstrap over groups",
    "a_distance": "2 (1 - 2 error), 0 to 2; overall the mean over pairs with the primary",
    "mmd2": "unbiased, RBF kernel of the median distance, between groups; mmd_p by permutation of groups",
    "frozen, aligned": "features of the encoder, and those that the discriminator sees, averaged by region",
    "control": "the same features of another decoder: of the network before training, or the one asked for",
    "nuclei_per_megapixel, nucleus_area_px": "in pixels of the evaluated image",
}


class AlignmentReport:
    """
    MONAI/ignite handler that asks, of every window an evaluator sees, how well its domain can be told.

    Reads ``engine.state.output["pred"]`` as ``features.RegionFeatures`` gives it, and from the batch what
    ``windows.CutWindows`` gives. At the end of the run it writes into ``output_dir``

    - ``alignment.json``: all of ``measure.measure``, ``domains``, ``method`` and ``provenance``;
    - ``alignment.md``: the verdict and tables;
    - ``alignment.png``: principal components before and after;

    prints the verdict, and leaves the headline figures in ``engine.state.metrics``. List it before the MLflow handler.
    For one process.

    Args:
        output_dir: folder of the files; made if missing.
        domain_names: names by domain index, the primary first.
        provenance: plain values stored in ``alignment.json``.
        min_groups: a domain with fewer patients or fields is left out, and the report says so.
        seed: of folds, bootstrap and permutations.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        domain_names: Sequence[str],
        provenance: dict[str, Any] | None = None,
        min_groups: int = 3,
        seed: int = 0,
    ) -> None:
        if min_groups < 2:
            raise ValueError(
                f"min_groups must be at least 2, to judge a group by a probe that saw others: {min_groups}"
            )
        self.files, self.domain_names = OwnFiles(output_dir), list(domain_names)
        self.provenance, self.min_groups, self.seed = provenance or {}, min_groups, seed

    def attach(self, engine: Engine) -> None:
        """Register with a MONAI evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        # not COMPLETED: the MLflow handler reads engine.state.metrics when the epoch completes
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        self.files.check(f"alignment.{end}" for end in ("json", "md", "png"))
        if len(self.domain_names) < 2:
            hint = "Name the auxiliary domains with --auxiliary, or give a dataset_dir that holds several domains"
            raise DataError(self.domain_names[0], "it is the only domain, so there is nothing to align it with", hint)
        self._windows: dict[str, list[Any]] = defaultdict(list)
        self._about: dict[int, dict[str, Any]] = {
            index: {"splits": set(), "files": set(), "unusable": 0, "sides": set(), "mpp": set()}
            for index in range(len(self.domain_names))
        }

    def _collect(self, engine: Engine) -> None:
        batch, features = engine.state.batch, engine.state.output["pred"]
        for n, index in enumerate(np.asarray(batch["domain"]).tolist()):
            about = self._about[index]
            if not batch["usable"][n]:
                about["unusable"] += 1
                continue
            about["files"].add(batch["file"][n])
            about["splits"].add(batch["split"][n])
            about["sides"].add(tuple(batch["image"].shape[2:]))
            about["mpp"].add(float(batch["mpp"][n]))
            self._windows["domain"].append(index)
            self._windows["group"].append(batch["group"][n])
            self._windows["statistics"].append(np.asarray(batch["statistics"][n]))
            for kind, values in features.items():
                self._windows[kind].append(values[n].float().cpu().numpy())

    def _finish(self, engine: Engine) -> None:
        samples = WindowSamples(
            **{name: np.array(self._windows[name]) for name in ("frozen", "aligned", "statistics", "dice")},
            control=np.array(self._windows["control"]) if "control" in self._windows else None,
            domain=np.array(self._windows["domain"], int),
            group=np.array(self._windows["group"], str),
        )
        found = measure(samples, self.domain_names, self.min_groups, self.seed)
        domains = {name: self._describe(samples, index) for index, name in enumerate(self.domain_names)}
        report = {**found, "domains": domains, "method": METHOD, "provenance": self.provenance}
        write_json(self.files.path("alignment.json"), report)
        with atomic_path(self.files.path("alignment.md")) as path:
            path.write_text(markdown(report), encoding="utf-8")
        self._draw(samples, found)
        engine.state.metrics.update(headline(found))
        print(f"Alignment of {', '.join(self.domain_names)}: {found['verdict']['sentence']}")

    def _describe(self, samples: WindowSamples, index: int) -> dict[str, Any]:
        about = self._about[index]
        described = {
            "role": "auxiliary" if index else "primary",
            "splits": sorted(about["splits"]),
            "images": len(about["files"]),
            "images_without_usable_window": about["unusable"],
            "window_sides": sorted(about["sides"]),
            **describe(samples, index),
        }
        (mpp,) = about["mpp"] if len(about["mpp"]) == 1 else (float("nan"),)
        if mpp > 0 and "nuclei_per_megapixel" in described:
            described["nuclei_per_mm2"] = described["nuclei_per_megapixel"] / mpp**2
        return described

    def _draw(self, samples: WindowSamples, found: dict[str, Any]) -> None:
        if len(samples.domain) < 2:  # no plane to draw in; a picture of an earlier run must not stand for this one
            self.files.remove("alignment.png")
            return
        titles = {"frozen": "before: frozen encoder", "aligned": "after: aligned features"}
        if "overall" in found:
            for kind in titles:
                of = found["overall"][kind]
                titles[kind] += f"\nprobe {short(of['accuracy'])} [{short(of['low'])}, {short(of['high'])}]"
                titles[kind] += f", chance {short(found['chance'])}"
        with atomic_path(self.files.path("alignment.png")) as partial:
            draw(samples, self.domain_names, titles, found["verdict"]["sentence"]).savefig(partial, dpi=110)


def headline(found: dict[str, Any]) -> dict[str, float]:
    """The figures of :func:`scripts.alignment.measure.measure` that runs are compared by, by their names in MLflow."""
    if "overall" not in found:
        return {}
    metrics = {"alignment/chance": found["chance"]}
    for kind in ("frozen", "aligned"):
        metrics |= {f"alignment/{key}_{kind}": found["overall"][kind][key] for key in ("accuracy", "low", "high")}
        metrics[f"alignment/a_distance_{kind}"] = found["overall"][kind]["a_distance"]
        for name, pair in found["pairs"].items():
            for key in ("accuracy", "a_distance", "mmd2", "mmd_p"):
                metrics[f"alignment/{key}_{kind}_{name}"] = pair[kind][key]
    if "control" in found["overall"]:
        metrics["alignment/accuracy_control"] = found["overall"]["control"]["accuracy"]
    metrics["alignment/accuracy_statistics"] = found["overall"]["image_statistics"]["all"]["accuracy"]
    return metrics
