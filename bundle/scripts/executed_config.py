"""
The one place that reaches into MONAI: the parser that executes a config.

MONAI hands an expression or a component the values it refers to, never the config itself, and tells nobody which
workflow is running. What has to see all keys (to refuse misspelt ones, to write down what was run) therefore finds the
parser on the call stack. ``tests/test_executed_config.py`` holds MONAI to it.
"""

from __future__ import annotations

import inspect
from typing import Any

from monai.bundle import ConfigParser

__all__ = ["executed_config", "executing_parser", "set_value"]


def executing_parser() -> ConfigParser | None:
    """The parser whose config the caller is a component or expression of; None outside of a config."""
    frame = inspect.currentframe()
    while frame is not None:
        parser = frame.f_locals.get("self")
        if isinstance(parser, ConfigParser):
            return parser
        frame = frame.f_back
    return None


def executed_config() -> dict | None:
    """The configuration that is being executed, with overrides and macros resolved; None outside of a config."""
    parser = executing_parser()
    return None if parser is None else parser.get()


def set_value(parser: ConfigParser, key: str, value: Any) -> None:
    """Give a key of the top level another value while its config is being executed; what follows sees the new one."""
    parser.get()[key] = value
    parser.ref_resolver.get_item(key).update_config(value)
    parser.ref_resolver.remove_resolved_content(key)  # it may be in use already, as the bundle's root is
