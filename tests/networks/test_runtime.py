"""The shipped weights run by OpenVINO: PyTorch's answers, and one sentence where it cannot run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import BUNDLE
from fakes import open_verb, randomised
from PIL import Image
from scripts.errors import DataError, root_cause
from scripts.networks import runtime
from scripts.networks.loading import load_network, save_model
from scripts.networks.runtime import OpenVinoNetwork, run_by
from scripts.nuclei.metrics import image_metrics

from ama_sam.closing import closing_lines

MODEL = BUNDLE / "models" / "model.pt"
FOLDERS = [BUNDLE / "sample" / name / "images" for name in ("sample_tnbc", "sample_dsb2018_white")]
# (batch, height, width): windows of 7 and 14 tokens that divide the grids, and that do not
SHAPES = [(1, 32, 32), (2, 96, 160), (1, 224, 224), (3, 224, 256), (1, 448, 320)]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """The user's cache, empty at first, shared by the tests of this file."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMA_SAM_CACHE", str(folder))
        yield folder / "openvino"


@pytest.fixture(scope="module")
def openvino():
    if find_spec("openvino") is None:
        pytest.skip("no openvino: python -m pip install -r requirements-openvino.txt")
    return runtime.import_openvino()


@pytest.fixture(scope="module")
def bfloat16(openvino):
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no units for bfloat16")


@pytest.fixture(scope="module")
def network():
    return load_network(MODEL)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Two real tiles, of different sizes."""
    folder = tmp_path_factory.mktemp("images")
    for number, source in enumerate(FOLDERS):
        tile = Image.open(sorted(source.glob("*.png"))[0]).convert("RGB")
        tile.crop((0, 0, 256 - 64 * number, 256)).save(folder / f"{number}.png", dpi=(101600, 101600))
    return folder


def infer(images: Path, out: Path, **settings) -> Path:
    open_verb(BUNDLE, "inference", "inference", **{
        "dataset_dir": str(images), "output_dir": str(out), "device": "cpu", "mpp": 0.25,
        "outputs": ["instances", "csv"], **settings,
    }).run()  # fmt: skip
    return out


def same_nuclei(one: Path, other: Path, least: float) -> None:
    for path in sorted(one.glob("*_instances.png")):
        a, b = (np.asarray(Image.open(folder / path.name)).astype(int) for folder in (one, other))
        scores = image_metrics(b > 0, a > 0, b, a)
        assert a.max() > 5 and scores["dice"] > least and scores["f1_50"] >= least - 0.03, (path.name, scores)


def test_logits_are_pytorchs_for_tiles_of_any_size_and_number(openvino, network):
    same = run_by("openvino", network, MODEL, "cpu", tile_size=224)
    tile = torch.from_numpy(np.array(Image.open(sorted(FOLDERS[0].glob("*.png"))[0]).convert("RGB"))).permute(2, 0, 1)
    tile = torch.cat([tile, tile.flip(1)], 1)[None].float()
    for count, height, width in SHAPES:
        pixels = tile[..., :height, :width].expand(count, -1, -1, -1)
        with torch.no_grad():
            torch.testing.assert_close(same(pixels), network(pixels), atol=5e-4, rtol=0)  # seen were 7e-5


def test_the_compiled_model_is_kept_and_of_the_models_content(openvino, network, tmp_path, monkeypatch):
    pixels = torch.rand(1, 3, 64, 96) * 255
    with torch.no_grad():
        wanted = run_by("openvino", network, MODEL, "cpu")(pixels)
        other = load_network(MODEL)
        randomised(other.decoder.head)
        save_model(tmp_path / "other.pt", other, {})
        unlike = run_by("openvino", other, tmp_path / "other.pt", "cpu")(pixels)
        assert (unlike - other(pixels)).abs().max() < 5e-4 < (unlike - wanted).abs().max()
        shutil.copy(MODEL, tmp_path / "copy.pt")
        monkeypatch.setattr(torch.jit, "trace", None)  # nothing is converted again
        assert torch.equal(run_by("openvino", network, tmp_path / "copy.pt", "cpu")(pixels), wanted)


def test_what_is_not_pytorchs_answer_is_refused_and_a_broken_file_made_anew(openvino, network, cache, tmp_path):
    """Here by another model's file in the cache."""
    other, pixels = load_network(MODEL), torch.rand(1, 3, 64, 64) * 255
    randomised(other.decoder.head)
    save_model(tmp_path / "wrong.pt", other, {})
    before = set(cache.glob("*.blob"))
    run_by("openvino", network, tmp_path / "wrong.pt", "cpu")(pixels)
    (file,) = set(cache.glob("*.blob")) - before
    wrong = run_by("openvino", other, tmp_path / "wrong.pt", "cpu")
    for _ in range(2):  # it does not run the second time, either
        with pytest.raises(DataError, match=r"wrong\.pt: OpenVINO in float32 is .* on the first tile, more than 0.01"):
            wrong(pixels)
    whole = file.read_bytes()
    for damaged in (b"", whole[:1000], whole[:5000] + bytes(100) + whole[5100:]):
        file.write_bytes(damaged)
        assert (wrong(pixels) - other(pixels)).abs().max() < 5e-4, "made anew"
        assert file.read_bytes() not in (damaged, whole)
        wrong = run_by("openvino", other, tmp_path / "wrong.pt", "cpu")


def test_a_place_where_nothing_can_be_kept_stops_nothing(openvino, network, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AMA_SAM_CACHE", str(tmp_path / "file"))
    pixels = torch.rand(1, 3, 64, 64) * 255
    assert (run_by("openvino", network, MODEL, "cpu")(pixels) - network(pixels)).abs().max() < 5e-4
    assert "the compiled model cannot be kept there" in caplog.text


@pytest.mark.parametrize("views", [1, 2])
def test_inferring_finds_the_same_nuclei_and_the_same_distance_from_training(openvino, images, tmp_path, views):
    torch_s = infer(images, tmp_path / "torch", views=views)
    openvinos = infer(images, tmp_path / "openvino", views=views, runtime="openvino", amp=False)
    same_nuclei(torch_s, openvinos, 0.999)
    told, wanted = (json.loads((folder / "summary.json").read_text()) for folder in (openvinos, torch_s))
    assert told["arithmetic"] == "float32 by OpenVINO"
    for one, other in zip(told["files"], wanted["files"], strict=True):
        assert one["domain_distance"] == pytest.approx(other["domain_distance"], abs=2e-3)


def test_bfloat16_is_what_it_computes_in_and_the_last_line_says_so(bfloat16, images, tmp_path):
    out = infer(images, tmp_path / "openvino", runtime="openvino")
    same_nuclei(infer(images, tmp_path / "torch"), out, 0.99)
    assert ", computed in bfloat16 by OpenVINO (" in closing_lines("inferring", {"output_dir": str(out)})[0]


@pytest.mark.slow
def test_a_slide_has_the_same_nuclei_by_a_worker(openvino, images, tmp_path):
    slide = tmp_path / "slide.tif"
    tile = np.tile(np.asarray(Image.open(images / "0.png")), (2, 2, 1))
    Image.fromarray(tile).save(slide, resolution=1e4 / 0.25, resolution_unit=3)

    def segment(out: Path, **settings) -> Path:
        open_verb(BUNDLE, "wsi", "inference", **{
            "slide": str(slide), "output_dir": str(out), "device": "cpu", "tile_size": 256, "tissue_threshold": 0.0,
            "runtime": "openvino", "amp": False, **settings,
        }).run()  # fmt: skip
        return out / "slide"

    alone, shared = segment(tmp_path / "alone"), segment(tmp_path / "shared", cluster="local:1")
    summary = json.loads((alone / "summary.json").read_text())
    assert summary["settings"]["arithmetic"] == "float32 by OpenVINO" and summary["out_of_domain"] is not None
    one, other = (pd.read_csv(folder / "nuclei.csv") for folder in (alone, shared))
    np.testing.assert_allclose(one[["x_px", "y_px"]], other[["x_px", "y_px"]], atol=0.2)  # it may have more threads
    assert summary["nuclei"] > 30


def test_what_it_cannot_run_is_told_before_anything_is_written(openvino, images, network, tmp_path):
    def refusal(**settings) -> str:
        with pytest.raises(Exception) as ended:
            infer(images, tmp_path / "out", runtime="openvino", amp=False, **settings)
        cause = root_cause(ended.value)
        assert isinstance(cause, DataError) and not (tmp_path / "out").exists()
        return str(cause)

    torch.jit.script(network).save(str(tmp_path / "model.ts"))
    assert "runs model files whose encoder is vit_t" in refusal(ckpt_path=str(tmp_path / "model.ts"))
    assert "one precision for all" in refusal(encoder_precision="bfloat16")
    assert "OpenVINO compiles the network itself" in refusal(compile=True)
    with pytest.raises(DataError, match="OpenVINO is for CPUs, and the device is cuda"):
        run_by("openvino", network, MODEL, "cuda", True)


def test_without_the_package_one_sentence_names_it(images, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(Exception) as ended:
        infer(images, tmp_path / "out", runtime="openvino")
    assert "runtime: OpenVINO is not installed. Run `python -m pip install openvino`" in str(root_cause(ended.value))
    assert not (tmp_path / "out").exists()


def test_nobody_is_told_that_it_was_used(openvino, tmp_path):
    """Its package for that makes ``~/intel``, and a process that connects to Google Analytics."""
    program = """
import sys
events = []
sys.addaudithook(lambda event, args: events.append(event) if event in ("os.fork", "socket.getaddrinfo") else None)
from scripts.networks.runtime import import_openvino
import_openvino().Core()
print("told:", *events)
"""
    env = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(BUNDLE), "CI": ""}
    ran = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert ran.stdout.split("told:")[1].split() == [] and not list(tmp_path.iterdir())


def test_without_units_for_bfloat16_it_is_refused(openvino, network, monkeypatch):
    class Old(openvino.Core):
        def get_property(self, device, name):
            return ["FP32"] if name == "OPTIMIZATION_CAPABILITIES" else super().get_property(device, name)

    monkeypatch.setattr(openvino, "Core", Old)
    with pytest.raises(DataError, match="this CPU has no units for bfloat16.*--amp false"):
        OpenVinoNetwork(network, MODEL, "bfloat16")


def test_the_tolerances_are_those_that_the_docs_state():
    text = (BUNDLE / "docs" / "exporting.md").read_text(encoding="utf-8")
    assert all(f"{tolerance:g} in {name}" in text for name, tolerance in runtime.TOLERANCE.items())
