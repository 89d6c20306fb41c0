from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from monai.bundle import ConfigParser
from monai.utils import set_determinism
from scripts.ending import end_clearly
from scripts.errors import DataError
from scripts.executed_config import executed_config, executing_parser, executing_verb, set_value
from scripts.files import read_json, write_json
from scripts.judging import judge, nearest
from scripts.memory import keep_freed_memory
from scripts.owned import OwnFiles
from scripts.phases import PHASES, process_age
from scripts.settings import GONE, SETTINGS

__all__ = ["check_device", "path_keys", "setup_run", "unknown_keys", "write_config"]

# verbs' configs: a training can be gone on with once there is a checkpoint, see scripts.training.checkpoints
BEGIN_AGAIN = ("train", "inference", "evaluate")
_DEVICE = re.compile(r"(cpu|cuda|mps)(?::(0|[1-9]\d*))?")
# what MONAI adds or reads by name
_MONAI_KEYS = {"_meta_", "displayable_configs", "finalize"}
_PATHS = ("source", "init_model", "control_path")  # besides those of path_keys
_REFERENCE = re.compile(r"@([\w:#]+)")


def setup_run(seed: int, defaults: str | os.PathLike) -> None:
    """
    First step of every verb: refuse an unknown verb, unknown config keys and settings out of range (see
    :mod:`scripts.settings`), read what arrives as text from the command line, make paths absolute, fix random seeds,
    keep freed memory, end errors with their cause.

    Args:
        seed: seeds Python, NumPy and PyTorch.
        defaults: the bundle's own config of this verb: it tells which keys there are.

    Raises:
        DataError: a key given on the command line or in an overlay is used by nothing, e.g. because it is misspelt;
            or a setting is not what it may be; or the config has no such verb.
    """
    again = "begins again" if Path(defaults).stem in BEGIN_AGAIN else "goes on where it ended"
    end_clearly(f"The same command {again}.")
    PHASES.begin(process_age())
    keep_freed_memory()
    parser = executing_parser()
    if parser is not None:
        _refuse_unknown_verb(parser)
        known = _with_earlier(parser.get(), Path(defaults))
        _refuse_unknown_keys(parser.get(), known)
        _judge(parser, Path(defaults).stem)
        _make_paths_absolute(parser, known)
    set_determinism(seed=seed)


def write_config(path: str | os.PathLike, also: Sequence[str] = ()) -> None:
    """
    Write the configuration that is executed, with all overrides; the first process, and within ``monai.bundle``.

    With it a verb takes a folder: files named in ``also`` that were there before are never replaced.

    Args:
        path: the file.
        also: patterns of the other files that the verb writes into its folder.

    Raises:
        DataError: when one of them, or ``path``, is there, and no earlier run of the verb wrote it.
    """
    config, path = executed_config(), Path(path)
    if config is not None and idist.get_rank() == 0:
        files = OwnFiles(path.parent)
        there = [file.relative_to(path.parent).as_posix() for pattern in also for file in path.parent.glob(pattern)]
        if path.name not in files and _is_executed_config(path):
            files.add([path.name, *there])  # of a version before 0.4.1, which kept no list
        files.check([path.name] if path.name in files else [path.name, *there])
        content = {key: value for key, value in config.items() if key != "_meta_"}
        write_json(files.path(path.name), content, default=str)


def _is_executed_config(path: Path) -> bool:
    try:
        config = read_json(path)
    except DataError:
        return False
    # a bundle's own configs have the same keys, and lie beside its metadata
    return isinstance(config, dict) and "bundle_root" in config and not (path.parent / "metadata.json").exists()


def unknown_keys(config: dict, defaults: dict) -> list[str]:
    """
    Keys that neither the defaults have nor anything in the config refers to.

    Looked at are the top level and one level below it in plain sections such as ``train`` and ``validate``; deeper
    ones are arguments, which the classes they are for check themselves. A section that is empty in the defaults is a
    table for the user to fill, with whatever keys.

    Args:
        config: the configuration that is executed.
        defaults: the bundle's own, without overrides.
    """
    used = {reference.replace("#", "::") for text in _strings(config) for reference in _REFERENCE.findall(text)}
    # `@a::b::c` uses a, a::b and a::b::c
    used |= {"::".join(reference.split("::")[:n]) for reference in used for n in (1, 2)}
    unknown = _keys(config) - _keys(defaults) - used - _MONAI_KEYS
    return sorted(key for key in unknown if defaults.get(key.partition("::")[0], key) not in (None, {}))


def path_keys(defaults: dict) -> list[str]:
    """Keys at the top of a bundle's own config that say where things lie: the root, and those that join paths."""
    joined = [key for key, value in defaults.items() if isinstance(value, str) and value.startswith("$os.path.join(")]
    return ["bundle_root", *joined]


def check_device(name: str) -> None:
    """Refuse a device that this machine does not have, such as ``cuda:7``, with a DataError that names those it has."""
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    found = _DEVICE.fullmatch(name)
    if found is None or int(found[2] or 0) >= counts[found[1]]:
        known = ["cpu", *(f"cuda:{n}" for n in range(counts["cuda"])), *["mps"] * counts["mps"]]
        raise DataError("device", f"there is no {name} on this machine", f"There is {', '.join(known)}")


def _with_earlier(config: dict, defaults: Path) -> dict:
    """
    The bundle's own config of a verb; with the keys of the training's, if that file was given, whole, before it: the
    model zoo evaluates with ``"['train.json','evaluate.json']"``.
    """
    known = ConfigParser.load_config_file(defaults)
    if defaults.stem == "evaluate":
        training = ConfigParser.load_config_file(defaults.with_name("train.json"))
        if training.keys() <= config.keys():
            return {**training, **known}
    return known


def _judge(parser: ConfigParser, config: str) -> None:
    """Every setting is held to its type and range; what was text on the command line and is none becomes what it is."""
    values = parser.get()
    for key, value in judge(config, values).items() if config in SETTINGS else ():
        if key == "device":
            check_device(value)
        if type(value) is not type(values[key]) or value != values[key]:
            set_value(parser, key, value)


def _make_paths_absolute(parser: ConfigParser, defaults: dict) -> None:
    """A library that changes the working directory, as itk does, must not move what was given on the command line."""
    for key in [*path_keys(defaults), *_PATHS]:
        given = parser.get().get(key)
        if isinstance(given, str) and not given.startswith(("$", "@")):
            set_value(parser, key, os.path.abspath(given))


def _keys(config: dict) -> set[str]:
    sections = {
        key: value
        for key, value in config.items()
        if isinstance(value, dict) and "_target_" not in value and key not in _MONAI_KEYS
    }
    return {*config, *(f"{key}::{sub}" for key, section in sections.items() for sub in section)}


def _refuse_unknown_keys(config: dict, defaults: dict) -> None:
    unknown = unknown_keys(config, defaults)
    if not unknown:
        return
    if gone := [key for key in unknown if key in GONE]:
        raise DataError(gone[0], "there is no such key any more", GONE[gone[0]])
    known = _keys(defaults)
    hints = ", ".join(f"'{key}'{nearest(key, known)}" for key in unknown)
    settings = sorted(key for key in defaults if not isinstance(defaults[key], (dict, list)))
    raise DataError(f"unknown config key {hints}", "nothing uses it", f"Settings are {', '.join(settings)}")


def _refuse_unknown_verb(parser: ConfigParser) -> None:
    verb, config = executing_verb(), parser.get()
    if verb is None or verb in parser:
        return
    settings = {key for table in SETTINGS.values() for key in table}
    lists = {key for key, value in config.items() if isinstance(value, list)}
    verbs = sorted(lists - settings - {"imports", "initialize", "finalize", "handlers", "variants"})
    raise DataError(verb, f"there is no such verb{nearest(verb, verbs)}", f"This config has {', '.join(verbs)}")


def _strings(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        for value in config:
            yield from _strings(value)
    elif isinstance(config, str):
        yield config
