from __future__ import annotations

import getpass
import os
import subprocess
from collections.abc import Mapping, Sequence

from mlflow.entities import DatasetInput
from scripts.tracking.data_inputs import data_fingerprint

__all__ = ["run_tags"]


def run_tags(
    tags: Mapping[str, str],
    bundle_root: str | os.PathLike,
    version: str,
    description: str,
    data: Sequence[DatasetInput],
) -> dict[str, str]:
    """
    Tags of a run: its own, and those that MLflow and we give to all: who made it of what.

    Args:
        tags: the run's own; ``verb`` is its source.
        bundle_root: folder of the bundle, which may be a part of a git repository.
        version: of the bundle.
        description: one sentence for people.
        data: see ``data_inputs.data_inputs``.
    """
    return {
        **tags,
        "mlflow.source.name": f"monai.bundle run {tags['verb']}",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
        "mlflow.note.content": description,
        "bundle_version": version,
        "data_fingerprint": data_fingerprint(data),
        **_git_tags(bundle_root),
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's number without a name
        return str(os.getuid())


def _git_tags(folder: str | os.PathLike) -> dict[str, str]:
    """Commit of the bundle's code, where git tracks it; a copy within somebody else's repository has none."""
    tracked = _git(folder, "rev-parse", "HEAD", "HEAD:./configs/metadata.json")
    if tracked is None:
        return {}
    changed = _git(folder, "status", "--porcelain", "--", "scripts", "configs")
    return {"mlflow.source.git.commit": tracked.split()[0], "mlflow.source.git.dirty": str(bool(changed)).lower()}


def _git(folder: str | os.PathLike, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        # no shell, a fixed command
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)  # nosec B603 B607
    except (OSError, subprocess.TimeoutExpired):  # there is no git, or a disk that is away
        return None
    return done.stdout if done.returncode == 0 else None
