"""What the network claims against what is true, on claims that are known to be right or wrong."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from PIL import Image
from scripts.evaluation.calibration import CalibrationReport, PixelBins
from scripts.evaluation.report import EvaluationReport
from scripts.out_of_domain.reference import DomainScore


def test_calibrated_claims_have_no_error_and_confident_ones_have():
    rng = np.random.default_rng(0)
    probability = rng.uniform(size=(600, 600))
    truth = rng.uniform(size=probability.shape) < probability
    honest = PixelBins(probability, truth)
    assert honest.ece < 0.01
    assert honest.brier == pytest.approx(1 / 6, abs=0.005), "of uniform calibrated claims: the mean of p (1 - p)"
    assert PixelBins(np.where(probability > 0.5, 0.98, 0.02), truth).ece > 0.15
    wrong = PixelBins(np.full((4, 5), 0.8), np.zeros((4, 5)))
    assert (wrong.ece, wrong.brier) == pytest.approx((0.8, 0.64))
    (row,) = wrong.rows()
    assert row["count"] == 20 and row["low"] <= 0.8 <= row["high"]
    assert (row["predicted"], row["observed"]) == pytest.approx((0.8, 0))


@given(seed=st.integers(0, 2**32 - 1), cut=st.integers(1, 39))
@settings(max_examples=30, deadline=None)
def test_images_add_up(seed, cut):
    rng = np.random.default_rng(seed)
    probability, truth = rng.uniform(size=(40, 7)), rng.integers(0, 3, (40, 7))
    whole = PixelBins(probability, truth)
    parts = PixelBins(probability[:cut], truth[:cut]) + PixelBins(probability[cut:], truth[cut:])
    assert (parts.ece, parts.brier) == pytest.approx((whole.ece, whole.brier))
    assert sum(row["count"] for row in whole.rows()) == 280


def sample(name: str, found: bool) -> dict:
    """Two true nuclei, found surely; without ``found`` a third prediction, unsure, where there is nothing."""
    label = np.zeros((1, 40, 40), np.int32)
    label[:, 5:15, 5:15], label[:, 25:35, 25:35] = 1, 2
    instances, logits = label.copy(), np.where(label > 0, 5.0, -5.0)
    if not found:
        instances[:, 5:15, 25:35], logits[:, 5:15, 25:35] = 3, 0.2
    return {
        "image": MetaTensor(np.zeros((3, 40, 40), np.float32), meta={"filename_or_obj": f"/d/{name}.png"}),
        "label": torch.as_tensor(label),
        "prediction": torch.as_tensor(instances),
        "logits": torch.as_tensor(logits, dtype=torch.float32),
        "domain_name": "good" if found else "bad",
        "mpp": 0.25,
    }


def postprocess(item: dict) -> dict:
    instances = item["prediction"]
    score = DomainScore(0.5, 1.25, "good") if item["domain_name"] == "good" else None
    spread = torch.full(instances.shape, 0.1)
    item = {**item, "pred": item["logits"], "spread": spread, "domain_score": score}
    return {**item, "mask": (instances > 0).to(torch.uint8), "instances": instances}


def test_a_report_tells_images_nuclei_and_domains(tmp_path):
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset([sample("a", True), sample("b", False), sample("c", False)]), batch_size=1),
        network=torch.nn.Identity(),
        postprocessing=postprocess,
        val_handlers=[CalibrationReport(tmp_path), EvaluationReport(tmp_path)],
    )
    evaluator.run()
    summary = json.loads((tmp_path / "calibration.json").read_text())
    assert summary["good"]["nuclei"] == 2 and summary["good"]["matches"] == 1
    assert "auroc_uncertainty" not in summary["good"], "nothing to tell apart"
    assert summary["bad"]["nuclei"] == 6 and summary["bad"]["matches"] == pytest.approx(2 / 3)
    assert summary["bad"]["auroc_uncertainty"] == summary["bad"]["auroc_probability"] == 1
    assert summary["bad"]["auroc_view_spread"] == 0.5
    assert summary["good"]["ece"] < 0.01 < summary["bad"]["ece"]
    assert evaluator.state.metrics["bad/ece"] == summary["bad"]["ece"]

    def table(name):
        with (tmp_path / name).open() as file:
            return list(csv.DictReader(file))

    nuclei = [row for row in table("nuclei.csv") if row["file"] == "/d/b.png"]
    assert [float(row["iou"]) for row in nuclei] == [1, 1, 0]
    assert float(nuclei[2]["probability"]) == pytest.approx(0.55, abs=0.001)
    assert float(nuclei[2]["uncertainty"]) == pytest.approx(0.993, abs=0.001)
    first, second, _ = table("metrics.csv")
    assert (first["out_of_domain"], first["domain_distance"], first["nearest_domain"]) == ("0.5", "1.25", "good")
    assert second["nearest_domain"] == "" and float(second["ece"]) == pytest.approx(summary["bad"]["ece"])
    content = json.loads((tmp_path / "metrics.json").read_text())["domains"]
    assert content["good"]["domain_distance"]["mean"] == 1.25 and "nearest_domain" not in content["good"]
    kinds = {row["of"] for row in table("calibration.csv")}
    assert kinds == {"pixels", "nuclei by probability", "nuclei by certainty"}
    assert np.asarray(Image.open(tmp_path / "calibration.png")).std() > 10


def test_nothing_found_is_told_without_nan(tmp_path):
    nothing = sample("a", True)
    nothing["prediction"] = torch.zeros_like(nothing["prediction"])
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset([nothing]), batch_size=1),
        network=torch.nn.Identity(),
        postprocessing=postprocess,
        val_handlers=[CalibrationReport(tmp_path)],
    )
    evaluator.run()
    assert json.loads((tmp_path / "calibration.json").read_text())["good"]["nuclei"] == 0
    assert "NaN" not in (tmp_path / "calibration.json").read_text()
