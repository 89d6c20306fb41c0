"""The packed bundle alone: unpacked into an empty folder, in a new virtual environment, and staged for the hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scripts.data.synthetic import DOMAINS, synthetic_tile
from scripts.sharing.packing import bundle_files, pack

NAME = "ama_sam_nuclei_segmentation"


@pytest.fixture(scope="module")
def unpacked(bundle_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("elsewhere")
    with zipfile.ZipFile(pack(bundle_root, folder, NAME)) as archive:
        archive.extractall(folder)
    return folder / NAME


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """
    Python of a new, empty virtual environment that finds the packages where this one has them.

    Installing them anew would take minutes; that they are those the requirements name is tested by .ci/run.
    """
    folder = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    packages = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site_packages / "packages.pth").write_text("\n".join(packages) + "\n")
    return folder / "bin" / "python"


def test_the_zip_holds_the_bundle_and_nothing_that_lies_beside_it(bundle_root, unpacked):
    files = {path.relative_to(unpacked) for path in unpacked.rglob("*") if path.is_file()}
    assert files == {path.relative_to(bundle_root) for path in bundle_files(bundle_root)}
    tops = {path.parts[0] for path in files}
    assert tops == {"LICENSE", "configs", "docs", "models", "sample", "scripts"}
    assert [path.name for path in files if path.parts[0] == "models"] == ["model.pt"]
    assert not [path for path in files if path.suffix == ".pyc"]


def test_inferring_runs_from_the_unpacked_zip_in_a_new_environment(unpacked, python, tmp_path):
    """As the model card has it, from an empty folder, with nothing of the repository in reach."""
    (tmp_path / "images").mkdir()
    image, _ = synthetic_tile(DOMAINS["synthetic_pink"], np.random.default_rng(0))
    Image.fromarray(image).save(tmp_path / "images" / "a.png")
    arguments = ["--config_file", "configs/inference.json", "--dataset_dir", tmp_path / "images"]
    command = [python, "-m", "monai.bundle", "run", "inferring", *arguments, "--output_dir", tmp_path / "out"]
    done = _run_alone(command, unpacked, home=tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["nuclei"] > 0
    assert np.asarray(Image.open(tmp_path / "out" / "a_instances.png")).shape == image.shape[:2]


def _run_alone(command, folder, home):
    """With nothing of the repository in reach."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**environment, "OMP_WAIT_POLICY": "PASSIVE", "HOME": str(home)},
    )


# what ci/unit_tests/utils.py of the zoo offers
ZOOS_UTILS = """
def check_workflow(workflow, check_properties=False):
    workflow.initialize()
    if check_properties and (missing := workflow.check_properties()):
        raise ValueError(f"missing properties: {missing}")
    workflow.run()
    workflow.finalize()
"""


@pytest.mark.slow
def test_the_zoos_unit_test_passes_in_a_folder_laid_out_as_the_zoo(bundle_root, unpacked, python, tmp_path):
    tests = tmp_path / "ci" / "unit_tests"
    tests.mkdir(parents=True)
    (tests / "utils.py").write_text(ZOOS_UTILS)
    shutil.copy(bundle_root.parent / "apps" / "model_zoo" / f"test_{NAME}.py", tests)
    shutil.copytree(unpacked, tmp_path / "models" / NAME)
    command = [python, "-m", "unittest", "discover", "-s", "ci/unit_tests", "-p", f"test_{NAME}.py"]
    done = _run_alone(command, tmp_path, home=tmp_path)
    assert done.returncode == 0 and "Ran 2 tests" in done.stderr, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.mark.parametrize("name", ["inference", "train"])
def test_load_works_from_another_folder_or_says_what_to_do(unpacked, python, tmp_path, name):
    code = (
        "import sys; from monai.bundle import load\n"
        "options = {'bundle_dir': sys.argv[1], 'workflow_type': sys.argv[2]}\n"
        "try: load(sys.argv[3], **options)\nexcept Exception as error: print(error.__cause__)\n"
        "print(type(load(sys.argv[3], **options, args_file={'bundle_root': f'{sys.argv[1]}/{sys.argv[3]}'})).__name__)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HOME": str(tmp_path)}
    command = [str(part) for part in (python, "-c", code, unpacked.parent, name, NAME)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "\nthere is no scripts/ in bundle_root .: work inside the bundle" in done.stdout
    assert done.stdout.strip().endswith("\nAMASAM")
