from __future__ import annotations

import ctypes
import gc
import os
import random
import sys
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # before the libraries below make their threads
    os.environ["OMP_NUM_THREADS"] = "1"

os.environ.pop("MLFLOW_TRACKING_URI", None)  # tests file their runs in folders of their own

import numpy as np
import psutil
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


def pytest_testnodedown(node, error) -> None:
    """A process that ends in the middle of a test does not say of what."""
    if error:
        code = node.gateway._io.popen.wait(timeout=60)
        free = f"{psutil.virtual_memory().available / 2**30:.1f} GB of memory are free now"
        print(f"\n{node.gateway.id} ended with {code} (a negative number is a signal); {free}", file=sys.stderr)


@pytest.fixture(scope="module", autouse=True)
def freed_memory():
    """Two processes run the tests, each with what all of its files leave: verbs keep freed memory (scripts.memory)."""
    yield
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


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
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of the synthetic domains, for all tests: copy it before you change anything."""
    from scripts.data.synthetic import make_synthetic

    return str(make_synthetic(tmp_path_factory.mktemp("data") / "synthetic"))


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory):
    """A random encoder of the tiny preset, and its checkpoint."""
    from fakes import tiny_encoder

    return tiny_encoder(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def open_training(bundle_root: Path, synthetic: str, encoder, tmp_path_factory: pytest.TempPathFactory):
    """
    Opens the real training config at its smallest, with alignment and without its report: the tiny preset of the real
    encoder classes, a narrow decoder, few small crops. What is encoded is shared by all that do not set ``cache_dir``.
    """
    from fakes import TINY_TRAINING, open_verb, place_store

    tiny = {**TINY_TRAINING, "cache_dir": str(tmp_path_factory.mktemp("features"))}

    def open_training(output: Path, **overrides):
        place_store(output)
        arguments = {"dataset_dir": synthetic, "backbone_weights": str(encoder[1]), **tiny, **overrides}
        return open_verb(bundle_root, "train", "train", output_dir=str(output), **arguments)

    return open_training


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory):
    """Address of a real MLflow server on this machine; it takes seconds to start."""
    from mlflow_servers import mlflow_server

    with mlflow_server(tmp_path_factory.mktemp("server")) as uri:
        yield uri


@pytest.fixture(scope="session")
def datasets(bundle_root: Path) -> dict[str, dict]:
    """What the verb preparing knows of published sets."""
    from scripts.preparing.registry import load_datasets

    return load_datasets(bundle_root / "configs" / "datasets.json")


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
