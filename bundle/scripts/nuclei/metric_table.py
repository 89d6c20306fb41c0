"""What each figure is called, counts in, and is better as: read by report, comparison, plots and model card."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["METRICS", "Metric", "metric_of", "units_of"]

FRACTION = "fraction from 0 to 1"
PIXELS = "pixels of the evaluated image"
MICROMETRES = "micrometres"
OF_TRUE = "share of the true nuclei"


@dataclass(frozen=True)
class Metric:
    """
    A figure of an image, a column of ``metrics.csv``.

    Args:
        name: of the column.
        unit: what it counts in.
        better: ``higher``, ``lower``, or ``neither``.
        decimals: in tables to read.
        title: in the model card, or empty where it is not there.
        printed: in the table that ``evaluating`` prints.
        summed: over images, where the others are averaged.
    """

    name: str
    unit: str = FRACTION
    better: str = "higher"
    decimals: int = 3
    title: str = ""
    printed: bool = False
    summed: bool = False

    @property
    def arrow(self) -> str:
        """The name with the direction in which it is better."""
        return f"{self.name} {'↑' if self.better == 'higher' else '↓'}" if self.better != "neither" else self.name

    def text(self, value: float, sign: str = "") -> str:
        """A value with this figure's decimals; ``sign`` as of a format."""
        return f"{value:{sign}.{self.decimals}f}"

    def spread_text(self, mean: float, std: float | None) -> str:
        """``mean ± deviation``; the mean alone where there is no deviation."""
        return self.text(mean) + ("" if std is None else f" ± {self.text(std)}")


# a new figure is a line here and a function that gives it, in the order of the tables
_TABLE = (
    Metric("dice", title="Dice", printed=True),
    Metric("iou", printed=True),
    Metric("aji", title="AJI", printed=True),
    Metric("pq", title="PQ", printed=True),
    Metric("dq"),
    Metric("sq"),
    Metric("f1_50", title="F1 at IoU .5", printed=True),
    Metric("surface_dice", title="surface Dice"),
    Metric("hd95_px", PIXELS, "lower", 1, title="HD95 (px)", printed=True),
    Metric("hd_px", PIXELS, "lower", 1, title="HD (px)"),
    Metric("hd95_um", MICROMETRES, "lower", 1, printed=True),
    Metric("hd_um", MICROMETRES, "lower", 1),
    Metric("merged", OF_TRUE, "lower", title="merged"),
    Metric("touching_merged", "share of the true nuclei that touch another", "lower"),
    Metric("split", OF_TRUE, "lower"),
    Metric("missed", OF_TRUE, "lower", title="missed"),
    Metric("mostly_missed", OF_TRUE, "lower"),
    Metric("palest_missed", "share of the fifth of the true nuclei with the least contrast", "lower"),
    Metric("wrong_outline", OF_TRUE, "lower"),
    Metric("false", "share of the detections", "lower"),
    Metric("ece", FRACTION, "lower"),
    Metric("brier", FRACTION, "lower"),
    Metric("out_of_domain", "share of the nearest domain's held-out training windows that lie nearer", "neither"),
    Metric("domain_distance", "medians of the nearest domain's held-out training windows", "neither"),
    Metric("n_true", "nuclei, summed over images", "neither", 1, summed=True),
    Metric("n_pred", "nuclei, summed over images", "neither", 1, summed=True),
    Metric(
        "undefined",
        "images where exactly one mask is empty; their distances are the image diagonal",
        "lower",
        summed=True,
    ),
)
METRICS = {entry.name: entry for entry in _TABLE}


def metric_of(name: str) -> Metric:
    """The figure of that name; of one that is not in the table nothing is known but the name."""
    return METRICS.get(name) or Metric(name, "as its column says", "neither")


def units_of(names: list[str]) -> dict[str, str]:
    """Unit of each of these figures that the table has."""
    return {name: METRICS[name].unit for name in names if name in METRICS}
