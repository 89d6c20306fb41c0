"""Runs whose MLflow server is away, goes away, or was never meant."""

from __future__ import annotations

import csv
import logging
import sqlite3
import threading
import time

import mlflow
import pytest
from fakes import FakeVerb, domains_named, interrupt, open_verb, place_store, tiny_model
from ignite.engine import Engine, Events
from mlflow_servers import Line
from scripts.errors import DataError, root_cause
from scripts.experiments.experiment import Experiment
from scripts.experiments.plan import PlannedRun
from scripts.tracking.experiments import ExperimentStore
from scripts.tracking.runs import TrackedRun
from scripts.tracking.store import open_experiment, open_store

AWAY = "the MLflow server cannot be reached"
VERBS = ("training", "evaluating")


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """However busy this machine is; one that is cut off is noticed at once. What holds without, test_store tells."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture
def silent(monkeypatch, patient):
    """A server that accepts whoever connects and never answers."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    line = Line(None)
    yield line.uri
    line.cut()


@pytest.fixture
def line(mlflow_server):
    """A line to a real server, which the test can cut."""
    line = Line(mlflow_server)
    yield line
    line.cut()


def _local(folder):
    return f"sqlite:///{folder / 'mlruns.db'}"


def _only_run(uri, experiment):
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return client, run


def _steps(client, run, metric):
    return {point.step: point.value for point in client.get_metric_history(run.info.run_id, metric)}


def _told(caplog, uri):
    """What was said about a server, of warnings and worse."""
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING and uri in r.getMessage()]


def _track(uri, tmp_path, epochs=3, before=lambda engine: None, **options):
    """A run of three epochs with a metric, tracked; ``before`` is called when an epoch begins."""
    engine = Engine(lambda engine, batch: None)
    engine.add_event_handler(Events.EPOCH_STARTED, before)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: e.state.metrics.update(score=e.state.epoch / 10))
    options = {"params": {"a": 1}, "tags": {"verb": "v"}, "local_uri": _local(tmp_path), **options}
    TrackedRun(uri, "e", "r", **options).attach(engine)
    engine.run([0], max_epochs=epochs)


# --- a server that is away at the start


def test_training_goes_on_when_the_server_never_answers(open_training, silent, tmp_path, caplog):
    open_training(tmp_path, tracking_uri=silent, max_epochs=2).run()
    run_dir = tmp_path / "synthetic_pink_ama_seed0"
    with (run_dir / "history.csv").open(newline="") as file:
        rows = {int(row["epoch"]): float(row["val_dice"]) for row in csv.DictReader(file)}
    client, run = _only_run(_local(tmp_path), "ama_sam")
    assert run.info.run_name == run_dir.name and run.info.status == "FINISHED"
    assert run.data.params["mode"] == "ama" and run.data.tags["verb"] == "training"
    assert _steps(client, run, "val/dice") == pytest.approx(rows) and len(rows) == 2
    (told,) = _told(caplog, silent)
    assert AWAY in told and _local(tmp_path) in told, "one line"


def test_evaluating_goes_on_when_nobody_listens(bundle_root, synthetic, line, tmp_path, caplog):
    line.cut()
    place_store(tmp_path)
    overrides = {"dataset_dir": synthetic, "ckpt_path": str(tiny_model(tmp_path / "model.pt")), "auxiliary": "none"}
    overrides |= {"tile_size": 256, "output_dir": str(tmp_path)}
    open_verb(bundle_root, "evaluate", None, tracking_uri=line.uri, **overrides).run()
    client, run = _only_run(_local(tmp_path), "ama_sam_evaluation")
    assert run.info.status == "FINISHED" and "synthetic_pink/dice" in run.data.metrics
    assert "metrics.csv" in {a.path for a in client.list_artifacts(run.info.run_id)}
    assert len(_told(caplog, line.uri)) == 1


def test_without_a_local_store_a_run_goes_on_untracked(silent, tmp_path, caplog):
    _track(silent, tmp_path, local_uri=None)
    (told,) = _told(caplog, silent)
    assert "not tracked from now on" in told


# --- a server that goes away


@pytest.mark.slow
def test_training_goes_on_when_the_server_goes_away(open_training, line, tmp_path, caplog):
    workflow = open_training(tmp_path, tracking_uri=line.uri, max_epochs=3)
    trainer = workflow.parser.get_parsed_content("train::trainer")
    trainer.add_event_handler(Events.EPOCH_STARTED(once=2), line.cut)
    workflow.run()
    client, run = _only_run(_local(tmp_path), "ama_sam")
    assert run.info.status == "FINISHED" and run.data.params["mode"] == "ama" and run.data.tags["mode"] == "ama"
    assert set(_steps(client, run, "train/loss")) == {1, 2, 3}, "the epoch that the server had, too"
    assert {"train.json", "history.csv", "curves.png"} <= {a.path for a in client.list_artifacts(run.info.run_id)}
    assert len(_told(caplog, line.uri)) == 1


@pytest.mark.slow
def test_a_resumed_run_has_all_its_epochs_on_the_server_that_is_back(open_training, line, mlflow_server, tmp_path):
    """Interrupted while the server was away: what the local store has comes to the server from history.csv."""
    options = {"experiment_name": "back", "tracking_uri": line.uri, "max_epochs": 3}
    line.cut()
    workflow = open_training(tmp_path, **options)

    interrupt(workflow, Events.EPOCH_STARTED(once=3))
    line.mend()
    open_training(tmp_path, **options, resume=True).run()
    client, run = _only_run(mlflow_server, "back")
    assert run.info.status == "FINISHED" and set(_steps(client, run, "val/dice")) == {1, 2, 3}


class TrackedVerb(FakeVerb):
    """Files as real verbs do; ``cut`` is called for the run of that name."""

    def __init__(self, verb, folder, cut=None, name=None):
        super().__init__(verb)
        self.folder, self.cut, self.name = folder, cut, name

    def run(self, folder, settings, config=None, threads=None, progress=None):
        self.calls.append(settings)
        if self.cut is not None and settings["run_name"] == self.name:
            self.cut()
        folder.mkdir(parents=True, exist_ok=True)
        for file in ("model.pt", "metrics.csv"):
            (folder / file).write_text("file,domain,dice\n/a.png,tnbc,0.5\n")
        engine = Engine(lambda engine, batch: None)
        metric = "tnbc_dice" if self.verb == "evaluating" else "val_dice"
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: e.state.metrics.update({metric: 0.5}))
        TrackedRun(
            settings["tracking_uri"], "exp", settings["run_name"], {"from": self.verb},
            folder=folder, artifacts=["metrics.csv"] if self.verb == "evaluating" else [],
            run_id=settings["mlflow_run_id"], local_uri=settings["local_tracking_uri"],
        ).attach(engine)  # fmt: skip
        engine.run([0], max_epochs=1)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["training", "evaluating"])
def test_an_experiment_goes_on_in_the_local_store(line, mlflow_server, tmp_path, caplog, capsys, verb):
    """The server goes away in the second of three children, in either verb; run again, what it lacks is made up for."""
    children = [PlannedRun(mode, mode, 0) for mode in ("single", "joint", "ama")]

    def experiment(uri, cut=None):
        verbs = {name: TrackedVerb(name, tmp_path, cut if name == verb else None, "joint_seed0") for name in VERBS}
        store = ExperimentStore(uri, "exp", verb, _local(tmp_path))
        return Experiment(
            store, children, verbs["training"], verbs["evaluating"], "testing", domains_named("tnbc"), tmp_path / verb
        )

    first = experiment(line.uri, line.cut)
    first.run()
    assert [settings["run_name"] for settings in first.evaluating.calls] == [child.name for child in children]
    store = ExperimentStore(_local(tmp_path), "exp", verb)
    parent = store.find_parent()
    runs = {run.info.run_name: run for run in store.children(parent)}
    assert runs.keys() == {"joint_seed0", "ama_seed0"} and parent.info.status == "FINISHED"
    for run in runs.values():
        assert run.info.status == "FINISHED" and run.data.tags["variant"] in ("joint", "ama")
        assert run.data.metrics["tnbc_dice"] == 0.5 and store.holds(run, "metrics.csv")
    told = _told(caplog, line.uri)
    assert len([line for line in told if "the experiment is recorded in" in line]) == 1

    line.mend()
    again = experiment(line.uri)
    again.run()
    assert again.training.calls == [], "what was trained is trained"
    assert [settings["run_name"] for settings in again.evaluating.calls] == ["joint_seed0", "ama_seed0"]
    on_server = ExperimentStore(mlflow_server, "exp", verb)
    assert {run.info.status for run in on_server.children(on_server.find_parent())} == {"FINISHED"}


def test_a_child_whose_result_is_nowhere_is_not_called_finished(tmp_path):
    """The server was away just while it was evaluated, and had no local store to go to."""

    class Forgetful(FakeVerb):
        def run(self, folder, settings, config=None, threads=None, progress=None):
            pass

    store = ExperimentStore(_local(tmp_path), "e", "n")
    children = [PlannedRun("ama", "ama", 0)]
    with pytest.raises(SystemExit):
        Experiment(
            store, children, FakeVerb("training"), Forgetful("evaluating"), "testing", domains_named("tnbc"), tmp_path
        ).run()
    (run,) = store.children(store.find_parent())
    assert run.info.status == "FAILED" and "metrics.csv" in run.data.tags["failure"]


def test_comparing_says_where_to_look_when_the_server_is_away(bundle_root, silent, tmp_path):
    with pytest.raises(Exception) as told:  # noqa: B017 which class MONAI wraps it in does not matter
        options = {"tracking_uri": silent, "run_id": "comparing"}
        open_verb(bundle_root, "experiment", None, output_dir=str(tmp_path), **options).run()
    assert isinstance(root_cause(told.value), DataError)
    assert "cannot be reached" in str(root_cause(told.value)) and _local(tmp_path) in str(root_cause(told.value))


# --- local stores


def test_a_local_store_that_fails_costs_no_run_that_has_begun(tmp_path, caplog):
    place_store(tmp_path)

    def lose(engine):
        if engine.state.epoch == 2:
            with sqlite3.connect(tmp_path / "mlruns.db") as database:
                database.execute("DROP TABLE metrics")

    _track(_local(tmp_path), tmp_path, before=lose)
    assert sum("not tracked from now on" in record.getMessage() for record in caplog.records) == 1


def test_runs_sent_elsewhere_by_the_environment_are_found_there(bundle_root, open_training, tmp_path, monkeypatch):
    """The environment is the default; a key that is given beats it, in all verbs alike."""
    uris = {}
    for name in ("environment", "given"):
        place_store(tmp_path / name)
        uris[name] = _local(tmp_path / name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uris["environment"])
    for name, overrides in (("environment", {}), ("given", {"tracking_uri": uris["given"]})):
        for config in ("train", "evaluate", "align", "experiment"):
            parser = open_verb(bundle_root, config, None, output_dir=str(tmp_path / config), **overrides).parser
            assert parser.get_parsed_content("tracking_uri") == uris[name], config
        open_training(tmp_path / "out", max_epochs=1, mode="single", seed=len(name), **overrides).run()
        assert _only_run(uris[name], "ama_sam")[1].info.status == "FINISHED"
        children, verbs = [PlannedRun("ama", "ama", 0)], (FakeVerb("training"), FakeVerb("evaluating"))
        store = ExperimentStore(uris[name], "ama_sam_experiments", "tnbc")
        Experiment(store, children, *verbs, "testing", domains_named("tnbc"), tmp_path / f"{name}_children").run()
        options = {"metrics": "dice", "run_id": "comparing", **overrides}
        open_verb(bundle_root, "experiment", None, output_dir=str(tmp_path / f"{name}_compared"), **options).run()
        assert (tmp_path / f"{name}_compared" / "tnbc" / "comparison_testing" / "scores.csv").is_file()


def test_each_round_of_a_federated_client_is_a_run_of_its_own(tmp_path):
    """Its trainer runs again and again."""
    place_store(tmp_path)
    engine = Engine(lambda engine, batch: engine.state.metrics.update(score=engine.state.epoch))
    TrackedRun(_local(tmp_path), "e", "r", {}, local_uri=_local(tmp_path)).attach(engine)
    for epochs in (2, 3):
        engine.run([0], max_epochs=epochs)
    client = mlflow.MlflowClient(_local(tmp_path))
    runs = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"] * 2
    assert [set(_steps(client, run, "score")) for run in runs] == [{3}, {1, 2}], "the latest first"


def test_a_store_of_a_relative_path_stays_where_it_is(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    place_store(tmp_path)
    monkeypatch.chdir(tmp_path)
    _track("sqlite:///mlruns.db", tmp_path, before=lambda engine: monkeypatch.chdir(tmp_path / "elsewhere"))
    assert not list((tmp_path / "elsewhere").iterdir())
    assert set(_steps(*_only_run(_local(tmp_path), "e"), "score")) == {1, 2, 3}


def test_a_run_ends_with_where_it_is_and_a_child_run_leaves_that_to_its_parent(tmp_path, capsys):
    uri = _local(tmp_path)
    _track(uri, tmp_path)
    assert capsys.readouterr().out.strip().endswith(f"mlflow ui --backend-store-uri {uri}")
    client, run = _only_run(uri, "e")
    _track(uri, tmp_path, run_id=run.info.run_id)
    assert "mlflow ui" not in capsys.readouterr().out


def test_a_run_begun_before_metrics_had_groups_has_all_its_epochs_in_them_when_it_goes_on(tmp_path):
    uri = _local(tmp_path)
    client = open_store(uri)
    run_id = client.create_run(open_experiment(client, "e"), run_name="r").info.run_id
    client.log_metric(run_id, "train_loss", 0.9, step=1)
    (tmp_path / "history.csv").write_text("epoch,train_loss\n1,0.9\n")
    engine = Engine(lambda engine, batch: None)
    engine.add_event_handler(Events.STARTED, lambda e: setattr(e.state, "epoch", 1))
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: e.state.metrics.update(train_loss=0.5))
    TrackedRun(uri, "e", "r", {}, folder=tmp_path, history="history.csv", run_file="mlflow.json", resume=True).attach(
        engine
    )
    engine.run([0], max_epochs=2)
    client, run = _only_run(uri, "e")
    assert run.info.run_id == run_id and _steps(client, run, "train/loss") == {1: 0.9, 2: 0.5}


def test_what_the_machine_did_is_filed_with_the_run_on_request(tmp_path):
    uri = _local(tmp_path)
    _track(uri, tmp_path, epochs=1)
    client, run = _only_run(uri, "e")
    assert not [name for name in run.data.metrics if name.startswith("system/")]
    client.delete_run(run.info.run_id)

    def until_looked_at(engine):
        for _ in range(600):
            _, now = _only_run(uri, "e")
            if "system/cpu_utilization_percentage" in now.data.metrics:
                return
            time.sleep(0.1)

    _track(uri, tmp_path, epochs=1, before=until_looked_at, system_metrics=0.2)
    client, run = _only_run(uri, "e")
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= set(run.data.metrics)
    assert run.info.status == "FINISHED" and run.data.metrics["score"] == 0.1
    assert not [thread for thread in threading.enumerate() if "SystemMetrics" in thread.name]
