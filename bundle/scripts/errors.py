from __future__ import annotations

import os

__all__ = ["DataError", "root_cause"]


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


def root_cause(error: BaseException) -> BaseException:
    """The error a user should read: the first DataError among the causes, for it says all, else the innermost one."""
    while error.__cause__ is not None and not isinstance(error, DataError):
        error = error.__cause__
    return error
