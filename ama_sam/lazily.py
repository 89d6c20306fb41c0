from __future__ import annotations

import importlib.util
import sys

__all__ = ["import_lazily"]

# MONAI imports these as it is imported, for what segmenting does not use
SELDOM_USED = ("mlflow", "pandas", "matplotlib", "matplotlib.pyplot", "nibabel")


def import_lazily(names: tuple[str, ...] = SELDOM_USED) -> None:
    """Let libraries be imported when they are first used: Python's own ``LazyLoader``."""
    for name in names:
        if name in sys.modules or "." in name and name.partition(".")[0] not in sys.modules:
            continue
        try:
            spec = importlib.util.find_spec(name)
        except ImportError:
            continue
        if spec is None or spec.loader is None:
            continue
        spec.loader = importlib.util.LazyLoader(spec.loader)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
