from __future__ import annotations

import difflib
import inspect
import json
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.utils import set_determinism

from scripts.errors import DataError, root_cause
from scripts.files import atomic_path

__all__ = ["executed_config", "setup_run", "unknown_keys"]

# what MONAI calls or patches by name, so that nothing in a config needs to refer to it
_ENTRY_POINTS = {"imports", "initialize", "finalize", "run", "_meta_", "displayable_configs", "training"}
_REFERENCE = re.compile(r"@([\w:#]+)")


def setup_run(seed: int, verbs: Sequence[str], output_dir: str | os.PathLike, config_name: str) -> None:
    """
    First step of every verb: refuse unknown config keys, fix random seeds, end errors with their cause.

    Args:
        seed: seeds Python, NumPy and PyTorch.
        verbs: names of the config's run lists, which nothing refers to.
        output_dir: the executed config (with overrides) is written here,
        config_name: under this file name.

    Raises:
        ValueError: a key given on the command line or in an overlay is used by nothing, e.g. because it is misspelt.
    """
    sys.excepthook = _print_cause_last
    config = executed_config()
    if config is not None:
        _refuse_unknown_keys(config, verbs)
        with atomic_path(Path(output_dir) / config_name) as path:
            path.write_text(json.dumps(_without_metadata(config), indent=4, default=str) + "\n")
    set_determinism(seed=seed)


def executed_config() -> dict | None:
    """
    The configuration that is being executed, with overrides and macros resolved; None outside ``monai.bundle``.

    MONAI hands expressions their references, never the whole config: it is found on the call stack.
    """
    frame = inspect.currentframe()
    while frame is not None:
        parser = frame.f_locals.get("self")
        if isinstance(parser, ConfigParser):
            return parser.get()
        frame = frame.f_back
    return None


def unknown_keys(config: dict, verbs: Sequence[str] = ()) -> list[str]:
    """
    Keys nothing refers to: at the top, and one level down in plain sections such as ``train`` and ``validate``.

    Args:
        config: a bundle configuration.
        verbs: ids that are run by name.
    """
    used = {ref.replace("#", "::") for text in _strings(config) for ref in _REFERENCE.findall(text)}
    # `@a::b::c` uses a, a::b and a::b::c
    used |= {"::".join(ref.split("::")[:n]) for ref in used for n in range(1, ref.count("::") + 1)}
    unknown = []
    for key, value in config.items():
        if key in _ENTRY_POINTS or key in verbs:
            continue
        if key not in used:
            unknown.append(key)
        elif isinstance(value, dict) and "_target_" not in value and any(u.startswith(f"{key}::") for u in used):
            unknown += [
                f"{key}::{sub}" for sub in value if key not in _whole(used, key) and f"{key}::{sub}" not in used
            ]
    return unknown


def _whole(used: set[str], key: str) -> set[str]:
    """{key} where the section is referred to as a whole (then all of its parts are in use), else nothing."""
    return set() if any(u.startswith(f"{key}::") for u in used) else {key}


def _refuse_unknown_keys(config: dict, verbs: Sequence[str]) -> None:
    unknown = unknown_keys(config, verbs)
    if not unknown:
        return
    known = [k for k in config if k not in unknown and k not in _ENTRY_POINTS and k not in verbs]
    settings = sorted(k for k in known if not isinstance(config[k], dict) and not str(config[k]).startswith("$"))
    hints = []
    for key in unknown:
        close = difflib.get_close_matches(key, known, n=1)
        hints.append(f"'{key}'" + (f" (did you mean '{close[0]}'?)" if close else ""))
    raise ValueError(
        f"unknown config key {', '.join(hints)}: nothing uses it. Settings: {', '.join(settings)}. "
        f"Other keys: {', '.join(sorted(set(known) - set(settings)))}"
    )


def _strings(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        for value in config:
            yield from _strings(value)
    elif isinstance(config, str):
        yield config


def _without_metadata(config: dict) -> dict:
    return {k: v for k, v in config.items() if k != "_meta_"}


def _print_cause_last(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """MONAI wraps errors of config expressions several times; a user needs the innermost one, last on the screen."""
    cause = root_cause(error)
    if not isinstance(cause, DataError):  # that one says all there is to say, without the way the code took to it
        traceback.print_exception(kind, error, trace)
    if cause is not error:
        print(f"\nError: {cause}", file=sys.stderr)
