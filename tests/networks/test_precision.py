from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import BUNDLE
from scripts.networks.ama_sam import AMASAM
from scripts.networks.exported import TorchScriptNetwork
from scripts.networks.hr_decoder import HRDecoder
from scripts.networks.precision import arithmetic
from scripts.networks.sam_encoders import build_encoder


def _network(precision="float32"):
    encoder = build_encoder("vit_test", precision)
    return AMASAM(encoder, HRDecoder(encoder.channels, encoder.strides, size="light")).eval()


def test_the_arithmetic_has_a_name():
    assert arithmetic(_network(), "cpu", False) == "float32"
    assert arithmetic(_network(), "cpu", True) == "bfloat16"
    assert arithmetic(_network(), "cuda:0", True) == "float16", "as torch mixes there"
    assert arithmetic(_network("bfloat16"), "cpu", False) == "bfloat16 in the encoder"


def test_an_export_stays_in_single_precision_on_a_cpu(tmp_path):
    network, image = _network(), torch.rand(1, 3, 64, 64) * 255
    torch.jit.script(network).save(str(tmp_path / "model.ts"))
    exported = TorchScriptNetwork(tmp_path / "model.ts", torch.device("cpu"))
    assert arithmetic(exported, "cpu", True) == "float32"
    with torch.no_grad(), torch.autocast("cpu"):
        logits = exported(image)
    with torch.no_grad():
        torch.testing.assert_close(logits, network(image))


def test_the_shipped_weights_find_the_same_nuclei_in_bfloat16():
    """``benchmarks/precision.py`` measures it on all validation images; here two tiles of the sample."""
    pytest.importorskip("ama_sam")
    from scripts.nuclei.metrics import image_metrics

    from ama_sam import load

    if not (BUNDLE / "models" / "model.pt").is_file():
        pytest.skip("no shipped model")
    segmenters = {amp: load(device="cpu", amp=amp) for amp in (False, True)}
    tiles = [
        sorted((BUNDLE / "sample" / name / "images").glob("*.png"))[0]
        for name in ("sample_tnbc", "sample_dsb2018_white")
    ]
    for tile in tiles:
        exact, rounded = (segmenters[amp].segment(tile) for amp in (False, True))
        assert not np.array_equal(exact.labels, rounded.labels), "bfloat16 rounds"
        scores = image_metrics(rounded.labels > 0, exact.labels > 0, rounded.labels, exact.labels)
        assert scores["dice"] > 0.995 and scores["f1_50"] > 0.97 and scores["aji"] > 0.97
