from __future__ import annotations

from collections.abc import Mapping

__all__ = ["command", "counted", "use_commands"]

_commands: dict[str, str] = {}


def use_commands(commands: Mapping[str, str]) -> None:
    """The user knows verbs by these commands: ``ama-sam clear_cache`` for ``clearing_cache``."""
    _commands.update(commands)


def command(verb: str) -> str:
    """How the user, who started this process, starts a verb."""
    return _commands.get(verb, f"the verb {verb}")


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """``1 image``, ``2 images``; ``1 nucleus``, ``2 nuclei``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
