"""
AMA-SAM for people: the command ``ama-sam`` and, for notebooks, :func:`load`; ``SAMPLE`` is a folder of real tiles.
Both run the bundle that lies beside this file (in an installed package) or beside this folder (in the repository).
"""

from __future__ import annotations

from typing import Any

from ama_sam.places import SAMPLE

__all__ = ["SAMPLE", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":  # torch is imported for it, and not for a command that only prints its help
        from ama_sam.notebook import load

        return load
    raise AttributeError(f"module 'ama_sam' has no attribute '{name}'")
