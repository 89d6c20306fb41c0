from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fakes import tiny_bundle

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def own_app(bundle_root, tmp_path_factory) -> Path:
    """Our app, with a network that finds what is dark (``slides.Darkness``): what is to be found is known exactly."""
    folder = tmp_path_factory.mktemp("own")
    app = folder / "apps" / "ama_sam"
    shutil.copytree(REPO / "apps" / "ama_sam", app, ignore=shutil.ignore_patterns("model", "logs"))
    knowing = {"network": {"_target_": "slides.Darkness"}}
    tiny_bundle(bundle_root, folder / "bundle", inference=knowing, wsi=knowing)
    return app
