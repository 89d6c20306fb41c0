"""MLflow stores and servers as such: opening, reaching, naming."""

from __future__ import annotations

import logging
import os
import re
import shlex
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Run
from mlflow.exceptions import MlflowException
from monai.utils import path_to_uri
from scripts.errors import DataError
from scripts.files import atomic_path
from scripts.tracking.moved_store import follow_artifacts

__all__ = [
    "absolute_uri",
    "how_to_look",
    "is_server",
    "open_experiment",
    "open_store",
    "reason",
    "sqlite_file",
    "stand_in",
]

# MLflow's own are 120 seconds and seven attempts: minutes in which a training stands still
_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
_SQLITE = "sqlite:///"
_STANDS_FOR = "stands_for"
_KIND = {"mlflow.experimentKind": "custom_model_development"}  # or MLflow's pages ask what it is about


def open_store(tracking_uri: str) -> MlflowClient:
    """
    MLflow's client of a store, whatever the environment says.

    A SQLite store that is not there is made aside and then given its name, by one process at a time: a run that is
    killed leaves no store or a whole one. One that was copied finds its files, see ``moved_store``. A server is waited
    for 10 seconds, three times, unless MLflow's variables ``MLFLOW_HTTP_REQUEST_TIMEOUT`` and
    ``MLFLOW_HTTP_REQUEST_MAX_RETRIES`` are set.

    Args:
        tracking_uri: e.g. ``sqlite:///out/mlruns.db`` or ``http://host:5000``. A server is not asked yet.

    Raises:
        DataError: for a store that MLflow does not know or cannot open, e.g. because it was left half-made.
    """
    path = sqlite_file(tracking_uri)
    if path is None:
        if "://" not in tracking_uri or tracking_uri.startswith("file:"):
            hint = "Give such as sqlite:///out/mlruns.db or http://host:5000"
            raise DataError("tracking_uri", f"MLflow keeps no runs in the folder '{tracking_uri}'", hint)
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it tells each attempt; we tell the end
        return MlflowClient(tracking_uri=tracking_uri)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            if not path.exists():
                _make(path)
    unused = _holds_nothing(path)
    if not unused:
        follow_artifacts(path)
    try:
        return MlflowClient(tracking_uri=tracking_uri)
    except Exception as error:  # noqa: BLE001 MLflow lets SQLAlchemy's and Alembic's errors through
        if unused:
            hint = "It holds no run: move it away, and a new one is made"
            raise DataError(path, "this MLflow store was left half-made, by a run that was killed", hint) from error
        hint = f"One of an older MLflow becomes a new one with 'mlflow db upgrade {tracking_uri}'"
        raise DataError(path, f"MLflow cannot open this store ({reason(error)})", hint) from error


def open_experiment(client: MlflowClient, name: str) -> str:
    """
    Id of MLflow's experiment of that name, made if it is not there. In a SQLite store its artefacts lie in ``mlruns``
    beside the file.
    """
    path = sqlite_file(client.tracking_uri)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            place = None if path is None else path_to_uri(path.parent / "mlruns")
            return client.create_experiment(name, place, tags=_KIND)
        except MlflowException:  # another run has just made it?
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage != LifecycleStage.ACTIVE:
        hint = "Restore it in MLflow, or give another --experiment_name"
        raise DataError(client.tracking_uri, f"its experiment '{name}' was deleted", hint)
    return experiment.experiment_id


def stand_in(client: MlflowClient, experiment: str, run_id: str, name: str) -> Run:
    """The run that stands for one of another store, which is away: found by its tag, or made."""
    found = client.search_runs([experiment], f"tags.{_STANDS_FOR} = '{run_id}'", max_results=1)
    return found[0] if found else client.create_run(experiment, run_name=name, tags={_STANDS_FOR: run_id})


def is_server(tracking_uri: str) -> bool:
    """Whether the store is reached over a network, and so may be away for a while."""
    return sqlite_file(tracking_uri) is None


def sqlite_file(tracking_uri: str) -> Path | None:
    """File of a SQLite store; None for any other."""
    return Path(tracking_uri.removeprefix(_SQLITE)) if tracking_uri.startswith(_SQLITE) else None


def how_to_look(tracking_uri: str) -> str:
    """Where a store is, and the command that shows a local one in a browser; a server's password is left out."""
    path = sqlite_file(tracking_uri)
    if path is None:
        return f"Filed in MLflow at {re.sub('//[^/]*@', '//', tracking_uri)}"
    uri = shlex.quote(absolute_uri(tracking_uri))
    return f"Filed in {path.absolute()}; look at it with: mlflow ui --backend-store-uri {uri}"


def reason(error: BaseException) -> str:
    """Why a store could not be used, in a few words: what lies below the exceptions that MLflow wraps it in."""
    while not isinstance(error, DataError) and (below := error.__cause__ or error.__context__) is not None:
        error = below
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def absolute_uri(tracking_uri: str) -> str:
    """The same store, wherever the working directory moves to."""
    path = sqlite_file(tracking_uri)
    return tracking_uri if path is None else f"{_SQLITE}{path.absolute()}"


def _make(path: Path) -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        made = Path(folder, "store.db")
        MlflowClient(tracking_uri=f"{_SQLITE}{made}").search_experiments()
        # a copy by SQLite itself, for MLflow still has the file open
        with atomic_path(path) as partial, closing(sqlite3.connect(made)) as source:
            with closing(sqlite3.connect(partial)) as target:
                source.backup(target)


def _holds_nothing(path: Path) -> bool:
    """
    Whether a store has no experiment, not even the one that MLflow makes with a store.

    Asked without MLflow, which takes minutes to give up a file of another kind.
    """
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=60)) as database:
            if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone():
                return True
            return database.execute("SELECT 1 FROM experiments LIMIT 1").fetchone() is None
    except sqlite3.Error as error:
        hint = "Give another --tracking_uri, or move that file away"
        raise DataError(path, f"it cannot be read as an MLflow store ({error})", hint) from error
