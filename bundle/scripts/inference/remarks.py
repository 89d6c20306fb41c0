"""What to look at twice in segmented images, in the words in which it is told everywhere."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scripts.out_of_domain.reference import UNUSUAL
from scripts.wording import counted

__all__ = ["remarks"]


def remarks(rows: Sequence[Mapping[str, Any]], model_mpp: float | None) -> list[tuple[int, str]]:
    """
    Sentences on a run of ``inferring``, each with its level of logging: a warning where most images are concerned.

    Args:
        rows: of ``summary.csv``.
        model_mpp: the pixel size that the model knows, None if it does not say.
    """
    if not rows:
        return []
    found = [_no_nuclei(rows), _pixel_sizes(rows, model_mpp), _other_sizes(rows, model_mpp), _unlike(rows)]
    return [remark for remark in found if remark is not None]


def _of_all(number: int, rows: Sequence, singular: str, plural: str) -> str:
    return f"{number} of {counted(len(rows), 'image')} {singular if number == 1 else plural}"


def _no_nuclei(rows: Sequence[Mapping[str, Any]]) -> tuple[int, str] | None:
    if any(row["nuclei"] for row in rows):
        return None
    return logging.WARNING, f"no nucleus was found in any of {counted(len(rows), 'image')}"


def _pixel_sizes(rows: Sequence[Mapping[str, Any]], model_mpp: float | None) -> tuple[int, str] | None:
    """Images taken as they are, for nobody said how large their pixels are, and what --mpp estimate made of them."""
    unknown = [row for row in rows if row["mpp_from"] == "unknown"]
    if not unknown or not model_mpp:
        return None
    told = _of_all(
        len(unknown), rows, "does not state its pixel size and was", "do not state their pixel size and were"
    )
    told += f" taken as {'it is' if len(unknown) == 1 else 'they are'}, as if of {model_mpp:.3g} um a pixel"
    if "mpp_estimate" not in unknown[0]:
        return logging.INFO, f"{told} (--mpp tells it)"
    guesses = [row["mpp_estimate"] for row in unknown if row["mpp_estimate"] is not None]
    told += ": --mpp estimate changed nothing there, for it enlarges only where nuclei are clearly smaller. "
    few = len(unknown) - len(guesses)
    by_nuclei = f"By the nuclei it is {np.median(guesses):.2g} um" if guesses else ""
    by_nuclei += f" (median of {counted(len(guesses), 'image')})" if len(guesses) > 1 else ""
    too_few = f"{'in' if guesses else 'In'} {counted(few, 'image')} nuclei are too few to tell" if few else ""
    return logging.INFO, told + "; ".join(part for part in (by_nuclei, too_few) if part)


def _other_sizes(rows: Sequence[Mapping[str, Any]], model_mpp: float | None) -> tuple[int, str] | None:
    doubtful = [row["scale_to_try"] for row in rows if row["scale_to_try"]]
    if not doubtful:
        return None
    told = f"in {len(doubtful)} of {counted(len(rows), 'image')} nuclei are of another size than the model knows"
    if 2 * len(doubtful) <= len(rows):
        return logging.INFO, f"{told} (see scale_to_try)"
    advice = "see scale_to_try"
    if model_mpp and any(row["mpp_from"] == "unknown" for row in rows):
        advice += f"; is it another magnification? --mpp {model_mpp * float(np.median(doubtful)):.2g} would fit them"
    return logging.WARNING, f"{told} ({advice})"


def _unlike(rows: Sequence[Mapping[str, Any]]) -> tuple[int, str] | None:
    unlike = sum((row.get("out_of_domain") or 0) > UNUSUAL for row in rows)
    if not unlike:
        return None
    told = _of_all(unlike, rows, "is unlike those of training", "are unlike those of training")
    level = logging.WARNING if unlike == len(rows) else logging.INFO
    return level, f"{told} (out_of_domain above {UNUSUAL}): nuclei may be wrong there"
