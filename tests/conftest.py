from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
BUNDLE = REPO / "bundle"
# the real data set and weights lie beside a developer's checkout; elsewhere name the folder with AMA_SAM_TEST_DATA
SHARED = Path(os.environ.get("AMA_SAM_TEST_DATA", REPO.parent / "shared"))

sys.path.insert(0, str(BUNDLE))


@pytest.fixture(scope="session")
def bundle_root() -> Path:
    return BUNDLE


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real domains (tnbc, monuseg, dsb2018_*)."""
    folder = SHARED / "data" / "nuclei"
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}; set AMA_SAM_TEST_DATA to the folder that holds data/nuclei")
    return folder


@pytest.fixture(scope="session")
def mobile_sam() -> Path:
    """The MobileSAM checkpoint."""
    path = SHARED / "weights" / "mobile_sam.pt"
    if not path.is_file():
        pytest.skip(f"MobileSAM weights not found at {path}; set AMA_SAM_TEST_DATA")
    return path
