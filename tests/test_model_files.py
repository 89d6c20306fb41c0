"""A model file of any kind is used by every verb with no key but its path."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import tifffile
import torch
from fakes import open_verb, place_store
from PIL import Image
from scripts.networks.ama_sam import AMASAM
from scripts.networks.baselines import SAMMaskDecoder, UNetDecoder
from scripts.networks.hr_decoder import HRDecoder
from scripts.networks.loading import save_model
from scripts.networks.sam_encoders import build_encoder
from slides import make_drawing, save_slide

MODELS = {
    "vit_test, HR-Decoder": ("vit_test", lambda e: HRDecoder(e.channels, e.strides, size="light", aligned_stride=8)),
    "vit_b": ("vit_b", lambda e: HRDecoder(e.channels, e.strides, size="light")),
    "quarter resolution": ("vit_test", lambda e: HRDecoder(e.channels, e.strides, size="quarter", out_channels=1)),
    "U-Net": ("vit_test", lambda e: UNetDecoder(e.channels, e.strides, widths=(8, 8, 8, 16, 16, 8))),
    "SAM's decoder": ("vit_test", lambda e: SAMMaskDecoder(e.channels, e.strides)),
}
MPP = 0.5


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    """A file of that kind with random weights, trained, as it says, at 0.5 micrometres per pixel."""
    backbone, decoder = MODELS[request.param]
    torch.manual_seed(0)
    encoder = build_encoder(backbone)
    path = tmp_path_factory.mktemp("model") / "model.pt"
    about = {"version": "0", "mpp": MPP, "domains": [{"name": "mine", "role": "primary"}]}
    save_model(path, AMASAM(encoder, decoder(encoder)), {"seed": 0}, about)
    return path


@pytest.fixture(scope="module")
def few(synthetic, tmp_path_factory):
    """Two synthetic domains with a few small tiles each."""
    folder = tmp_path_factory.mktemp("few")
    for name in ("synthetic_pink", "synthetic_dark"):
        shutil.copytree(f"{synthetic}/{name}", folder / name)
        for file in folder.glob(f"{name}/*/*.png"):
            Image.open(file).crop((0, 0, 160, 160)).save(file)
    return folder


def test_evaluating_and_aligning(bundle_root, model, few, tmp_path):
    for config, more in (("evaluate", {}), ("align", {"windows_per_domain": 4, "window_size": 64})):
        out = tmp_path / config
        place_store(out)
        settings = {"dataset_dir": str(few), "primary": "synthetic_pink", "ckpt_path": str(model), "device": "cpu"}
        open_verb(bundle_root, config, "inference", output_dir=str(out), **settings, **more).run()
    metrics = json.loads((tmp_path / "evaluate" / "metrics.json").read_text())
    assert metrics["provenance"]["target_mpp"] == MPP and metrics["domains"]["synthetic_pink"]["images"] > 0
    assert json.loads((tmp_path / "align" / "alignment.json").read_text())["provenance"]["target_mpp"] == MPP


def test_inferring_at_the_models_pixel_size(bundle_root, model, few, tmp_path):
    """Files of other pixel sizes come back at their own size; of one that does not say it, that is told."""
    (tmp_path / "in").mkdir()
    pixels = Image.open(sorted((few / "synthetic_pink" / "images").iterdir())[0])
    tiff = tmp_path / "in" / "stated.tif"
    tifffile.imwrite(tiff, np.asarray(pixels), resolution=(4e4, 4e4), resolutionunit="CENTIMETER")
    pixels.save(tmp_path / "in" / "silent.png")
    settings = {"dataset_dir": str(tmp_path / "in"), "output_dir": str(tmp_path / "out"), "ckpt_path": str(model)}
    open_verb(bundle_root, "inference", "inference", device="cpu", **settings).run()
    with (tmp_path / "out" / "summary.csv").open(newline="") as file:
        rows = {row["file"].rpartition("/")[2]: row for row in csv.DictReader(file)}
    assert [rows["stated.tif"][key] for key in ("mpp", "mpp_from")] == ["0.25", "file"]
    assert [rows["silent.png"][key] for key in ("mpp", "mpp_from")] == ["", "unknown"]
    for name in ("stated", "silent"):
        assert Image.open(tmp_path / "out" / f"{name}_instances.png").size == pixels.size


def test_a_slide_at_the_models_pixel_size(bundle_root, model, tmp_path):
    path = save_slide(tmp_path / "a.tif", make_drawing(256, 256, seed=3), 0.25)
    settings = {"slide": str(path), "output_dir": str(tmp_path / "out"), "ckpt_path": str(model), "tile_size": 256}
    open_verb(bundle_root, "wsi", "inference", device="cpu", **settings).run()
    summary = json.loads((tmp_path / "out" / "a" / "summary.json").read_text())
    assert (summary["settings"]["mpp"], summary["settings"]["target_mpp"]) == (0.25, MPP)
