"""How a process ends: with one line instead of a traceback, also on Ctrl-C, a full disk or its parent's end."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from scripts.errors import DataError, root_cause

__all__ = [
    "ENDS_WITH_STDIN",
    "FULL",
    "end_clearly",
    "end_with_parent",
    "from_now_on",
    "not_interrupted",
    "when_interrupted",
]

# set for a verb by the process that started it, and that holds its standard input open as long as it lives
ENDS_WITH_STDIN = "AMA_SAM_ENDS_WITH_STDIN"

FULL = (errno.ENOSPC, errno.EDQUOT)  # of an OSError: the disk, or one's part of it
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)

_callbacks: list[Callable[[], None]] = []
_how_to_go_on = ""


class Terminated(KeyboardInterrupt):
    """SIGTERM: schedulers and ``kill`` send it; it ends a run as Ctrl-C does."""


def end_clearly(how_to_go_on: str) -> None:
    """
    From now on errors end with their cause on the last line; Ctrl-C, SIGTERM, a full disk and what may not be read or
    written in two lines at most.

    Args:
        how_to_go_on: what a user does after an interruption, until :func:`from_now_on` says otherwise.
    """
    from_now_on(how_to_go_on)

    def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        cause = root_cause(error)
        if isinstance(error, KeyboardInterrupt):
            for callback in _callbacks:
                callback()
            what = "Ended by SIGTERM" if isinstance(error, Terminated) else "Interrupted"
            print(f"\n{what}: what was finished is kept.\n{_how_to_go_on}", file=sys.stderr)
        elif isinstance(cause, OSError) and cause.errno in FULL:
            place = f" ({cause.filename})" if cause.filename else ""
            print(f"\nError: the disk is full{place}. Make room. {_how_to_go_on}", file=sys.stderr)
        elif isinstance(cause, OSError) and cause.errno in FORBIDDEN and cause.filename:
            told = f"{cause.filename}: {cause.strerror}. Choose another place, or change its rights."
            print(f"\nError: {told}", file=sys.stderr)
        else:
            _print_cause_last(kind, error, trace)

    sys.excepthook = hook
    for handler in logging.getLogger().handlers:
        handler.addFilter(_says_something)
    ours = threading.current_thread() is threading.main_thread()
    if ours and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)
    if os.environ.pop(ENDS_WITH_STDIN, None):
        threading.Thread(target=_end_with_stdin, daemon=True).start()


def from_now_on(how_to_go_on: str) -> None:
    """Work has come so far that a user goes on in another way after an interruption."""
    global _how_to_go_on
    _how_to_go_on = how_to_go_on


def when_interrupted(callback: Callable[[], None]) -> None:
    """Have something done when Ctrl-C or SIGTERM ends the process."""
    _callbacks.append(callback)


def end_with_parent() -> None:
    """In a worker process: Ctrl-C, which reaches all of them, is the parent's to answer, without tracebacks of each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def not_interrupted() -> Iterator[None]:
    """
    Ctrl-C and SIGTERM wait for the end of a step of some seconds that leaves things half open where it is cut short.

    Processes that it starts never hear of Ctrl-C, which a terminal sends to all: who started them ends them.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone is interrupted
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in before.items() if callable(handler)}
    for number in before:
        signal.signal(number, lambda number, frame: came.append(number))
    block = getattr(signal, "pthread_sigmask", lambda *_: set())  # Windows has none
    mask = block(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        block(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def _end_with_stdin() -> None:
    """
    End when whoever started this process is gone, even by SIGKILL: what is half-written is left as by a kill.

    The input ends then, on every system; a parent-death signal is Linux's alone, and comes when a thread ends.
    """
    while os.read(0, 1):
        pass
    os._exit(1)


def _terminate(number: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not stop what ends the run
    raise Terminated


def _says_something(record: logging.LogRecord) -> bool:
    """Ignite tells of exceptions by their text, and an interruption has none."""
    return not (record.name.startswith("ignite") and record.getMessage().endswith("due to exception: "))


def _print_cause_last(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """MONAI wraps errors of config expressions several times; a user needs the innermost one, last on the screen."""
    cause = root_cause(error)
    if not isinstance(cause, DataError):  # that one says all there is to say, without the way the code took to it
        traceback.print_exception(kind, error, trace)
    if cause is not error:
        print(f"\nError: {cause}", file=sys.stderr)
