from __future__ import annotations

__all__ = ["grouped_name"]

# the beginning of a name in history.csv, and what it is in MLflow, which shows all before the slash as one section
_GROUPS = {
    "train_": "train/",
    "learning_rate": "train/learning_rate",
    "val_": "val/",
    "gradient_": "gradient/",
    "domain_": "adversary/domain_",
    "lambda": "adversary/lambda",
}


def grouped_name(name: str) -> str:
    """A metric's name in MLflow, e.g. ``val/dice`` for ``val_dice``; one that is in a group already stays."""
    if "/" in name:
        return name
    beginning = next((beginning for beginning in _GROUPS if name.startswith(beginning)), "")
    return _GROUPS.get(beginning, "") + name.removeprefix(beginning)
