from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["closing_lines"]


def closing_lines(verb: str, settings: dict[str, Any]) -> list[str]:
    """What was done, what to look at twice, and where the results are."""
    folder = settings.get("output_dir")
    if folder is None:
        return ["Done."]
    folder = Path(folder)
    lines = []
    if verb == "inferring" and (folder / "summary.json").is_file():
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        rows = summary["files"]
        lines.append(f"Segmented {summary['images']} images: {summary['nuclei']} nuclei.")
        far = sum((row.get("out_of_domain") or 0) >= 1 for row in rows)
        scale = sum(row.get("scale_to_try") is not None for row in rows)
        if far:
            lines.append(f"{far} of {len(rows)} are farther from the training domains than any training image.")
        if scale:
            lines.append(f"In {scale} of {len(rows)} nuclei have an unusual size: is the pixel size right (--mpp)?")
    if (folder / "errors.csv").is_file():
        lines.append(f"What failed is listed in {folder / 'errors.csv'}.")
    return [*lines, f"Results: {folder}"]
