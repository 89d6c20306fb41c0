"""
The one place that reaches into MONAI: the parser that executes a config, and the workflow that has it do so.

MONAI hands an expression or a component the values it refers to, never the config itself, and tells nobody which
workflow is running. What has to see all keys (to refuse misspelt ones, to write down what was run) therefore finds the
parser on the call stack. ``tests/test_executed_config.py`` holds MONAI to it.
"""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

from monai.bundle import ConfigParser, ConfigWorkflow

__all__ = ["executed_config", "executing_parser", "executing_verb", "set_value"]

_Owner = TypeVar("_Owner")


def executing_parser() -> ConfigParser | None:
    """The parser whose config the caller is a component or expression of; None outside of a config."""
    return _on_the_stack(ConfigParser)


def executing_verb() -> str | None:
    """The key of the config that is run once it is initialised; None outside of a workflow."""
    workflow = _on_the_stack(ConfigWorkflow)
    return workflow.run_id if workflow is not None and workflow.parser is executing_parser() else None


def executed_config() -> dict | None:
    """The configuration that is being executed, with overrides and macros resolved; None outside of a config."""
    parser = executing_parser()
    return None if parser is None else parser.get()


def _on_the_stack(kind: type[_Owner]) -> _Owner | None:
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, kind):
            return owner
        frame = frame.f_back
    return None


def set_value(parser: ConfigParser, key: str, value: Any) -> None:
    """Give a key of the top level another value while its config is being executed; what follows sees the new one."""
    parser.get()[key] = value
    parser.ref_resolver.get_item(key).update_config(value)
    parser.ref_resolver.remove_resolved_content(key)  # it may be in use already, as the bundle's root is
