"""Interrupted runs come to their end, the right ones, with the settings they were begun with."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys

import mlflow
import pytest
import torch
from fakes import TINY_TRAINING, interrupt
from ignite.engine import Events
from scripts.errors import DataError, root_cause
from scripts.files import read_json
from scripts.networks.model_file import read_model_file
from scripts.training.final_report import FinalReport
from scripts.training.publishing import PublishModel
from scripts.training.run_names import name_run
from scripts.training.run_settings import RunSettings

NAME = "synthetic_pink_ama_seed0"


@pytest.fixture(scope="module")
def interrupted(open_training, tmp_path_factory):
    """Output folder of a run that ended in its second epoch of three; copy it."""
    output = tmp_path_factory.mktemp("interrupted")
    interrupt(open_training(output, max_epochs=3, warmup_iterations=0), Events.EPOCH_STARTED(once=2))
    return output


@pytest.fixture(scope="module")
def finished(open_training, tmp_path_factory):
    """Output folder of a run of two epochs that came to its end; copy it."""
    output = tmp_path_factory.mktemp("finished")
    open_training(output, max_epochs=2, warmup_iterations=0, learning_rate=0.1).run()
    return output


def _history(run_dir):
    with (run_dir / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _runs(output):
    """The runs in the store, the latest first."""
    client = mlflow.MlflowClient(f"sqlite:///{output / 'mlruns.db'}")
    return client, client.search_runs([client.get_experiment_by_name("ama_sam").experiment_id])


def _copy(output, tmp_path):
    """A copy of an output folder, elsewhere; its store is left behind, for MLflow keeps stores open by their names."""
    shutil.copytree(output / NAME, tmp_path / NAME)
    return tmp_path


def _refused(open_training, output, **overrides):
    """The sentence with which a resume is refused; nothing of the run may have changed by it."""
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file() and path.name != "mlruns.db"}
    with pytest.raises(Exception) as told:  # noqa: B017 which class MONAI wraps it in does not matter
        open_training(output, resume=True, **overrides).run()
    assert isinstance(root_cause(told.value), DataError)
    after = {path: path.read_bytes() for path in output.rglob("*") if path.is_file() and path.name != "mlruns.db"}
    assert after == before
    return str(root_cause(told.value))


# --- the end of a run


KILLED = """
import os, signal, sys
sys.path[:0] = {paths!r}
from fakes import open_verb
import scripts.{module} as module
module.{name}.__call__ = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
from pathlib import Path
open_verb(Path({bundle!r}), "train", "train", **{overrides!r}).run()
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["training.final_report.FinalReport", "training.checkpoints.FinishedRun"])
def test_a_run_killed_behind_its_last_epoch_does_what_is_left(
    open_training, bundle_root, synthetic, encoder, tmp_path, where
):
    """Killed for good, before all that follows the last epoch, and behind it."""
    served = tmp_path / "served" / "model.pt"
    options = {"max_epochs": 2, "alignment_report": True, "alignment_windows": 4, "publish_path": str(served)}
    overrides = {**TINY_TRAINING, "dataset_dir": synthetic, "backbone_weights": str(encoder[1]), **options}
    overrides |= {"output_dir": str(tmp_path), "cache_dir": str(tmp_path / "features")}
    module, _, name = where.rpartition(".")
    paths = [str(bundle_root), str(bundle_root.parent / "tests" / "helpers")]
    script = KILLED.format(paths=paths, module=module, name=name, bundle=str(bundle_root), overrides=overrides)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    run_dir = tmp_path / NAME
    rows = _history(run_dir)
    published = served.read_bytes() if served.exists() else None
    assert (published is None) == (name == "FinalReport")

    overrides.pop("output_dir")
    open_training(tmp_path, **overrides, resume=True).run()
    assert _history(run_dir) == rows and len(rows) == 2, "no epoch was trained again"
    assert (run_dir / "alignment.md").is_file()
    assert "domain_reference" in read_model_file(run_dir / "model.pt")
    assert read_model_file(served)["provenance"]["epoch"] <= 2
    assert published in (None, served.read_bytes()) and not (served.parent / "previous").exists()
    client, (run,) = _runs(tmp_path)
    assert run.info.status == "FINISHED"
    assert {"alignment.md", "history.csv"} <= {a.path for a in client.list_artifacts(run.info.run_id)}
    assert {point.step for point in client.get_metric_history(run.info.run_id, "train/loss")} == {1, 2}
    assert "is finished, with epoch 2" in _refused(open_training, tmp_path, **overrides)


@pytest.mark.parametrize("handler", [FinalReport, PublishModel])
def test_an_end_that_was_interrupted_can_be_done_again(open_training, tmp_path, monkeypatch, handler):
    served = tmp_path / "served" / "model.pt"
    options = {"max_epochs": 1, "alignment_report": True, "alignment_windows": 4, "publish_path": str(served)}

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(handler, "__call__", stop)
        open_training(tmp_path, **options).run()
    open_training(tmp_path, **options, resume=True).run()
    assert served.is_file() and (tmp_path / NAME / "alignment.md").is_file()
    assert [run.info.status for run in _runs(tmp_path)[1]] == ["FINISHED"]


def test_a_run_that_stopped_early_does_not_train_on(open_training, tmp_path, monkeypatch):
    options = {"max_epochs": 9, "learning_rate": 0.0, "patience": 2, "publish_path": str(tmp_path / "m.pt")}

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PublishModel, "__call__", stop)
        open_training(tmp_path, **options).run()
    open_training(tmp_path, **options, resume=True).run()
    assert len(_history(tmp_path / NAME)) == 3 and (tmp_path / "m.pt").is_file()
    assert "--patience" in _refused(open_training, tmp_path, **options)
    path = tmp_path / NAME / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    content["parts"]["best_model"] |= content["parts"].pop("early_stop")  # as version 0.6.0 wrote it
    torch.save(content, path)
    assert "--patience" in _refused(open_training, tmp_path, **options)
    open_training(tmp_path, **{**options, "patience": 3}, resume=True).run()
    assert len(_history(tmp_path / NAME)) == 4


def test_a_finished_run_can_be_made_longer_and_says_so(open_training, finished, tmp_path):
    options = {"warmup_iterations": 0, "learning_rate": 0.1}
    output = _copy(finished, tmp_path)
    assert "Raise --max_epochs" in _refused(open_training, output, max_epochs=2, **options)
    workflow, rates = open_training(output, max_epochs=4, **options, resume=True), []
    trainer = workflow.parser.get_parsed_content("train::trainer")
    trainer.add_event_handler(
        Events.ITERATION_STARTED, lambda engine: rates.append(engine.optimizer.param_groups[0]["lr"])
    )
    workflow.run()
    expected = [0.1 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(4, 8)]
    assert rates == pytest.approx(expected), "the rates of a run of 4 epochs, not those behind the end of one of 2"
    rows = _history(output / NAME)
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert json.loads((output / NAME / "train.json").read_text())["max_epochs"] == 4
    client, (run,) = _runs(output)
    assert run.data.params["max_epochs"] == "4" and run.info.status == "FINISHED"
    losses = {point.step: point.value for point in client.get_metric_history(run.info.run_id, "train/loss")}
    assert losses == {int(row["epoch"]): pytest.approx(float(row["train_loss"])) for row in rows}


def test_a_longer_run_is_another_run_in_mlflow(open_training, tmp_path):
    """Parameters of a run in MLflow cannot be changed: max_epochs of the first stays true."""
    interrupt(open_training(tmp_path, max_epochs=2), Events.EPOCH_STARTED(once=2))
    open_training(tmp_path, max_epochs=2, resume=True).run()
    open_training(tmp_path, max_epochs=3, resume=True).run()
    client, runs = _runs(tmp_path)
    assert [(run.data.params["max_epochs"], run.info.status) for run in runs] == [("3", "FINISHED"), ("2", "FINISHED")]
    for run in runs:
        steps = {point.step for point in client.get_metric_history(run.info.run_id, "train/loss")}
        assert steps == set(range(1, int(run.data.params["max_epochs"]) + 1))


def test_a_store_that_was_made_anew_gets_the_whole_run(open_training, interrupted, tmp_path):
    output = _copy(interrupted, tmp_path)
    about = json.loads((output / NAME / "mlflow.json").read_text())
    (output / NAME / "mlflow.json").write_text(json.dumps({**about, "tracking_uri": f"sqlite:///{output}/mlruns.db"}))
    open_training(output, max_epochs=3, warmup_iterations=0, resume=True).run()
    client, (run,) = _runs(output)
    steps = {point.step for point in client.get_metric_history(run.info.run_id, "train/loss")}
    assert run.info.status == "FINISHED" and steps == {1, 2, 3}


def test_a_run_that_an_earlier_version_began_goes_on_in_mlflow(open_training, tmp_path):
    """It left no file that tells its run."""
    interrupt(open_training(tmp_path, max_epochs=2), Events.EPOCH_STARTED(once=2))
    (tmp_path / NAME / "mlflow.json").unlink()
    open_training(tmp_path, max_epochs=2, resume=True).run()
    client, (run,) = _runs(tmp_path)
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")]
    assert run.info.status == "FINISHED" and steps == [1, 2]


# --- settings


def test_changed_settings_are_refused_with_both_values(open_training, interrupted, tmp_path):
    output = _copy(interrupted, tmp_path)
    changed = {
        "learning_rate": 0.5,
        "batch_size": 3,
        "coefficients": [0.0, 0.5, 1.0],
        "train::augmentation::stain::_disabled_": True,
        "max_epochs": 5,
    }
    told = _refused(open_training, output, warmup_iterations=0, **changed)
    for sentence in (
        "learning_rate 0.001, now 0.5",
        "batch_size 4, now 3",
        "coefficients::1 not given, now 0.5",
        "train::augmentation::stain::_disabled_ not given, now True",
    ):
        assert sentence in told
    assert "max_epochs" not in told, "that one may change"
    assert "warmup_iterations 0, now 50" in _refused(open_training, output, max_epochs=3), "one that is left out, too"


def test_what_does_not_make_a_run_what_it_is_may_change(open_training, synthetic, interrupted, tmp_path):
    """The run goes on elsewhere: other folders, other processes, another end."""
    output = _copy(interrupted, tmp_path)
    shutil.copytree(synthetic, tmp_path / "data")
    options = {"dataset_dir": str(tmp_path / "data"), "cache_dir": str(tmp_path / "features"), "num_workers": 1}
    options |= {"experiment_name": "ama_sam", "patience": 5, "val_interval": 3, "device": "$torch.device('cpu')"}
    options |= {"auxiliary": "synthetic_blurred,synthetic_dark", "domain_images": 0, "run_name": NAME}
    open_training(output, max_epochs=4, warmup_iterations=0, **options, resume=True).run()
    assert len(_history(output / NAME)) == 4 and not (output / f"{NAME}_2").exists()


def test_keys_that_another_version_has_or_has_not_are_no_change(open_training, interrupted, tmp_path, caplog):
    output = _copy(interrupted, tmp_path)
    path = output / NAME / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    values = {**content["settings"]["values"], "key_of_then": 3}
    values.pop("lambda_max")
    torch.save({**content, "settings": {"version": "0.4", "values": values}}, path)
    told = _refused(open_training, output, max_epochs=3, warmup_iterations=0, learning_rate=0.5)
    assert "other settings: learning_rate 0.001, now 0.5. " in told
    open_training(output, max_epochs=3, warmup_iterations=0, resume=True).run()
    assert sum("version 0.4 wrote it: only settings" in record.getMessage() for record in caplog.records) == 1


def test_a_checkpoint_of_an_earlier_version_says_what_cannot_be_compared(open_training, interrupted, tmp_path, caplog):
    output = _copy(interrupted, tmp_path)
    path = output / NAME / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    content.pop("settings")
    torch.save(content, path)
    open_training(output, max_epochs=3, warmup_iterations=0, resume=True).run()
    assert sum("whether they have changed cannot be told" in r.getMessage() for r in caplog.records) == 1
    assert len(_history(output / NAME)) == 3


def test_the_time_of_what_was_interrupted_is_added(open_training, interrupted, tmp_path):
    output = _copy(interrupted, tmp_path)
    path = output / NAME / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    assert content["time"]["processes"] == 1 and content["time"]["seconds"]["steps"] > 0
    content["time"]["seconds"] |= {"encoding": 1000.0, "validating": 5000.0}  # more than a test takes
    torch.save(content, path)
    open_training(output, max_epochs=3, warmup_iterations=0, resume=True).run()
    passed = read_json(output / NAME / "phases.json")
    assert passed["processes"] == 2 and passed["total"] > 6000
    assert passed["encoding"] > 1000 and 5000 < passed["validating"] < 6000
    _, (run, *_) = _runs(output)
    assert run.data.metrics["seconds/total"] == passed["total"]
    assert torch.load(path, weights_only=True)["time"]["seconds"]["report"] > 0, "for one that makes it longer"


# --- which run


def test_a_mistyped_resume_leaves_nothing_that_diverts_the_right_one(open_training, interrupted, tmp_path):
    output = _copy(interrupted, tmp_path / "right")
    before = {path.name for path in output.iterdir()}
    for folder, options in ((tmp_path / "wrong", {}), (output, {"seed": 1}), (output, {"mode": "joint"})):
        assert "no checkpoint to resume from" in _refused(open_training, folder, max_epochs=3, **options)
    assert {path.name for path in (tmp_path / "wrong").iterdir()} <= {"mlruns.db"}
    assert {path.name for path in output.iterdir()} <= before | {"mlruns.db"}
    open_training(output, max_epochs=3, warmup_iterations=0, resume=True).run()
    assert len(_history(output / NAME)) == 3


def test_the_newest_run_that_has_a_checkpoint_of_this_set_up_is_resumed(open_training, interrupted, tmp_path):
    """Beside it lie a start that failed, another decoder's run and an empty folder, all of the same name."""
    output = _copy(interrupted, tmp_path)
    open_training(output, max_epochs=1, decoder_size="standard").run()
    assert (output / f"{NAME}_2" / "checkpoint.pt").is_file()
    (output / f"{NAME}_3").mkdir()
    shutil.copy(output / NAME / "train.json", output / f"{NAME}_3")
    (output / f"{NAME}_12").mkdir()
    workflow = open_training(output, max_epochs=3, warmup_iterations=0, resume=True)
    assert workflow.parser.get_parsed_content("run_name") == NAME
    workflow.run()
    told = _refused(open_training, output, max_epochs=3, targets="foreground")
    assert f"{NAME}_2 is of another run: " in told and "out_channels 3, now 1" in told
    shutil.copytree(output / NAME, output / f"{NAME}_11")
    assert name_run(output, NAME, {}, resume=True) == f"{NAME}_11", "by number"
    assert name_run(output, NAME, {}) == f"{NAME}_13"


FAILS = """
import pathlib
from scripts.training.run_names import name_run
from scripts.training.run_settings import RunSettings
folder = pathlib.Path({folder!r})
for base in ("empty", "used"):
    name_run(folder, base, {{}})
(folder / "used" / "train.json").touch()
raise SystemExit("failed")
"""


def test_runs_that_begin_at_once_have_a_folder_each_and_an_empty_one_is_given_back(bundle_root, tmp_path):
    assert [name_run(tmp_path / "runs", "run", {}) for _ in range(3)] == ["run", "run_2", "run_3"]
    environment = {**os.environ, "PYTHONPATH": str(bundle_root)}
    script = FAILS.format(folder=str(tmp_path / "ended"))
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.endswith("failed\n"), done.stderr
    assert [path.name for path in (tmp_path / "ended").iterdir()] == ["used"]


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
def test_steps_of_the_verb_may_change_while_a_run_is_interrupted(bundle_root, version):
    """MONAI writes the verb's steps where ``run`` names them."""
    defaults = bundle_root / "configs" / "train.json"

    def settings(version, steps, **given):
        config = {**read_json(defaults), "training": steps, "run": steps, **given}
        return RunSettings(defaults, version, config=config)

    earlier = settings("1.0.0", ["$@checked_leakage", "$@train::trainer"]).record()
    steps = ["$@checked_sides", "$@checked_leakage", {"_target_": "scripts.lock.run_alone"}]
    assert settings(version, steps).changes(earlier) == []
    assert settings(version, steps, batch_size=3).changes(earlier) == ["batch_size 8, now 3"]
