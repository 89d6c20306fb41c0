"""MLflow's SQLite store: whole or not there, whenever a run is killed and however many begin at once."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from fakes import place_store
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_TIMEOUT
from scripts.errors import DataError
from scripts.tracking.experiments import ExperimentStore
from scripts.tracking.moved_store import follow_artifacts
from scripts.tracking.store import how_to_look, open_experiment, open_store
from store_making import begin_run


@pytest.fixture(scope="module")
def made(bundle_root, tmp_path_factory):
    """What store_making.py tells, and its folder. It forks in a process of its own, for this one has threads."""
    script, folder = Path(__file__).parents[1] / "helpers" / "store_making.py", tmp_path_factory.mktemp("stores")
    environment = {**os.environ, "PYTHONPATH": str(bundle_root)}
    done = subprocess.run([sys.executable, script, folder], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return {**json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{"))), "folder": folder}


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_makes_the_store_leaves_none_or_a_whole_one(made):
    left = [Path(folder, "mlruns.db") for folder in made["killed"]]
    assert len(left) > 4
    assert not all(store.exists() for store in left), "some were killed before it had its name"
    for store in left:
        if store.exists():
            begin_run(f"sqlite:///{store}")
    killed = next(store for store in left if not store.exists())
    begin_run(f"sqlite:///{killed}")
    assert killed.exists(), "what the killed one left is in nobody's way"


@pytest.mark.slow
def test_two_runs_that_begin_at_once_in_a_fresh_folder_are_both_filed(made):
    assert made["at_once"] == [0, 0]
    client = mlflow.MlflowClient(f"sqlite:///{made['folder'] / 'together' / 'mlruns.db'}")
    runs = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]


@pytest.mark.slow
def test_a_half_made_store_is_told_in_a_sentence_and_left_where_it_is(made):
    """As a killed run of an earlier version left it."""
    path = Path(made["half_made"], "mlruns.db")
    for _ in range(2):
        with pytest.raises(DataError, match="mlruns.db: this MLflow store was left half-made.*move it away"):
            begin_run(f"sqlite:///{path}")
    with pytest.raises(DataError, match="half-made"):
        ExperimentStore(f"sqlite:///{path}", "e", "p").open_parent({})
    assert path.stat().st_size > 0


def test_what_is_no_store_is_told_at_once(tmp_path):
    path = tmp_path / "mlruns.db"
    path.write_text("notes " * 1000)
    with pytest.raises(DataError, match="mlruns.db: it cannot be read as an MLflow store"):
        open_store(f"sqlite:///{path}")
    assert path.read_text() == "notes " * 1000
    for folder in (str(tmp_path), tmp_path.as_uri()):
        with pytest.raises(DataError, match="tracking_uri: MLflow keeps no runs in the folder"):
            open_store(folder)


def test_a_store_of_an_older_mlflow_is_no_half_made_one(tmp_path):
    place_store(tmp_path)
    with closing(sqlite3.connect(tmp_path / "mlruns.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    with pytest.raises(DataError, match="mlruns.db: MLflow cannot open this store.*mlflow db upgrade sqlite:///"):
        open_store(f"sqlite:///{tmp_path / 'mlruns.db'}")


def test_a_store_whose_last_writer_was_killed_is_opened(tmp_path):
    """SQLite leaves its journal then, from which the next reader restores the file."""
    place_store(tmp_path)
    source, store = tmp_path / "mlruns.db", tmp_path / "killed" / "mlruns.db"
    store.parent.mkdir()
    with closing(sqlite3.connect(source, isolation_level=None)) as database:
        database.executescript("PRAGMA cache_size = 1; BEGIN; CREATE TABLE big (x); INSERT INTO big VALUES ('y')")
        database.execute("INSERT INTO big SELECT zeroblob(100000)")
        for suffix in ("", "-journal"):
            shutil.copy(f"{source}{suffix}", f"{store}{suffix}")
    begin_run(f"sqlite:///{store}")


def test_the_environment_does_not_beat_what_is_given(tmp_path, monkeypatch):
    for folder in ("given", "environment"):
        place_store(tmp_path / folder)
    given, environment = (f"sqlite:///{tmp_path / folder / 'mlruns.db'}" for folder in ("given", "environment"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", environment)
    begin_run(given)
    assert mlflow.MlflowClient(given).get_experiment_by_name("e") is not None
    assert mlflow.MlflowClient(environment).get_experiment_by_name("e") is None


def test_an_experiment_that_was_deleted_in_mlflow_is_told(tmp_path):
    place_store(tmp_path)
    client = open_store(f"sqlite:///{tmp_path / 'mlruns.db'}")
    client.delete_experiment(open_experiment(client, "e"))
    with pytest.raises(DataError, match="its experiment 'e' was deleted.*--experiment_name"):
        open_experiment(client, "e")


def test_a_server_is_waited_for_for_seconds_unless_the_user_says_otherwise(monkeypatch):
    variables = (MLFLOW_HTTP_REQUEST_TIMEOUT, MLFLOW_HTTP_REQUEST_MAX_RETRIES)
    for variable in variables:
        monkeypatch.setenv(variable.name, "1")  # so that it is taken away again
        monkeypatch.delenv(variable.name)
    open_store("http://127.0.0.1:9")
    assert MLFLOW_HTTP_REQUEST_TIMEOUT.get() * (1 + MLFLOW_HTTP_REQUEST_MAX_RETRIES.get()) <= 30
    for variable in variables:
        monkeypatch.setenv(variable.name, "99")
    open_store("http://127.0.0.1:9")
    assert [variable.get() for variable in variables] == [99, 99]


def test_the_command_to_look_at_a_store_names_it_wherever_one_stands(tmp_path, monkeypatch):
    folder = tmp_path / "my runs"
    folder.mkdir()
    monkeypatch.chdir(folder)
    open_store("sqlite:///mlruns.db").create_experiment("e")
    monkeypatch.chdir("/")
    told = how_to_look(f"sqlite:///{folder / 'mlruns.db'}")
    *command, option, uri = shlex.split(told.split(": ", 1)[1])
    assert str(folder / "mlruns.db") in told and [*command, option] == ["mlflow", "ui", "--backend-store-uri"]
    assert open_store(uri).get_experiment_by_name("e") is not None
    assert how_to_look("https://me:secret@host:5000") == "Filed in MLflow at https://host:5000"


def test_a_store_that_was_copied_with_its_folder_finds_its_files(tmp_path):
    """The first is left as it is, and what the copy gets afterwards lies with the copy."""
    first, copy = tmp_path / "first", tmp_path / "copy"
    client = open_store(f"sqlite:///{first / 'mlruns.db'}")
    run = client.create_run(open_experiment(client, "e"))
    client.log_text(run.info.run_id, "1", "a.txt")
    shutil.copytree(first, copy)
    (first / "mlruns").rename(first / "away")
    client = open_store(f"sqlite:///{copy / 'mlruns.db'}")
    assert client.list_artifacts(run.info.run_id)[0].path == "a.txt"
    client.log_text(client.create_run(open_experiment(client, "e")).info.run_id, "2", "b.txt")
    assert len(list((copy / "mlruns").rglob("*.txt"))) == 2 and not (first / "mlruns").exists()
    before = (copy / "mlruns.db").read_bytes()
    assert follow_artifacts(copy / "mlruns.db") == 0 and (copy / "mlruns.db").read_bytes() == before
