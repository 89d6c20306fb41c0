from __future__ import annotations

import functools
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from scripts.errors import DataError, root_cause
from tqdm import tqdm

__all__ = ["attempt", "segment_on_worker"]


def attempt(segmenter: Callable[[str, Path], dict[str, Any]], slide: str, folder: str | os.PathLike) -> dict[str, Any]:
    """
    Segment one slide, here or on a worker; one that cannot be used stops no other.

    Returns:
        ``nuclei``, ``pictures`` and ``arithmetic`` of a finished slide, ``problem`` of one that cannot be used.

    Raises:
        OSError: when the disk is full or gone: what is finished of the slide is kept for the next run.
    """
    try:
        summary = segmenter(slide, Path(folder))
    except OSError:
        raise
    except Exception as error:  # whatever is wrong with one slide, the others go on
        cause = root_cause(error)
        return {"problem": str(cause) if isinstance(cause, DataError) else f"{type(cause).__name__}: {cause}"}
    pictures = ["overview.jpg", *summary.get("overlays", ())]  # of 0.6 and before: none of tiles
    arithmetic = summary.get("settings", {}).get("arithmetic", "float32")
    return {"nuclei": summary["nuclei"], "pictures": pictures, "arithmetic": arithmetic}


def segment_on_worker(config: str, slide: str, folder: str) -> dict[str, Any]:
    """
    :func:`attempt` with the segmenter of a config, as JSON: a worker makes network and segmenter once.

    A slide that another worker began is gone on with, for its finished tiles are journaled.
    """
    return attempt(_segmenter(config), slide, folder)


@functools.lru_cache(maxsize=1)
def _segmenter(config: str) -> Callable[[str, Path], dict[str, Any]]:
    tqdm.set_lock(threading.RLock())  # its own, among processes, would be left behind by a worker that is ended
    parser = ConfigParser(json.loads(config))
    parser.get_parsed_content("initialize")
    if parser.get_parsed_content("compile"):
        parser.get_parsed_content("network").compile()
    return parser.get_parsed_content("segmenter")
