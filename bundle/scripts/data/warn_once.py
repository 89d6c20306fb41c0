"""A warning of a file that is read in every epoch."""

from __future__ import annotations

import functools
import logging

__all__ = ["warn_once"]

logger = logging.getLogger("scripts.data.readers")


@functools.cache
def warn_once(path: str, message: str) -> None:
    """Say something of a file, once in a process however often the file is read."""
    logger.warning("%s: %s", path, message)
