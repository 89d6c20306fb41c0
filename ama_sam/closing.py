from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["closing_lines"]


def closing_lines(verb: str, settings: dict[str, Any]) -> list[str]:
    """What was done, and where the results are; what to look at twice the verb has said just before."""
    from scripts.wording import counted

    folder = settings.get("output_dir")
    if folder is None:
        return ["Done."]
    folder = Path(folder)
    lines = []
    if verb == "inferring" and (folder / "summary.json").is_file():
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        lines.append(
            f"Segmented {counted(summary['images'], 'image')}: {counted(summary['nuclei'], 'nucleus', 'nuclei')}."
        )
    if (folder / "errors.csv").is_file():
        lines.append(f"What failed is listed in {folder / 'errors.csv'}.")
    return [*lines, f"Results: {folder}"]
