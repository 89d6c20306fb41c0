from __future__ import annotations

from typing import Any

from scripts.alignment.verdict import short
from scripts.markdown import markdown_table

__all__ = ["markdown"]

SHORTCUTS = {"scale_and_density": "scale and density", "colour": "mean colour", "all": "both"}


def markdown(report: dict[str, Any]) -> str:
    """The content of ``alignment.json`` as a page: the verdict, then tables."""
    parts = ["# Alignment report", f"**{report['verdict']['sentence']}**", *_notes(report)]
    if "overall" in report:
        parts += _figures(report)
    parts += ["## What was looked at", _domains(report["domains"])]
    provenance = "\n".join(f"- {key}: `{value}`" for key, value in report["provenance"].items())
    return "\n\n".join([*parts, provenance]).strip() + "\n"


def _notes(report: dict[str, Any]) -> list[str]:
    notes = []
    for name, about in report["domains"].items():
        if about["splits"] == ["training"] and report["provenance"].get("splits") not in ("training", ["training"]):
            notes.append(f"`{name}` has no image in the splits asked for: its *training* images were taken.")
    sides = {tuple(side) for about in report["domains"].values() for side in about["window_sides"]}
    if len(sides) > 1:
        shown = ", ".join(f"{h} x {w}" for h, w in sorted(sides))
        notes.append(
            f"Windows differ in size ({shown} px), which alone may tell domains apart: choose a window_size that "
            "all images hold."
        )
    return ["\n".join(f"- {note}" for note in notes)] if notes else []


def _figures(report: dict[str, Any]) -> list[str]:
    primary = next(iter(report["domains"]))
    rows = {f"all {1 / report['chance']:.0f} domains": {"chance": report["chance"], **report["overall"]}}
    control = []
    if "control" in report["overall"]:
        accuracy = _interval(report["overall"]["control"])
        control = [f"Control, all domains: {accuracy}; a network that training aligned lies below it."]
    rows |= {f"{primary} and {name}": pair for name, pair in report["pairs"].items()}
    accuracy = [
        [name, short(row["chance"]), *(_interval(row[kind]) for kind in ("frozen", "aligned"))]
        + [
            short(row[kind][region]["accuracy"])
            for region in ("nuclei", "background")
            for kind in ("frozen", "aligned")
        ]
        for name, row in rows.items()
    ]
    distance = [
        [name, *(f"{row[kind]['a_distance']:.2f}" for kind in ("frozen", "aligned"))]
        + [_mmd(row[kind]) for kind in ("frozen", "aligned")]
        for name, row in rows.items()
    ]
    shortcuts = [
        [name, short(row["chance"]), *(_interval(row["image_statistics"][key]) for key in SHORTCUTS)]
        for name, row in rows.items()
    ]
    regions = ["nuclei: frozen", "nuclei: aligned", "background: frozen", "background: aligned"]
    return [
        "## How well a fresh probe tells the domains apart",
        markdown_table(["", "chance", "frozen", "aligned", *regions], accuracy),
        "Balanced accuracy [95 % bootstrap interval over patients or fields], cross-validated by patient or field.",
        *control,
        "## Distances",
        markdown_table(["", "A-distance: frozen", "A-distance: aligned", "MMD²: frozen", "MMD²: aligned"], distance),
        "Proxy A-distance from 0 (alike) to 2 (always told apart), of all domains the mean of the pairs. MMD², "
        "unbiased, with its permutation p-value [the smallest that so few groups can give].",
        "## What needs no texture",
        markdown_table(["", "chance", *SHORTCUTS.values()], shortcuts),
        "The same probe on the number, area and share of nuclei, and on mean RGB, of each window.",
    ]


def _domains(domains: dict[str, dict[str, Any]]) -> str:
    columns = {
        "patients or fields": lambda about: str(about["groups"]),
        "images": lambda about: str(about["images"]),
        "windows": lambda about: str(about["windows"]),
        "without usable window": lambda about: str(about["images_without_usable_window"]),
        "splits": lambda about: ", ".join(about["splits"]),
        "nuclei / megapixel": lambda about: f"{about['nuclei_per_megapixel']:.0f}",
        "nuclei / mm²": lambda about: f"{about['nuclei_per_mm2']:.0f}",
        "nucleus area (px)": lambda about: f"{about['nucleus_area_px']:.0f}",
        "foreground": lambda about: short(about["foreground_fraction"]),
        "mean RGB": lambda about: " ".join(f"{about[c]:.0f}" for c in ("red", "green", "blue")),
    }
    rows = []
    for name, about in domains.items():
        row = [f"{name} (primary)" if about["role"] == "primary" else name]
        for show in columns.values():
            try:
                row.append(show(about))
            except KeyError:  # without a window no statistics, without µm per pixel no mm²
                row.append("-")
        rows.append(row)
    return markdown_table(["domain", *columns], rows)


def _interval(accuracy: dict[str, float]) -> str:
    return f"{short(accuracy['accuracy'])} [{short(accuracy['low'])}, {short(accuracy['high'])}]"


def _mmd(found: dict[str, float]) -> str:
    if "mmd2" not in found:
        return "-"
    return f"{found['mmd2']:.3f} (p {found['mmd_p']:.2g} [{found['mmd_smallest_p']:.2g}])"
