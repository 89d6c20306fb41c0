"""The package for the BioImage Model Zoo: what it says holds, and its own test tool passes where it is installed."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from scripts.sharing.packing import pack

pytestmark = pytest.mark.slow
for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason="python -m pip install -r requirements-export.txt")


@pytest.fixture(scope="module")
def package(bundle_root, tmp_path_factory):
    """The zip, and its files by name."""
    path = pack(bundle_root, tmp_path_factory.mktemp("packed"), "mine", "bioimageio")
    with zipfile.ZipFile(path) as archive:
        return path, {name: archive.read(name) for name in archive.namelist()}


def test_each_file_is_there_and_is_the_one_that_is_described(package):
    _, files = package
    about = json.loads(files["rdf.yaml"])
    described = [about["inputs"][0]["test_tensor"], about["outputs"][0]["test_tensor"], *about["weights"].values()]
    for file in described:
        assert hashlib.sha256(files[file["source"]]).hexdigest() == file["sha256"]
    assert {*about["covers"], about["documentation"]} <= files.keys() and len(files["cover.png"]) < 500_000
    assert about["outputs"][0]["axes"][1]["channel_names"] == ["foreground", "horizontal", "vertical"]
    assert "# Validation" in files["README.md"].decode() and all(cite["url"] for cite in about["cite"])


def test_both_weights_reproduce_the_test_output(package):
    import onnxruntime

    _, files = package
    image, expected = (np.load(io.BytesIO(files[f"test_{kind}.npy"])) for kind in ("input", "output"))
    assert image.shape == (1, 3, 128, 128) and expected.std() > 1
    script = torch.jit.load(io.BytesIO(files["model.ts"]))
    np.testing.assert_allclose(script(torch.from_numpy(image)).detach().numpy(), expected, atol=2e-4)
    session = onnxruntime.InferenceSession(files["model.onnx"], providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"image": image})[0], expected, atol=2e-4)


def test_the_zoos_own_tool_passes(package):
    if importlib.util.find_spec("bioimageio") is None:
        pytest.skip("python -m pip install bioimageio.core, which wants a pydantic of its own")
    done = subprocess.run([sys.executable, "-m", "bioimageio.core", "test", str(package[0])], capture_output=True)
    assert done.returncode == 0, done.stdout.decode()[-4000:]
