from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["closing_lines"]


# their own last lines name what was done, and the run's or slide's own folder
_SAY_IT_THEMSELVES = {"training", "caching", "clearing_cache", "experimenting", "comparing", "segmenting_slide"}


def closing_lines(verb: str, settings: dict[str, Any]) -> list[str]:
    """What was done, and where the results are; what to look at twice the verb has said just before."""
    from scripts.wording import counted

    if verb in _SAY_IT_THEMSELVES:
        return []
    folder = settings.get("output_dir")
    if folder is None:
        return ["Done."]
    folder = Path(folder)
    lines = []
    if verb == "inferring" and (folder / "summary.json").is_file():
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        found = f"{counted(summary['images'], 'image')}: {counted(summary['nuclei'], 'nucleus', 'nuclei')}"
        lines.append(f"Segmented {found}{_arithmetic(summary)}.")
    if verb == "evaluating" and (folder / "metrics.json").is_file():
        lines += _evaluated(folder)
    if verb == "aligning" and (folder / "alignment.png").is_file():
        lines.append(f"Look at {folder / 'alignment.png'}; in words and numbers: {folder / 'alignment.md'}")
    if verb == "preparing":
        lines += _prepared(folder, str(settings.get("name") or settings.get("dataset")))
    if (folder / "errors.csv").is_file():
        lines.append(f"What failed is listed in {folder / 'errors.csv'}.")
    return [*lines, f"Results: {folder}"]


def _evaluated(folder: Path) -> list[str]:
    report = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    domains = report["domains"]
    counts = [f"{name} {about['images']}" for name, about in domains.items()]
    true, found = (sum(about[key] for about in domains.values()) for key in ("n_true", "n_pred"))
    return [
        f"Evaluated, images by domain: {', '.join(counts)}; nuclei: {true} in the reference, {found} found"
        f"{_arithmetic(report['provenance'])}.",
        f"Look at {folder / 'overlays'} (best, median, worst image); each image's numbers: {folder / 'metrics.csv'}",
    ]


def _arithmetic(about: dict[str, Any]) -> str:
    """What the user did not ask for and might not expect: other numbers than in single precision."""
    name = about.get("arithmetic") or "float32"
    if name == "float32":
        return ""
    return f", computed in {name}" + ("" if name.startswith("float32") else " (--amp false: in float32)")


def _prepared(folder: Path, name: str) -> list[str]:
    sheets = [folder / name / "contact_sheet.png"]
    if not sheets[0].is_file():  # a set of several domains
        sheets = sorted(folder.glob(f"{name}_*/contact_sheet.png"))
    lines = [f"Look at {sheet}: are the outlines on the nuclei?" for sheet in sheets]
    alone = " --mode single" if len(list(folder.glob("*/split.json"))) == 1 else ""  # no other domain beside it yet
    return [*lines, f"To train on it: ama-sam train {folder} --primary {sheets[0].parent.name}{alone}"] if lines else []
