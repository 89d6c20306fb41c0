from __future__ import annotations

import os
import random
import sys
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # before the libraries below make their threads
    os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest

REPO = Path(__file__).resolve().parents[1]
BUNDLE = REPO / "bundle"
# the real data set and weights lie beside a developer's checkout; elsewhere name the folder with AMA_SAM_TEST_DATA
SHARED = Path(os.environ.get("AMA_SAM_TEST_DATA", REPO.parent / "shared"))
WORKERS = 2


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Processes that share the tests; a single file or test runs in this one, where a debugger can be used."""
    paths = [Path(argument.partition("::")[0]) for argument in config.args]
    return 0 if len(paths) == 1 and paths[0].is_file() else WORKERS


# Which tests ran before, in the same process, must not matter: random numbers start anew.


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup() -> None:
    _seed()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call() -> None:
    _seed()


def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    if torch := sys.modules.get("torch"):  # not every file needs it, and it takes seconds to import
        torch.manual_seed(0)


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
