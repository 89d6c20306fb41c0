"""The experiment verb: what is recorded, skipped and resumed."""

from __future__ import annotations

import csv
import json
import os
import sys
import threading
from pathlib import Path

import pytest
import torch
from fakes import FakeVerb, domains_named, open_verb
from ignite.engine import Engine, Events
from scripts.errors import DataError
from scripts.experiments import verbs
from scripts.experiments.child import NotWanted
from scripts.experiments.experiment import Experiment
from scripts.experiments.plan import PlannedRun
from scripts.experiments.verbs import BundleVerb
from scripts.networks.model_info import model_info
from scripts.tracking.experiments import ExperimentStore
from scripts.tracking.runs import TrackedRun
from scripts.training.checkpoints import read_checkpoint

JOINT, AMA = PlannedRun("joint", "joint", 0), PlannedRun("ama", "ama", 0)


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    """One store for all tests, for making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlruns.db'}"


@pytest.fixture
def make(uri, request, tmp_path):
    """An experiment of this test's own, whose verbs are fakes that take no time."""

    def make(
        children=(JOINT, AMA), split="testing", training=None, evaluating=None, name="tnbc", jobs=1, domains=("tnbc",)
    ) -> Experiment:
        return Experiment(
            store=ExperimentStore(uri, request.node.name, name),
            children=children,
            training=training or FakeVerb("training"),
            evaluating=evaluating or FakeVerb("evaluating"),
            split=split,
            domains=domains_named(*domains) if isinstance(domains[0], str) else domains,
            output_dir=tmp_path / name,
            jobs=jobs,
        )

    return make


def runs_of(experiment):
    """The recorded children by name; the latest where there are several."""
    runs = experiment.store.children(experiment.store.find_parent())
    return {run.info.run_name: run for run in reversed(runs)}


def test_children_are_nested_runs_that_tell_what_they_are_and_what_was_measured(make):
    experiment = make([JOINT, PlannedRun("ama", "ama", 1, limit_groups=2)])
    experiment.run()
    parent, runs = experiment.store.find_parent(), runs_of(experiment)
    assert parent.info.status == "FINISHED" and parent.info.run_name == "tnbc"
    assert set(runs) == {"joint_seed0", "ama_groups2_seed1"}
    run = runs["ama_groups2_seed1"]
    assert run.info.status == "FINISHED" and run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    told = {"variant": "ama", "mode": "ama", "seed": "1", "limit_groups": "2", "primary": "tnbc", "split": "testing"}
    assert told.items() <= run.data.tags.items()
    assert run.data.metrics["tnbc/dice"] > 0
    assert "metrics.csv" in [a.path for a in experiment.store.client.list_artifacts(run.info.run_id)]
    (settings,) = [s for s in experiment.training.calls if s["run_name"] == "ama_groups2_seed1"]
    assert (settings["mode"], settings["seed"], settings["limit_groups"], settings["resume"]) == ("ama", 1, 2, False)


def test_what_is_finished_is_not_run_again(make, capsys):
    make().run()
    again = make([JOINT, AMA, PlannedRun("grl", "grl", 0)])
    again.run()
    assert [s["run_name"] for s in again.training.calls] == ["grl_seed0"]
    assert "3 runs of 'tnbc' on testing: 2 finished before" in capsys.readouterr().out
    assert len(again.store.children(again.store.find_parent())) == 3


def test_a_child_that_fails_is_recorded_and_the_others_are_run(make, capsys):
    first = make(training=FakeVerb("training", fails={"joint_seed0"}))
    with pytest.raises(SystemExit, match="1 of 2 runs failed: joint_seed0"):
        first.run()
    runs = runs_of(first)
    assert runs["joint_seed0"].info.status == "FAILED" and runs["ama_seed0"].info.status == "FINISHED"
    assert runs["joint_seed0"].data.tags["failure"] == "training: it broke"
    assert first.store.find_parent().info.status == "FAILED"
    assert "joint_seed0: failed: training: it broke" in capsys.readouterr().out

    again = make()
    again.run()
    assert [s["run_name"] for s in again.training.calls] == ["joint_seed0"], "tried again, the other one is not"
    run = runs_of(again)["joint_seed0"]
    assert run.info.run_id == runs["joint_seed0"].info.run_id
    assert run.info.status == "FINISHED" and "failure" not in run.data.tags


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_child_goes_on_from_its_checkpoint_in_its_own_run(make, error):
    first = make([AMA], training=FakeVerb("training", epochs=3, stops_after={"ama_seed0": 2}, error=error))
    with pytest.raises(error):
        first.run()
    before = runs_of(first)["ama_seed0"]
    assert before.info.status == "KILLED" and first.store.find_parent().info.status == "KILLED"

    again = make([AMA], training=FakeVerb("training", epochs=3))
    again.run()
    (settings,) = again.training.calls
    assert settings["resume"] is True and settings["mlflow_run_id"] == before.info.run_id
    assert again.training.epochs_done == 1, "two of three were done before"
    assert runs_of(again)["ama_seed0"].info.status == "FINISHED"


def test_a_child_that_was_interrupted_while_evaluating_is_not_trained_again(make):
    with pytest.raises(KeyboardInterrupt):
        make([AMA], evaluating=FakeVerb("evaluating", stops_after={"ama_seed0": 0}, error=KeyboardInterrupt)).run()
    again = make([AMA])
    again.run()
    assert again.training.calls == [] and len(again.evaluating.calls) == 1


def test_a_checkpoint_that_cannot_be_read_is_laid_aside_for_a_new_start(make, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make([AMA], training=FakeVerb("training", stops_after={"ama_seed0": 1}, error=KeyboardInterrupt)).run()
    checkpoint = tmp_path / "tnbc" / "ama_seed0" / "checkpoint.pt"
    checkpoint.write_bytes(broken := checkpoint.read_bytes()[:100])
    again = make([AMA])
    again.run()
    assert [s["resume"] for s in again.training.calls] == [False]
    assert runs_of(again)["ama_seed0"].info.status == "FINISHED"
    assert checkpoint.with_name("checkpoint_unreadable.pt").read_bytes() == broken


def test_a_resume_that_fails_costs_no_checkpoint(make, tmp_path, capsys):
    """Memory or disk may have been full: hours of training are not thrown away for that."""
    with pytest.raises(KeyboardInterrupt):
        make([AMA], training=FakeVerb("training", stops_after={"ama_seed0": 1}, error=KeyboardInterrupt)).run()
    checkpoint = tmp_path / "tnbc" / "ama_seed0" / "checkpoint.pt"
    before = checkpoint.read_bytes()
    failing = make([AMA], training=FakeVerb("training", refuses_checkpoint=True))
    with pytest.raises(SystemExit):
        failing.run()
    assert [s["resume"] for s in failing.training.calls] == [True] and checkpoint.read_bytes() == before
    assert f"it went on from {checkpoint}" in capsys.readouterr().out
    make([AMA]).run()


def test_a_training_that_was_finished_is_not_done_again(make, tmp_path):
    """Killed between the end of the training and the line that says so in the child's folder."""
    with pytest.raises(KeyboardInterrupt):
        make([AMA], evaluating=FakeVerb("evaluating", stops_after={"ama_seed0": 0}, error=KeyboardInterrupt)).run()
    folder = tmp_path / "tnbc" / "ama_seed0"
    (folder / "state.json").write_text((folder / "state.json").read_text().replace("true", "false"))
    torch.save({**read_checkpoint(folder / "checkpoint.pt"), "finished": True}, folder / "checkpoint.pt")
    again = make([AMA])
    again.run()
    assert again.training.calls == [] and len(again.evaluating.calls) == 1


def test_other_settings_under_the_same_name_are_refused_before_anything_runs(make):
    make().run()
    other = make([PlannedRun("grl", "grl", 0), JOINT], training=FakeVerb("training", {"max_epochs": 8}))
    with pytest.raises(DataError, match="joint_seed0.*training max_epochs: 1, now 8.*--name"):
        other.run()
    assert other.training.calls == []
    make([JOINT], training=FakeVerb("training", {"max_epochs": 8}), name="longer").run()


def test_an_unfinished_child_of_other_settings_is_started_anew(make, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make([AMA], training=FakeVerb("training", stops_after={"ama_seed0": 1}, error=KeyboardInterrupt)).run()
    again = make([AMA], training=FakeVerb("training", {"max_epochs": 2}))
    again.run()
    assert [s["resume"] for s in again.training.calls] == [False]
    assert (tmp_path / "tnbc" / "ama_seed0" / "checkpoint_of_other_settings.pt").is_file()
    assert len(again.store.children(again.store.find_parent())) == 2, "the interrupted run keeps its own settings"


def test_jobs_run_at_once(make):
    # each waits for the other one: one after the other, the barrier would break
    both = make(training=FakeVerb("training", meets=threading.Barrier(2, timeout=60)), jobs=2)
    both.run()
    assert {run.info.status for run in runs_of(both).values()} == {"FINISHED"}
    with pytest.raises(DataError, match="jobs.*0"):
        make(jobs=0)


def test_a_job_that_fails_leaves_the_other_alone_and_one_that_is_interrupted_ends_all(make):
    failing = make(training=FakeVerb("training", fails={"joint_seed0"}), jobs=2)
    with pytest.raises(SystemExit, match="1 of 2 runs failed: joint_seed0"):
        failing.run()
    assert {n: run.info.status for n, run in runs_of(failing).items()} == {
        "joint_seed0": "FAILED",
        "ama_seed0": "FINISHED",
    }
    children = [AMA, *(PlannedRun("grl", "grl", seed) for seed in range(20))]
    stopping = FakeVerb("training", stops_after={"ama_seed0": 0}, error=KeyboardInterrupt)
    interrupted = make(children, training=stopping, name="interrupted", jobs=2)
    with pytest.raises(KeyboardInterrupt):
        interrupted.run()
    assert runs_of(interrupted)["ama_seed0"].info.status == "KILLED"
    assert len(stopping.calls) < len(children), "those that waited were not begun"


def test_a_verb_that_nobody_waits_for_is_ended(tmp_path, monkeypatch):
    pid = tmp_path / "pid"
    code = "import os, sys, time; open(sys.argv[1], 'w').write(f'{os.getpid()}.'); time.sleep(600)"
    command, wait = [sys.executable, "-c", code, str(pid)], BundleVerb._wait
    monkeypatch.setattr(BundleVerb, "_wait", lambda self, _, look, **options: wait(self, command, look, **options))
    monkeypatch.setattr(verbs, "_LOOK", 0.05)

    def look(line: str) -> None:
        if pid.exists() and pid.read_text().endswith("."):
            raise NotWanted

    with pytest.raises(NotWanted):
        BundleVerb("hangs", "missing.json", {}).run(tmp_path, {}, progress=look)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()[:-1]), 0)


def test_another_split_evaluates_the_same_models(make):
    make(split="validation").run()
    on_test = make(split="testing")
    on_test.run()
    assert on_test.training.calls == [] and [s["split"] for s in on_test.evaluating.calls] == ["testing"] * 2
    changed = make(split="training", training=FakeVerb("training", {"max_epochs": 8}))
    with pytest.raises(DataError, match="max_epochs"):
        changed.run()
    with pytest.raises(DataError, match="'test'"):
        make(split="test")


def test_a_domain_left_out_is_not_trained_on_and_alone_evaluated(make, capsys):
    names = ("tnbc", "mine", "white")
    children = [PlannedRun("joint", "joint", 0, left_out=name) for name in ("tnbc", "white")]
    images = {name: ["a"] for name in names}
    first = make(children, evaluating=FakeVerb("evaluating", images=images), domains=names)
    first.run()
    trained = {
        s["run_name"]: ([d["name"] for d in s["domains"]], s["primary"], s["auxiliary"]) for s in first.training.calls
    }
    assert trained == {
        "joint_without_tnbc_seed0": (["mine", "white"], "mine", ["white"]),
        "joint_without_white_seed0": (["tnbc", "mine"], "tnbc", ["mine"]),
    }
    evaluated = [([d["name"] for d in s["domains"]], s["primary"], s["auxiliary"]) for s in first.evaluating.calls]
    assert evaluated == [(["tnbc"], "tnbc", []), (["white"], "white", [])]
    tags = runs_of(first)["joint_without_tnbc_seed0"].data.tags
    assert {"left_out": "tnbc", "primary": "mine", "variant": "joint"}.items() <= tags.items()
    assert "joint_without_white_seed0: white Dice 0.500" in capsys.readouterr().out

    again = make(
        [*children, PlannedRun("joint", "joint", 0, left_out="mine")], domains=names, evaluating=first.evaluating
    )
    again.run()
    assert [s["run_name"] for s in again.training.calls] == ["joint_without_mine_seed0"], "the others are finished"
    with pytest.raises(DataError, match="the experiment 'tnbc' leaves out domains"):
        make([JOINT], domains=names).run()


def test_a_domain_without_labels_is_trained_on_without_and_measured_by_them(make):
    domains = [{**domain, "labels": domain["name"] != "tnbc"} for domain in domains_named("tnbc", "mine")]
    experiment = make(domains=domains)
    experiment.run()
    assert [s["domains"] for s in experiment.training.calls] == [domains] * 2
    assert [s["unlabelled"] for s in experiment.training.calls] == [["tnbc"]] * 2
    for settings in experiment.evaluating.calls:
        assert "unlabelled" not in settings and all("labels" not in domain for domain in settings["domains"])
    with pytest.raises(DataError, match="finished, but with other settings"):
        make().run()
    with pytest.raises(DataError, match="there are no labels to learn from in tnbc"):
        make([PlannedRun("single", "single", 0)], domains=domains)


@pytest.mark.parametrize("key", ["unlabelled", "auxiliary", "domains", "dataset_dir"])
def test_what_the_experiment_says_for_all_is_refused_elsewhere(make, key):
    """It was given to the verbs beside the domains, which they went by."""
    with pytest.raises(DataError, match=f"training::settings: '{key}' is the experiment's own key. Give it as --{key}"):
        make(training=FakeVerb("training", {key: "tnbc"}))
    with pytest.raises(DataError, match=f"variants: ama: '{key}' is the experiment's own key"):
        make([PlannedRun("ama", "ama", 0, training={key: "tnbc"})])


def test_a_run_that_is_given_is_neither_renamed_nor_closed(uri):
    """What training and evaluation add to their child run, and what they leave alone."""
    store = ExperimentStore(uri, "e", "p")
    run = store.open_child(store.open_parent({}), "child", {"mode": "kept"})

    def track(params, tags):
        engine = Engine(lambda engine, batch: None)
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: e.state.metrics.update(score=0.5))
        TrackedRun(uri, "ignored", "ignored", params, tags, run_id=run.info.run_id).attach(engine)
        engine.run([0], max_epochs=1)

    track({"a": 1}, {"mode": "other", "primary": "tnbc"})
    track({"a": 2, "b": 3}, {})
    (child,) = store.children(store.find_parent())
    assert child.info.run_name == "child" and child.info.status == "RUNNING"
    assert {"mode": "kept", "primary": "tnbc"}.items() <= child.data.tags.items()
    assert {"a": "1", "b": "3"}.items() <= child.data.params.items() and child.data.metrics == {"score": 0.5}
    assert [e.name for e in store.client.search_experiments() if e.name == "ignored"] == []


# --- real processes


@pytest.mark.slow
def test_real_children_from_the_real_config(bundle_root, synthetic, encoder, tmp_path, capsys):
    """One baseline with another decoder trained and evaluated, one child that fails; then compared."""
    baselines = bundle_root / "configs" / "baselines"
    tiny = {"crop_size": 64, "window_size": 128, "cache_windows": 1, "batch_size": 4, "val_interval": 1}
    overrides = {
        "dataset_dir": str(synthetic), "output_dir": str(tmp_path / "out"), "auxiliary": "synthetic_dark",
        "backbone": "vit_test", "backbone_weights": str(encoder[1]), "max_epochs": 1, "batches_per_epoch": 2,
        "seeds": 5, "limit_groups": 1, **{f"training::settings::{k}": v for k, v in tiny.items()},
        "variants": [
            {"name": "broken", "mode": "joint", "training": {"batch_size": -1}},
            {"name": "unet", "mode": "joint", "config": str(baselines / "unet.json")},
        ],
    }  # fmt: skip
    with pytest.raises(SystemExit, match="1 of 2 runs failed: broken_groups1_seed5"):
        open_verb(bundle_root, "experiment", None, **overrides, only=None).run()
    store = ExperimentStore(f"sqlite:///{tmp_path / 'out' / 'mlruns.db'}", "ama_sam_experiments", None)
    parent = store.find_parent()
    runs = {run.info.run_name: run for run in store.children(parent)}
    assert "batch_size" in runs["broken_groups1_seed5"].data.tags["failure"]
    good = runs["unet_groups1_seed5"]
    assert good.info.status == "FINISHED" and good.data.tags["mlflow.parentRunId"] == parent.info.run_id
    expected = {"mode": "joint", "seed": "5", "limit_groups": "1", "primary": "synthetic_pink", "split": "testing"}
    assert expected.items() <= good.data.params.items()
    for domain in ("synthetic_pink", "synthetic_dark"):
        assert {f"{domain}/{m}" for m in ("dice", "aji", "pq", "hd95_px", "surface_dice", "f1_50")} <= set(
            good.data.metrics
        )
    artifacts = {a.path for a in store.client.list_artifacts(good.info.run_id)}
    assert {"train.json", "history.csv", "metrics.csv", "metrics.json"} <= artifacts

    capsys.readouterr()
    open_verb(bundle_root, "experiment", None, **overrides, only="unet").run()
    assert "1 finished before" in capsys.readouterr().out
    open_verb(bundle_root, "experiment", None, output_dir=str(tmp_path / "out"), run_id="comparing").run()
    folder = tmp_path / "out" / "synthetic_pink" / "comparison_testing"
    with (folder / "scores.csv").open(newline="") as file:
        rows = {(row["domain"], row["metric"]): row for row in csv.DictReader(file)}
    row = rows["synthetic_pink", "dice"]
    assert float(row["mean"]) == pytest.approx(good.data.metrics["synthetic_pink/dice"])
    assert (row["variant"], row["limit_groups"], row["std_seeds"]) == ("unet", "1", "")
    assert "broken_groups1_seed5" in (Path(folder) / "comparison.md").read_text()


@pytest.mark.slow
def test_a_real_child_without_a_domain_is_in_the_table_of_those_left_out(bundle_root, synthetic, encoder, tmp_path):
    tiny = {"crop_size": 64, "window_size": 128, "cache_windows": 1, "batch_size": 4, "val_interval": 1}
    overrides = {
        "dataset_dir": str(synthetic), "output_dir": str(tmp_path), "auxiliary": "synthetic_dark",
        "backbone": "vit_test", "backbone_weights": str(encoder[1]), "max_epochs": 1, "batches_per_epoch": 2,
        "seeds": 5, "only": "single", "leave_out": "synthetic_pink", "split": "validation",
        **{f"training::settings::{k}": v for k, v in tiny.items()},
    }  # fmt: skip
    open_verb(bundle_root, "experiment", None, **overrides).run()
    folder = tmp_path / "leave_one_out"
    model = model_info(folder / "single_without_synthetic_pink_seed5" / "model.pt")
    assert [domain["name"] for domain in model.domains] == ["synthetic_dark"]
    options = {"split": "validation", "run_id": "comparing"}
    open_verb(bundle_root, "experiment", None, output_dir=str(tmp_path), **options).run()
    with (folder / "comparison_validation" / "left_out.csv").open(newline="") as file:
        rows = {(row["left_out"], row["metric"]): float(row["mean"]) for row in csv.DictReader(file)}
    evaluated = json.loads((folder / "single_without_synthetic_pink_seed5" / "validation" / "metrics.json").read_text())
    assert evaluated["domains"].keys() == {"synthetic_pink"}
    dice = evaluated["domains"]["synthetic_pink"]["dice"]["mean"]
    assert rows["synthetic_pink", "dice"] == rows["mean over all", "dice"] == pytest.approx(dice)
    assert 0 <= rows["synthetic_pink", "palest_missed"] <= 1


@pytest.mark.parametrize("name", ["checkpoint.pt", "model.pt"])
def test_a_training_that_no_experiment_made_survives(make, tmp_path, name):
    path = tmp_path / "tnbc" / "joint_seed0" / name
    path.parent.mkdir(parents=True)
    path.write_text("precious")
    experiment = make([JOINT, AMA])
    with pytest.raises(SystemExit, match="1 of 2 runs failed: joint"):
        experiment.run()
    assert path.read_text() == "precious" and list(path.parent.iterdir()) == [path]
    assert f"{name}: it was not written by an experiment" in runs_of(experiment)["joint_seed0"].data.tags["failure"]
