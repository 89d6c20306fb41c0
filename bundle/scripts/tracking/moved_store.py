from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from monai.utils import path_to_uri

__all__ = ["follow_artifacts"]

# where MLflow's tables say that files lie
_PLACES = {
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}


def follow_artifacts(store: str | os.PathLike) -> int:
    """
    Let a SQLite store that was copied or moved with the folder ``mlruns`` beside it find its files there.

    MLflow keeps absolute paths. One is changed where the same run or model lies in ``mlruns`` beside the store, and the
    path does not lead there; the experiment's own, for what is yet to come, where one of its runs' was.

    Args:
        store: the file.

    Returns:
        number of places changed.
    """
    store = Path(store).absolute()
    here, changed = store.parent / "mlruns", 0
    if not here.is_dir():
        return changed
    with closing(sqlite3.connect(store, timeout=60)) as database, database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        for table in _PLACES.keys() & tables:
            for column in _PLACES[table]:
                found = database.execute(f"SELECT DISTINCT {column} FROM {table}")  # nosec B608 # names of ours
                for (uri,) in found.fetchall():
                    if (new := _beside(uri, here)) is None:
                        continue
                    change = f"UPDATE {table} SET {column} = ? WHERE {column} = ?"  # nosec B608 # names of ours
                    database.execute(change, (new, uri))
                    changed += 1
                    if table == "runs":
                        database.execute(
                            "UPDATE experiments SET artifact_location = ? WHERE experiment_id IN"
                            " (SELECT experiment_id FROM runs WHERE artifact_uri = ?)",
                            (path_to_uri(here), new),
                        )
    return changed


def _beside(uri: str | None, here: Path) -> str | None:
    """Where it is in ``mlruns`` beside the store; None if it is not there, or that is where it leads."""
    parsed = urlparse(uri or "")
    before, found, rest = url2pathname(parsed.path).rpartition("/mlruns/")
    if parsed.scheme not in ("", "file") or not found or not (here / rest).exists():
        return None
    old = Path(before, "mlruns", rest)
    if old.exists() and old.samefile(here / rest):
        return None
    return path_to_uri(here / rest)
