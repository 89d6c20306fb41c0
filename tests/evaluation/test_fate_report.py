"""The evaluator's files on the fates of nuclei."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from scripts.evaluation.fates import FateReport
from scripts.evaluation.report import EvaluationReport


def sample(name: str, domain: str, true: np.ndarray, pred: np.ndarray) -> dict:
    image = np.full((3, *true.shape), 220.0, np.float32)
    for index in np.unique(true[true > 0]):
        image[:, true == index] = 220 - 10 * index
    return {
        "image": MetaTensor(image, meta={"filename_or_obj": f"/d/{name}.png"}),
        "label": MetaTensor(true[None]),
        "prediction": MetaTensor(pred[None]),
        "domain_name": domain,
    }


def row_of_squares(count: int, step: int) -> np.ndarray:
    label = np.zeros((12, 120), np.int32)
    for index in range(count):
        label[2:10, step * index + 2 : step * index + 10] = index + 1
    return label


@pytest.fixture()
def report(tmp_path):
    apart, together = row_of_squares(5, 20), row_of_squares(5, 8)
    palest_missed = np.where(apart == 1, 0, apart)
    samples = [
        sample("missed", "tnbc", apart, palest_missed),
        sample("merged", "tnbc", together, (together > 0).astype(np.int32)),
        sample("empty", "bare", np.zeros_like(apart), np.zeros_like(apart)),
    ]
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(samples), batch_size=1),
        network=torch.nn.Identity(),
        postprocessing=lambda item: {**item, "mask": item["prediction"] > 0, "instances": item["prediction"]},
        val_handlers=[FateReport(tmp_path), EvaluationReport(tmp_path)],
    )
    evaluator.run()
    return tmp_path, evaluator.state.metrics


def test_domains_have_the_shares_of_their_nuclei(report):
    folder, metrics = report
    tnbc = json.loads((folder / "fates.json").read_text())["tnbc"]
    assert tnbc["all"] == {
        "nuclei": 10,
        "matched": 0.4,
        "merged": 0.5,
        "split": 0,
        "missed": 0.1,
        "mostly missed": 0,
        "wrong outline": 0,
    }
    assert (tnbc["touching"]["nuclei"], tnbc["touching"]["merged"], tnbc["apart"]["merged"]) == (5, 1, 0)
    assert [fifth["missed"] for fifth in tnbc["by_contrast"]] == [0.5, 0, 0, 0, 0], "the palest comes first"
    assert tnbc["detections"]["nuclei"] == 5 and tnbc["detections"]["merge"] == 0.2
    assert metrics["tnbc/merged_nuclei"] == 0.5 and metrics["tnbc/merged_touching_nuclei"] == 1
    assert metrics["tnbc/missed_nuclei"] == 0.1 and "bare/merged_nuclei" not in metrics


def test_images_and_nuclei_have_their_rows(report):
    folder, _ = report
    with (folder / "metrics.csv").open(newline="") as file:
        missed, merged, empty = csv.DictReader(file)
    assert (missed["missed"], missed["merged"], missed["touching_merged"]) == ("0.2", "0.0", "")
    assert (merged["merged"], merged["touching_merged"], merged["false"]) == ("1.0", "1.0", "0.0")
    assert empty["merged"] == empty["false"] == "", "no share of nothing"
    with (folder / "fates.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["of"] for row in rows].count("truth") == 10 and len(rows) == 15
    assert {row["quintile"] for row in rows if row["of"] == "truth"} == {"1", "2", "3", "4", "5"}
    assert (rows[0]["fate"], rows[0]["touching"], rows[0]["contrast"]) == ("missed", "False", "10.0")
    assert sorted(path.name for path in (folder / "overlays").glob("tnbc_worst*")) == [
        "tnbc_worst_missed.png",
        "tnbc_worst_missed_fates.png",
    ]
