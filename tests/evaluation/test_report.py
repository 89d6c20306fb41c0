from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from PIL import Image
from scripts.errors import DataError
from scripts.evaluation.report import EvaluationReport, summarise
from scripts.nuclei.metrics import image_metrics
from scripts.nuclei.overlays import overlay


def nuclei(side: int = 60) -> np.ndarray:
    label = np.zeros((side, side), np.int32)
    label[10:22, 10:22], label[35:50, 30:45] = 1, 2
    return label


def sample(name: str, domain: str, shift: int, mpp: float = math.nan, label: np.ndarray | None = None) -> dict:
    """An item whose prediction is its label moved by ``shift`` pixels, or nothing for ``shift`` None."""
    label = nuclei() if label is None else label
    pred = np.zeros_like(label) if shift is None else np.roll(label, shift, axis=1)
    return {
        "image": MetaTensor(np.full((3, *label.shape), 200, np.float32), meta={"filename_or_obj": f"/d/{name}.png"}),
        "label": MetaTensor(label[None]),
        "prediction": MetaTensor(pred[None]),
        "domain_name": domain,
        "mpp": mpp,
    }


def postprocess(item: dict) -> dict:
    return {**item, "mask": (item["prediction"] > 0).to(torch.uint8), "instances": item["prediction"]}


def evaluate(samples: list[dict], report: EvaluationReport, batch_size: int = 1) -> SupervisedEvaluator:
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(samples), batch_size=batch_size),
        network=torch.nn.Identity(),
        postprocessing=postprocess,
        val_handlers=[report],
    )
    evaluator.run()
    return evaluator


SAMPLES = [
    sample("one", "tnbc", 1, 0.25),
    sample("two", "tnbc", 4, 0.25),
    sample("three", "tnbc", 2, 0.25),
    sample("four", "other", None),
    sample("five", "other", 0),
]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_every_image_has_a_row_with_its_own_scores(tmp_path, batch_size):
    evaluate(SAMPLES, EvaluationReport(tmp_path), batch_size)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["file"]).stem for row in rows] == ["one", "two", "three", "four", "five"]
    assert [row["domain"] for row in rows] == ["tnbc"] * 3 + ["other"] * 2
    label = nuclei()
    for row, shift, mpp in zip(rows[:3], (1, 4, 2), (0.25, 0.25, 0.25)):
        pred = np.roll(label, shift, axis=1)
        for key, value in image_metrics(pred > 0, label > 0, pred, label, mpp).items():
            assert float(row[key]) == pytest.approx(value), key
    assert rows[3]["hd_um"] == rows[3]["mpp"] == "", "no micrometres without mpp"
    assert (rows[3]["undefined"], rows[3]["n_true"], rows[3]["n_pred"]) == ("1", "2", "0")


def test_a_domain_that_was_not_asked_for_is_not_averaged_in(tmp_path, capsys):
    evaluate(SAMPLES, EvaluationReport(tmp_path, overall_domains=["tnbc"]))
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert set(content) == {"units", "domains", "provenance"} and list(content["domains"]) == ["tnbc", "other"]
    assert "overall" not in capsys.readouterr().out


def test_summary_is_per_domain_and_overall(tmp_path):
    state = evaluate(SAMPLES, EvaluationReport(tmp_path, provenance={"weights": "abc"})).state
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert set(content) == {"units", "domains", "overall", "provenance"}
    assert content["provenance"] == {"weights": "abc"}
    assert list(content["domains"]) == ["tnbc", "other"]
    label = nuclei()
    dices = [image_metrics(*[np.roll(label, s, 1), label] * 2)["dice"] for s in (1, 4, 2)]
    tnbc, other = content["domains"]["tnbc"], content["domains"]["other"]
    assert tnbc["dice"] == pytest.approx({"mean": np.mean(dices), "std": np.std(dices, ddof=1), "n": 3})
    assert (tnbc["images"], tnbc["undefined"], tnbc["n_true"]) == (3, 0, 6)
    assert other["dice"]["mean"] == 0.5 and other["undefined"] == 1, "the image where nothing was found counts"
    assert other["hd_px"]["mean"] == pytest.approx(math.hypot(60, 60) / 2)
    assert "hd_um" not in other and tnbc["hd_um"]["n"] == 3
    assert content["overall"]["images"] == 5 and content["overall"]["hd_um"]["n"] == 3
    assert content["overall"]["dice"]["mean"] == pytest.approx((sum(dices) + 1) / 5)
    assert state.metrics["tnbc/dice"] == pytest.approx(np.mean(dices))
    assert state.metrics["other/undefined"] == 1


def test_metrics_are_there_when_a_later_handler_logs_the_epoch(tmp_path):
    """MONAI's MLflow handler reads engine.state.metrics at EPOCH_COMPLETED."""
    seen = {}

    class Logger:
        def attach(self, engine):
            engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: seen.update(e.state.metrics))

    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(SAMPLES), batch_size=1),
        network=torch.nn.Identity(),
        postprocessing=postprocess,
        val_handlers=[EvaluationReport(tmp_path), Logger()],
    )
    evaluator.run()
    assert {"tnbc/dice", "tnbc/hd95_um", "other/aji"} <= set(seen)
    assert all(math.isfinite(value) for value in seen.values())


def test_overlays_show_the_worst_the_median_and_the_best(tmp_path):
    evaluate([sample("old", "tnbc", 9)], EvaluationReport(tmp_path))  # a second run leaves no more than its own
    evaluate(SAMPLES, EvaluationReport(tmp_path))
    chosen = ["other_best_five", "other_median_five", "other_worst_four"]
    chosen += ["tnbc_best_one", "tnbc_median_three", "tnbc_worst_two"]
    names = sorted(path.stem for path in (tmp_path / "overlays").iterdir())
    assert names == sorted([*chosen, *(f"{name}_fates" for name in chosen)]), "outlines, and the fates of nuclei"
    # the pictures are those of their own image: what the worst predicts is drawn 4 pixels to the right
    drawn = np.asarray(Image.open(tmp_path / "overlays" / "tnbc_worst_two.png"))[-120:]
    label = nuclei()
    expected = overlay(np.full((3, 60, 60), 200), np.roll(label, 4, axis=1), label)
    np.testing.assert_array_equal(drawn, expected)


def test_a_users_files_survive(tmp_path):
    picture = tmp_path / "overlays" / "mine_worst_ever.png"
    picture.parent.mkdir()
    picture.write_text("precious")
    evaluate(SAMPLES, EvaluationReport(tmp_path))
    assert picture.read_text() == "precious"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "metrics.csv").write_text("precious")
    with pytest.raises(DataError, match="metrics.csv: it was not written by this bundle"):
        evaluate(SAMPLES, EvaluationReport(tmp_path / "other"))


def test_table_is_printed_and_aligned(tmp_path, capsys):
    evaluate(SAMPLES, EvaluationReport(tmp_path))
    lines = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith(("domain", "tnbc", "other", "ov"))
    ]
    assert [line.split()[0] for line in lines] == ["domain", "tnbc", "other", "overall"]
    assert len({len(line) for line in lines}) == 1
    assert lines[2].split()[:3] == ["other", "2", "0.500"] and "nan" not in "".join(lines)


def test_the_handler_starts_anew_with_every_run(tmp_path):
    report = EvaluationReport(tmp_path)
    evaluator = evaluate(SAMPLES, report)
    evaluator.run()
    assert len(report.rows) == 5


def test_nothing_evaluated_gives_no_nan():
    assert summarise([]) == {"images": 0}
    one = {"file": "a", "domain": "d", "mpp": None, "dice": 0.5, "undefined": 0}
    assert summarise([one]) == {"images": 1, "dice": {"mean": 0.5, "std": 0.0, "n": 1}, "undefined": 0}


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_overlay_draws_outlines_only(kind):
    label, pred = nuclei(), np.roll(nuclei(), 3, axis=1)
    image = np.full((3, 60, 60), 128.0, np.float32)
    drawn = overlay(kind(image), kind(pred[None]), kind(label), title="a.png")
    assert drawn.dtype == np.uint8 and drawn.shape == (120 + 24, 120, 3), "twice as large, below a strip"
    picture = drawn[24:]
    colours = {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}
    assert colours == {(128, 128, 128), (255, 225, 0), (0, 230, 255)}
    inside = (slice(2 * 14, 2 * 18), slice(2 * 15, 2 * 20))
    assert (picture[inside] == 128).all(), "the nucleus itself stays visible"
    assert drawn[:24].any(), "the title is written"
    large = overlay(np.zeros((3, 8, 1100)), np.zeros((8, 1100), int))
    assert large.shape == (8, 1100, 3)
    narrow = overlay(image, pred, label, title="a_long_name.png  Dice 0.81  found 3")
    strip = narrow[: narrow.shape[0] - 120]
    assert len(strip) > 24 and strip[24:].any(), "a title longer than the picture is wide goes on in further lines"


def test_labels_and_predictions_without_nuclei_are_said(tmp_path, caplog):
    empty = np.zeros((60, 60), np.int32)
    evaluate([sample("a", "tnbc", 0, label=empty), sample("b", "tnbc", None)], EvaluationReport(tmp_path))
    assert "1 of 2 labels have no nucleus (n_true 0)" in caplog.text
    assert "2 of 2 predictions have no nucleus (n_pred 0)" in caplog.text
    caplog.clear()
    evaluate([sample("c", "tnbc", 1)], EvaluationReport(tmp_path))
    assert "no nucleus" not in caplog.text
