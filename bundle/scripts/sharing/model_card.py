from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.errors import DataError
from scripts.files import atomic_path, read_json
from scripts.markdown import markdown_table
from scripts.nuclei.metric_table import METRICS, Metric

__all__ = ["eval_metrics", "metrics_table", "record_metrics"]

_COLUMNS = [entry for entry in METRICS.values() if entry.title]
_TABLE = re.compile(r"(<!-- eval_metrics: begin -->\n).*?(<!-- eval_metrics: end -->)", re.DOTALL)


def record_metrics(bundle_root: str | os.PathLike, metrics: str | os.PathLike) -> None:
    """
    Put an evaluation of the shipped weights where it belongs: ``eval_metrics`` of the metadata, the one place of these
    figures, and the table of the model card, which is made of them.

    Args:
        bundle_root: folder of the bundle.
        metrics: the ``metrics.json`` that the verb ``evaluating`` wrote.

    Raises:
        DataError: when a file is missing, or the model card has no place for the table.
    """
    root = Path(bundle_root)
    measured, metadata_file, card_file = Path(metrics), root / "configs" / "metadata.json", root / "docs" / "README.md"
    if not measured.is_file():
        raise DataError(measured, "there is no such file", "Run evaluating first, and give --metrics its metrics.json")
    card = card_file.read_text(encoding="utf-8")
    if not _TABLE.search(card):
        raise DataError(
            card_file, "the marks around the table of figures are missing", "Restore eval_metrics: begin, end"
        )
    metadata = read_json(metadata_file)
    metadata["eval_metrics"] = eval_metrics(read_json(measured))
    table = metrics_table(metadata["eval_metrics"])
    with atomic_path(metadata_file) as partial:
        partial.write_text(json.dumps(metadata, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
    with atomic_path(card_file) as partial:
        partial.write_text(_TABLE.sub(lambda found: found[1] + table + found[2], card), encoding="utf-8")


def eval_metrics(report: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """
    For each domain of an evaluation: number of images and of undefined ones, mean and deviation of each metric; without
    those that no image has, such as shares of nuclei where there are none.
    """
    return {
        name: {
            "images": summary["images"],
            "undefined": summary["undefined"],
            **{
                f"{entry.name}_{part}": round(summary[entry.name][part], entry.decimals)
                for entry in _COLUMNS
                if entry.name in summary
                for part in ("mean", "std")
            },
        }
        for name, summary in report["domains"].items()
    }


def metrics_table(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """The Markdown table of :func:`eval_metrics`, one line for each domain."""
    rows = []
    for name, values in metrics.items():
        cells = [_cell(entry, values) for entry in _COLUMNS]
        rows.append([f"`{name}`", str(values["images"]), *cells, str(values["undefined"])])
    return markdown_table(["test part", "images", *(entry.title for entry in _COLUMNS), "undefined"], rows) + "\n"


def _cell(entry: Metric, values: Mapping[str, float]) -> str:
    if f"{entry.name}_mean" not in values:
        return "-"
    return entry.spread_text(values[f"{entry.name}_mean"], values[f"{entry.name}_std"])
