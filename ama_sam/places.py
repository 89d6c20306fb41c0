from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["BUNDLE", "HOME", "SAMPLE", "use_bundle"]

_HERE = Path(__file__).resolve().parent
HOME = _HERE if (_HERE / "bundle").is_dir() else _HERE.parent  # holds bundle/ and apps/
BUNDLE = HOME / "bundle"
SAMPLE = BUNDLE / "sample"  # real tiles of three domains


def use_bundle() -> None:
    """
    Make the bundle's package importable; it is called ``scripts``, as MONAI's model zoo wants it.

    Raises:
        ImportError: when another package of that name was imported before.
    """
    other = sys.modules.get("scripts")
    places = [str(Path(place).resolve()) for place in getattr(other, "__path__", [])]
    if other is not None and str(BUNDLE / "scripts") not in places:
        where = places[0] if places else getattr(other, "__file__", "?")
        raise ImportError(
            f"another package called 'scripts' is imported already ({where}), and AMA-SAM's has that name: "
            "import ama_sam before it, or in another process"
        )
    if str(BUNDLE) not in sys.path:
        sys.path.insert(0, str(BUNDLE))
