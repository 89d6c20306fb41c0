"""The alignment report as files: of its verb, and at the end of a training."""

from __future__ import annotations

import csv
import json
import re
import shutil

import mlflow
import pytest
import torch
from fakes import open_verb, place_store
from ignite.engine import Events
from monai.bundle import ConfigParser
from scripts.errors import root_cause
from scripts.networks.ama_sam import AMASAM
from scripts.networks.hr_decoder import HRDecoder
from scripts.networks.loading import save_model
from scripts.networks.model_file import read_model_file
from scripts.setup_run import unknown_keys

FILES = ("alignment.json", "alignment.md", "alignment.png")

# --- the verb


@pytest.fixture(scope="module")
def model(encoder, tmp_path_factory):
    """A model file with a random decoder."""
    torch.manual_seed(2)
    network = AMASAM(encoder[0], HRDecoder(encoder[0].channels, encoder[0].strides, size="light"))
    path = tmp_path_factory.mktemp("model") / "model.pt"
    save_model(path, network, {"seed": 0})
    return path


@pytest.fixture(scope="module")
def align(bundle_root, synthetic, model):
    def align(output, **overrides):
        arguments = {"dataset_dir": synthetic, "ckpt_path": str(model), **overrides}
        arguments = {"window_size": 64, "windows_per_domain": 16, **arguments}
        place_store(output)
        open_verb(bundle_root, "align", "infer", output_dir=str(output), **arguments).run()
        return json.loads((output / "alignment.json").read_text())

    return align


def test_the_verb_reports_on_all_domains(align, tmp_path, capsys):
    report = align(tmp_path)
    assert all((tmp_path / name).stat().st_size > 0 for name in (*FILES, "align.json"))
    assert list(report["domains"]) == ["synthetic_pink", "synthetic_blurred", "synthetic_dark"]
    assert list(report["pairs"]) == ["synthetic_blurred", "synthetic_dark"]
    for about in report["domains"].values():
        assert (about["groups"], about["images"], about["windows"]) == (4, 7, 16)
        assert about["splits"] == ["testing", "validation"]
        mpp = 0.4 if about is report["domains"]["synthetic_blurred"] else 0.25
        assert about["nuclei_per_mm2"] == pytest.approx(about["nuclei_per_megapixel"] / mpp**2)
    areas = [about["nucleus_area_px"] for about in report["domains"].values()]
    assert areas[1] < areas[0] < areas[2], "as they are drawn"
    for row in (report["overall"], *report["pairs"].values()):
        for kind in ("frozen", "aligned"):
            assert 0 <= row[kind]["low"] <= row[kind]["accuracy"] <= row[kind]["high"] <= 1
    # the three differ in stain and size of nuclei by construction: anything sees that
    assert report["overall"]["image_statistics"]["all"]["accuracy"] > 0.9
    assert report["overall"]["frozen"]["low"] > 1 / 3
    sentence = report["verdict"]["sentence"]
    assert sentence in (tmp_path / "alignment.md").read_text()
    assert re.search(rf"^Alignment of \w+, .*: {re.escape(sentence)}$", capsys.readouterr().out, re.MULTILINE)
    assert json.loads((tmp_path / "align.json").read_text())["window_size"] == 64


def test_the_verb_is_filed_in_mlflow_and_repeats_exactly(align, tmp_path):
    report = align(tmp_path)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlruns.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("ama_sam_alignment").experiment_id])
    assert run.info.status == "FINISHED" and run.data.tags["verb"] == "aligning"
    assert run.data.params["window_size"] == "64" and run.data.params["ckpt_path"].endswith("model.pt")
    assert run.data.metrics["alignment/accuracy_aligned"] == report["overall"]["aligned"]["accuracy"]
    pair = report["pairs"]["synthetic_dark"]["frozen"]
    assert run.data.metrics["alignment/mmd2_frozen_synthetic_dark"] == pytest.approx(pair["mmd2"])
    assert {a.path for a in client.list_artifacts(run.info.run_id)} == {*FILES, "align.json"}
    assert align(tmp_path) == report


def test_training_images_and_windows_of_unequal_size_are_told(align, synthetic, tmp_path):
    from PIL import Image

    folder = tmp_path / "data" / "small"
    shutil.copytree(f"{synthetic}/synthetic_dark", folder)
    shutil.copytree(f"{synthetic}/synthetic_pink", tmp_path / "data" / "pink")
    for path in (*folder.glob("images/*"), *folder.glob("labels/*")):
        Image.open(path).crop((0, 0, 60, 250)).save(path)
    split = json.loads((folder / "split.json").read_text())
    (folder / "split.json").write_text(json.dumps({"training": split["training"]}))
    align(tmp_path / "out", dataset_dir=str(tmp_path / "data"), primary="pink")
    text = (tmp_path / "out" / "alignment.md").read_text()
    assert "`small` has no image in the splits asked for" in text and "`pink` has no" not in text
    assert "differ in size (64 x 32, 64 x 64 px)" in text


def test_too_few_patients_are_said_in_the_report(align, tmp_path):
    report = align(tmp_path, splits=["testing"])
    assert report["verdict"]["outcome"] == "undetermined" and "overall" not in report
    assert "synthetic_pink: 2 patients or fields" in (tmp_path / "alignment.md").read_text()
    assert (tmp_path / "alignment.png").is_file()


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"ckpt_path": "nowhere/model.pt"}, "nowhere/model.pt: there is no such model file. .*--ckpt_path"),
        ({"auxiliary": "none"}, "synthetic_pink: it is the only domain.*--auxiliary"),
        ({"decoder_size": "standard"}, "has decoder_size light, and --decoder_size says standard"),
        ({"splits": "test"}, "one of training, validation, testing"),
        ({"window_size": 100}, "multiple of 32"),
        ({"ckpt_path": "model.ts"}, "model.ts: it is an export.*the model.pt .* with --ckpt_path"),
        ({"control_path": "model.onnx"}, "model.onnx: it is an export.*the model.pt .* with --control_path"),
        ({"window_per_domain": 4}, "did you mean 'windows_per_domain'"),
    ],
)
def test_settings_that_cannot_work_are_told(align, tmp_path, overrides, message):
    with pytest.raises(Exception) as told:  # noqa: B017 which class MONAI wraps it in does not matter
        align(tmp_path, **overrides)
    assert re.search(message, str(root_cause(told.value)))
    assert not (tmp_path / "alignment.json").exists()


def test_the_config_builds_the_network_of_the_others_and_has_nothing_dead(bundle_root):
    configs = [ConfigParser.load_config_file(bundle_root / "configs" / f"{c}.json") for c in ("evaluate", "align")]
    for key in ("amp", "runtime", "tile_size"):  # how it runs, which the report does not choose
        del configs[0]["network"][key]
    for key in ("network", "domains", "network_mpp"):
        assert configs[0][key] == configs[1][key], key
    parser = ConfigParser(configs[1])
    parser.resolve_macro_and_relative_ids()
    steps = ["aligning", "describing_domains", "imports", "initialize", "run"]
    assert unknown_keys(parser.get(), {"provenance": {}}) == steps, "provenance is used as a whole"


# --- at the end of a training


def test_a_training_ends_with_the_report_of_the_weights_it_keeps(open_training, align, tmp_path):
    workflow = open_training(tmp_path, max_epochs=2, alignment_report=True)
    trainer = workflow.parser.get_parsed_content("train::trainer")
    decoder = workflow.parser.get_parsed_content("network").decoder

    @trainer.on(Events.EPOCH_STARTED(once=2))
    def spoil(engine):  # so that the first epoch stays the best, and the last weights are others
        with torch.no_grad():
            for parameter in decoder.parameters():
                parameter.mul_(-3.0)
            decoder.head.weight.zero_()
            decoder.head.bias.fill_(-50.0)  # finds nothing

    workflow.run()
    run_dir = tmp_path / "synthetic_pink_ama_seed0"
    assert read_model_file(run_dir / "model.pt")["provenance"]["epoch"] == 1
    report = json.loads((run_dir / "alignment.json").read_text())
    again = align(tmp_path / "again", ckpt_path=str(run_dir / "model.pt"), windows_per_domain=40)
    for kind in ("frozen", "aligned"):
        assert report["overall"][kind] == again["overall"][kind]
    assert report["domains"] == again["domains"]
    checkpoint = torch.load(run_dir / "checkpoint.pt", weights_only=True)["parts"]["decoder"]
    assert all(torch.equal(value, checkpoint[name]) for name, value in decoder.state_dict().items()), "last ones back"

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlruns.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("ama_sam").experiment_id])
    assert run.info.status == "FINISHED" and {a.path for a in client.list_artifacts(run.info.run_id)} >= {*FILES}
    assert run.data.metrics["alignment/accuracy_aligned"] == report["overall"]["aligned"]["accuracy"]
    history = client.get_metric_history(run.info.run_id, "val/dice")
    assert [point.step for point in history] == [1, 2], "and nothing twice"


def test_without_validation_the_report_is_of_the_last_weights(open_training, synthetic, align, tmp_path):
    shutil.copytree(synthetic, tmp_path / "data")
    split_file = tmp_path / "data" / "synthetic_pink" / "split.json"
    split = json.loads(split_file.read_text())
    split_file.write_text(
        json.dumps({"training": split["training"], "testing": split["testing"] + split["validation"]})
    )
    open_training(tmp_path, dataset_dir=str(tmp_path / "data"), max_epochs=2, alignment_report=True).run()
    run_dir = tmp_path / "synthetic_pink_ama_seed0"
    report = json.loads((run_dir / "alignment.json").read_text())
    again = align(
        tmp_path / "again",
        dataset_dir=str(tmp_path / "data"),
        ckpt_path=str(run_dir / "model.pt"),
        windows_per_domain=40,
    )
    assert report["overall"]["aligned"] == again["overall"]["aligned"]


@pytest.mark.parametrize("overrides", [{"alignment_report": "false"}, {"alignment_report": True, "mode": "single"}])
def test_the_report_can_be_left_out_and_needs_two_domains(open_training, tmp_path, overrides):
    open_training(tmp_path, max_epochs=1, **overrides).run()
    (run_dir,) = tmp_path.glob("synthetic_pink_*_seed0")
    assert (run_dir / "model.pt").is_file() and not list(run_dir.glob("alignment*"))


@pytest.mark.parametrize("problem", ["few", "broken", "missing"])
def test_a_report_that_cannot_be_made_never_costs_the_training(open_training, synthetic, tmp_path, caplog, problem):
    shutil.copytree(synthetic, tmp_path / "data")
    folder = tmp_path / "data" / "synthetic_pink"
    split = json.loads((folder / "split.json").read_text())
    image = folder / split["testing"][0]["image"]
    if problem == "few":
        (folder / "split.json").write_text(json.dumps({**split, "validation": split["validation"][:1], "testing": []}))
    elif problem == "broken":
        image.write_bytes(image.read_bytes()[:200])
    else:
        image.unlink()
    open_training(
        tmp_path, dataset_dir=str(tmp_path / "data"), max_epochs=1, alignment_report="true", leakage="allow"
    ).run()
    run_dir = tmp_path / "synthetic_pink_ama_seed0"
    assert (run_dir / "model.pt").is_file()
    with (run_dir / "history.csv").open(newline="") as f:
        assert len(list(csv.DictReader(f))) == 1
    if problem == "broken":
        assert f"no report at the end of training: {image}" in caplog.text
        assert not (run_dir / "alignment.json").exists()
    else:
        verdict = json.loads((run_dir / "alignment.json").read_text())["verdict"]
        assert verdict["outcome"] == "undetermined" and "synthetic_pink" in verdict["sentence"]
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlruns.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("ama_sam").experiment_id])
    assert run.info.status == "FINISHED"
