"""What of a config makes a run another run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from monai.bundle import ConfigParser
from scripts.settings import SETTINGS
from scripts.setup_run import executed_config, path_keys

__all__ = ["RunSettings", "differences"]


class RunSettings:
    """
    The settings that make a run what it is, by which a resumed one is known to be the same.

    They are the plain values at the top of the config, and whatever in it was replaced: keys such as
    ``train::augmentation::blur::_disabled_``. Where things lie and what is done with them, paths and the lists of
    a verb's steps, never counts.

    Args:
        defaults: the bundle's own config, without overrides.
        version: of the bundle, whose keys differ from those of another version.
        free: keys (with ``*`` for anything) that may change while a run is interrupted, besides the settings of which
            ``scripts.settings`` says so.
        config: the config of the run; None takes the one that is executed.
    """

    def __init__(
        self,
        defaults: str | os.PathLike,
        version: str,
        free: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        content = ConfigParser.load_config_file(defaults)
        steps = [f"{key}::*" for key, value in content.items() if isinstance(value, list) or _is_copy(value)]
        settings = [name for key, setting in SETTINGS["train"].items() if setting.free for name in (key, f"{key}::*")]
        self.version, self.free = version, [*free, *settings, *path_keys(content), *steps, "finalize::*"]
        self._defaults = dict(_leaves(content))
        self.values = {
            key: value
            for key, value in _leaves(executed_config() or {} if config is None else config)
            if self._defaults.get(key, _Absent) != value or ("::" not in key and not _is_expression(value))
        }

    def params(self) -> dict[str, Any]:
        """The settings at the top of the config that are not free, for MLflow."""
        return {key: value for key, value in self.values.items() if "::" not in key and not self._is_free(key)}

    def record(self) -> dict[str, Any]:
        """What :meth:`changes` needs later: plain values."""
        return {"version": self.version, "values": self.values}

    def changes(self, record: Mapping[str, Any]) -> list[str]:
        """
        What differs from the settings recorded earlier, e.g. ``learning_rate 0.001, now 0.5``; free keys aside.

        Of another version only those keys are compared that both have recorded.
        """
        earlier, found = record["values"], []
        same = record["version"] == self.version
        for key in sorted({*earlier, *self.values} if same else earlier.keys() & self.values.keys()):
            # a default that is replaced by a list or a table is not recorded as such
            before, now = (values.get(key, self._defaults.get(key, _Absent)) for values in (earlier, self.values))
            if before != now and not self._is_free(key):
                found.append(f"{key} {_shown(before)}, now {_shown(now)}")
        return found

    def _is_free(self, key: str) -> bool:
        return any(fnmatchcase(key, free) for free in self.free)


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two tables of plain values, in what both tell; e.g. ``seed 0, now 1``."""
    before, after = dict(_leaves(earlier)), dict(_leaves(now))
    return [f"{key} {before[key]!r}, now {after[key]!r}" for key in after if before.get(key, after[key]) != after[key]]


class _Absent:
    """Stands for a value that is not there; None is a value."""


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Plain values by their path, as they come back from JSON; ``_meta_`` is MONAI's."""
    if not path:
        value = json.loads(json.dumps({k: v for k, v in value.items() if k != "_meta_"}, default=str))
    if isinstance(value, (dict, list)) and value:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(inner, f"{path}::{key}" if path else str(key))
    else:
        yield path, value


def _is_expression(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(("$", "@", "%"))


def _is_copy(value: Any) -> bool:
    """Of another key, such as ``run`` of a verb's steps: MONAI puts what is there in its place."""
    return isinstance(value, str) and value.startswith("%")


def _shown(value: Any) -> str:
    return "not given" if value is _Absent else "as by default" if _is_expression(value) else repr(value)
