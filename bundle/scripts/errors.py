from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

__all__ = ["DataError", "all_of", "only_warned", "root_cause"]


class DataError(ValueError):
    """
    A file or setting that cannot be used, told in one sentence a user can act on.

    Args:
        path: the file, folder or config key at fault.
        problem: what is wrong with it.
        hint: what the user can do about it.
    """

    def __init__(self, path: str | os.PathLike, problem: str, hint: str) -> None:
        self.path, self.problem, self.hint = str(path), problem, hint
        super().__init__(f"{self.path}: {problem}. {hint}")

    def __reduce__(self):
        # exceptions cross process borders in data-loader workers; the default would call __init__ with one argument
        return DataError, (self.path, self.problem, self.hint)


def all_of(errors: Iterable[DataError]) -> DataError:
    """One error that tells of several: the first one's, and below it a line for each of the others."""
    first, *others = errors
    return DataError(first.path, first.problem, first.hint + "".join(f"\n{error}" for error in others))


def root_cause(error: BaseException) -> BaseException:
    """The error a user should read: the first DataError among the causes, for it says all, else the innermost one."""
    while error.__cause__ is not None and not isinstance(error, DataError):
        error = error.__cause__
    return error


@contextmanager
def only_warned(logger: logging.Logger, what: str) -> Iterator[None]:
    """
    What goes wrong inside becomes a warning, for hours of training end there.

    Args:
        logger: that of the module.
        what: what is lost by it.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001
        cause = root_cause(error)
        logger.warning("%s: %s", what, cause, exc_info=not isinstance(cause, DataError))
