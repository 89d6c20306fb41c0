"""The command ``ama-sam``. What can be judged of a command line is judged before torch is imported."""

from __future__ import annotations

import argparse
import ast
import difflib
import gc
import json
import os
import re
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from ama_sam.commands import COMMANDS, Command
from ama_sam.places import BUNDLE, use_bundle
from ama_sam.serving import ABOUT, serve

__all__ = ["main"]

# a path that a verb writes to lies in the bundle by default, here in the current folder
_IN_BUNDLE = re.compile(r"\$os\.path\.join\(@bundle_root, '(?:output|data)'(?:, '\w+')*\)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sub-command; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    use_bundle()
    from scripts.ending import end_clearly
    from scripts.errors import DataError

    end_clearly("The same command begins again.")  # until the verb has begun, and says better how to go on
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print("usage: ama-sam COMMAND ...\n\nNuclei in H&E. Commands, each with a --help of its own:\n")
        print("\n".join(f"  {name:{width}}  {command.about}" for name, command in COMMANDS.items()))
        print(f"  {'serve':{width}}  {ABOUT}")
        return 0
    if arguments[0] == "serve":
        return serve(arguments[1:])
    name = arguments[0].replace("-", "_")
    if name not in COMMANDS:
        near = _near(arguments[0], [*COMMANDS, "serve"])
        return _refused(f"there is no command '{arguments[0]}'{near}; see ama-sam --help")
    command = COMMANDS[name]
    try:
        settings = _settings(name, command, arguments[1:])
        return _run(command, settings)
    except DataError as error:
        return _refused(str(error))


def _settings(name: str, command: Command, arguments: Sequence[str]) -> dict[str, Any]:
    """What is given, by key, judged as far as it can be without the data; exits for --help."""
    from scripts.config_files import check_config
    from scripts.errors import DataError
    from scripts.judging import judge
    from scripts.settings import SETTINGS

    defaults: dict[str, Any] = {}
    for config in command.configs:
        defaults |= json.loads((BUNDLE / "configs" / f"{config}.json").read_text(encoding="utf-8"))
    table = {key: setting for key, setting in SETTINGS[command.configs[0]].items() if key != "bundle_root"}
    further, words = _further(_one_spelling(arguments))
    known, more = _parser(name, command, table, defaults).parse_known_args(words)
    given = vars(known)
    _refuse_unknown(more, table, name, command, given)
    config_files = given.pop("config") or []
    given = {key: _read(value) for key, value in given.items() if value is not None}
    # as text, for MONAI passes over None, and the config's own value would stay
    given = {key: "none" if value is None else value for key, value in given.items()}
    given |= {key: _read(value) for key, value in further.items()}
    for file in config_files:
        check_config(file)
    judge(command.configs[0], {**defaults, **given}, given)
    path = given.get(command.source) if command.source else None
    if path and not os.path.exists(str(path)):
        raise DataError(path, "there is no such file or folder", f"Name your {command.shown.lower()}")
    if path and str(path).startswith(("$", "@", "%")):  # a file's name, and no expression
        given[command.source] = os.path.abspath(str(path))
    for key, default in defaults.items():
        if key not in given and isinstance(default, str) and _IN_BUNDLE.fullmatch(default):
            parts = re.findall(r"'(\w+)'", default)
            if (
                key != command.source or not BUNDLE.joinpath(*parts).exists()
            ):  # data that came with the bundle stay there
                given[key] = os.path.join(os.getcwd(), *parts)
    configs = [str(BUNDLE / "configs" / f"{config}.json") for config in command.configs]
    return {**given, "config_file": [*configs, *config_files]}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        from scripts.errors import DataError

        raise DataError(self.prog, message, f"See {self.prog} --help")


def _parser(name: str, command: Command, table: dict, defaults: dict) -> argparse.ArgumentParser:
    from scripts.judging import allowed

    parser = _Parser(
        prog=f"ama-sam {name}",
        description=f"{command.about[0].upper()}{command.about[1:]}. Runs the bundle's verb {command.verb}.",
        epilog="Any other key of the config can be given too, as --section::key VALUE.",
        allow_abbrev=False,
        usage=f"ama-sam {name} {command.shown + ' ' if command.source else ''}[options]",
    )
    for key, setting in table.items():
        kind = f"{allowed(setting)}{' (' + setting.unit + ')' if setting.unit else ''}"
        text = f"{setting.help}: {kind}; default {_shown(defaults[key])}".replace("%", "%%")
        if key == command.source:
            parser.add_argument(key, metavar=command.shown, nargs=None if command.needed else "?", help=text)
        else:
            flags = ["-o", "--output_dir"] if key == "output_dir" else [f"--{key}"]
            parser.add_argument(*flags, dest=key, metavar="", help=text)
    parser.add_argument("--config", action="append", metavar="", help="a config of your own, whose keys replace ours")
    return parser


def _shown(default: Any) -> str:
    if isinstance(default, str) and default.startswith("$"):
        inside = re.findall(r"'([\w.]+)'", default)
        return "/".join(inside) if default.startswith("$os.path.join") and inside else "as fits"
    return "as fits" if default is None or isinstance(default, dict) else json.dumps(default).strip('"')


def _one_spelling(arguments: Sequence[str]) -> list[str]:
    """``--max-epochs`` is ``--max_epochs``."""
    return [re.sub(r"^--[\w:-]+", lambda m: "--" + m[0][2:].replace("-", "_"), argument) for argument in arguments]


def _further(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """
    Keys below the top level, ``--a::b VALUE``, and the other words; argparse, which does not know these options, would
    take their values for what stands without one.
    """
    from scripts.errors import DataError

    found, others, words = {}, [], list(words)
    while words:
        word = words.pop(0)
        option, equals, value = word.partition("=")
        if not (option.startswith("--") and "::" in option):
            others.append(word)
            continue
        if not equals and not words:
            raise DataError(option, "it has no value", "Give one")
        found[option.removeprefix("--")] = value if equals else words.pop(0)
    return found, others


def _refuse_unknown(words: Sequence[str], table: dict, name: str, command: Command, given: dict[str, Any]) -> None:
    from scripts.errors import DataError
    from scripts.judging import nearest
    from scripts.settings import GONE

    for word in words[:1]:
        option = word.partition("=")[0]
        key = option.lstrip("-")
        if not word.startswith("-"):
            raise DataError(word, "this argument belongs to no option", _meant(word, name, command, given))
        if key in GONE:
            raise DataError(option, "there is no such option any more", GONE[key])
        raise DataError(option, f"there is no such option{nearest(key, [*table, 'config'])}", "See --help")


def _meant(word: str, name: str, command: Command, given: dict[str, Any]) -> str:
    """What a further argument was probably meant for."""
    source = given.get(command.source)
    if source is None or not os.path.exists(source):
        return "Quote what contains spaces"
    if os.path.isfile(word) or given["output_dir"] is not None:
        one_list = ", or a text file with one path a line" if command.source == "slide" else ""
        return f"One is taken at a time: of several files name the folder that holds them{one_list}"
    return f"The folder for results goes behind -o: ama-sam {name} {source} -o {word}"


def _read(text: Any) -> Any:
    """Numbers, lists and None as such, as ``monai.bundle`` reads its arguments; anything else is text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return text


def _run(command: Command, settings: dict[str, Any]) -> int:
    import logging
    import warnings

    from scripts.wording import use_commands

    from ama_sam.closing import closing_lines
    from ama_sam.importing import without_garbage_search, without_optional_packages

    # parts of a user's own may need whatever there is
    own = len(settings["config_file"]) > len(command.configs) or any("::" in key for key in settings)
    with without_garbage_search(), nullcontext() if own or not command.lean else without_optional_packages():
        from monai.bundle import run
    gc.freeze()  # what is loaded need not be searched later either
    use_commands({each.verb: f"ama-sam {name}" for name, each in COMMANDS.items() if not name.startswith("adapt")})

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    # MONAI lists its arguments, and warns that configs are code: these are the bundle's, or named with --config
    for name in ("monai.bundle.scripts", "monai.bundle.workflows", "ignite", "alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="parsing config_file")

    code = 0
    try:
        run(command.verb, bundle_root=str(BUNDLE), logging_file=False, **settings)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = 1 if isinstance(end.code, str) else int(end.code or 0)
    except Exception as error:
        from scripts.errors import DataError, root_cause

        if isinstance(error, KeyError) and (name := re.fullmatch(r"'query key: (.+)'", str(error))):  # MONAI's
            keys = [f"--{key}" for key in settings if name[1] in key.split("::")[:-1]]
            where = ", ".join(keys or settings["config_file"])
            return _refused(f"{where}: there is no '{name[1]}' at this place of the config. See {BUNDLE / 'configs'}")
        if not isinstance(cause := root_cause(error), DataError):
            raise
        return _refused(str(cause))
    for line in closing_lines(command.verb, settings):
        print(line)
    return code


def _near(name: str, names: Any) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _refused(sentence: str) -> int:
    print(f"Error: {sentence}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
