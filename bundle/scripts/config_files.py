from __future__ import annotations

import json
import os

import yaml
from scripts.errors import DataError

__all__ = ["check_config"]

SUFFIXES = (".json", ".yaml", ".yml")


def check_config(path: str | os.PathLike) -> None:
    """
    Before work: read a config of the user's own as MONAI will, which ends at what is wrong with a traceback.

    Raises:
        DataError: naming the file, and the line where there is one: it does not exist, is no JSON or YAML by its
            suffix, cannot be read, or holds no keys and values.
    """
    name = os.fspath(path).lower()
    if os.path.isdir(path):
        raise DataError(path, "it is a folder, and no config", "Name a .json or .yaml file")
    if not os.path.isfile(path):
        raise DataError(path, "there is no such config", "Correct its path")
    if not name.endswith(SUFFIXES):
        raise DataError(path, "it is no config", "Name a .json or .yaml file")
    kind, example = ("JSON", '{"KEY": VALUE, ...}') if name.endswith(".json") else ("YAML", "KEY: VALUE")
    try:
        with open(path) as file:
            content = json.load(file) if kind == "JSON" else yaml.safe_load(file)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        problem, hint = _told(error)
        raise DataError(path, f"the file cannot be read as {kind} ({problem})", hint) from error
    if not isinstance(content, dict):
        raise DataError(path, "it holds no object", f"Write {example}")
    for key in content:
        if not isinstance(key, str):
            raise DataError(path, f"its key {key} is no text", "Put it in quotes")


def _told(error: Exception) -> tuple[str, str]:
    """What is wrong, with the line if the error has one, and what to do."""
    line, problem = None, " ".join(str(error).split())
    if isinstance(error, UnicodeDecodeError) or "UTF-8 BOM" in problem:  # as editors on Windows write
        return problem, "Save it as UTF-8 without a byte order mark (BOM)"
    if isinstance(error, json.JSONDecodeError):
        line, problem = error.lineno, error.msg
    elif isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        line, problem = error.problem_mark.line + 1, error.problem
    if line is None:
        return problem, "Correct or replace it"
    return f"line {line}: {problem}", "Correct that line, or what was left open above it"
