"""The version, which the bundle's metadata tell."""

import json
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_BUNDLE = _HERE / "bundle" if (_HERE / "bundle").is_dir() else _HERE.parent / "bundle"
VERSION = json.loads((_BUNDLE / "configs" / "metadata.json").read_text(encoding="utf-8"))["version"]
