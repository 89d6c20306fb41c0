from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from scripts.errors import DataError, root_cause

__all__ = ["attempt", "on_cluster"]

RETRIES = 2  # where a disk failed
CORES_EACH = 4  # of a worker, where their number is not given


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


def on_cluster(
    cluster: str, config: Mapping[str, Any], folders: Mapping[str, Path]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """
    Segment slides on the workers of a Dask cluster, each slide a task.

    A worker makes network and segmenter from the same config, once. The slide of a worker that died is begun again by
    another, or rather gone on with, for its finished tiles are journaled; after a few deaths it is given up.

    Args:
        cluster: ``local``, ``local:N`` for N processes of this machine, or the address of a scheduler, whose workers
            see the same paths.
        config: the executed configuration.
        folders: of the results, by slide.

    Yields:
        (slide, what :func:`attempt` gives) as slides are done; of one that no worker could finish, ``problem``.

    Raises:
        DataError: when Dask is not installed, or no scheduler answers.
    """
    text = json.dumps({key: value for key, value in config.items() if key != "_meta_"}, default=str)
    with _client(cluster) as client:
        from distributed import KilledWorker, as_completed

        task, root = _bootstrap(), config["bundle_root"]
        slides = {
            client.submit(task, root, text, slide, str(folder), pure=False, retries=RETRIES): slide
            for slide, folder in folders.items()
        }
        for future in as_completed(slides):
            try:
                outcome = future.result()
            except KilledWorker:
                outcome = {"problem": "every worker that tried it died (of memory?)"}
            except Exception as error:  # of the disk, or of a worker that cannot work at all
                outcome = {"problem": f"{type(error).__name__}: {error}"}
            yield slides[future], outcome


def segment_on_worker(config: str, slide: str, folder: str) -> dict[str, Any]:
    """:func:`attempt` with the segmenter of a config, as JSON."""
    return attempt(_segmenter(config), slide, folder)


@functools.lru_cache(maxsize=1)
def _segmenter(config: str) -> Callable[[str, Path], dict[str, Any]]:
    parser = ConfigParser(json.loads(config))
    parser.get_parsed_content("initialize")
    if parser.get_parsed_content("compile"):
        parser.get_parsed_content("network").compile()
    return parser.get_parsed_content("segmenter")


def _bootstrap() -> Callable[[str, str, str, str], dict[str, Any]]:
    """The task. A function within a function travels as code, so that it can tell a worker where ours is."""

    def task(bundle_root: str, config: str, slide: str, folder: str) -> dict[str, Any]:
        import sys

        if bundle_root not in sys.path:
            sys.path.append(bundle_root)
        from scripts.slides.cluster import segment_on_worker

        return segment_on_worker(config, slide, folder)

    return task


@contextmanager
def _client(cluster: str) -> Iterator[Any]:
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError as error:
        hint = "Install it: pip install -r requirements-cluster.txt"
        raise DataError("cluster", f"Dask is not installed ({error})", hint) from None
    logging.getLogger("distributed").setLevel(logging.ERROR)  # it tells of each worker that comes, goes or dies
    kind, _, number = cluster.partition(":")
    if kind != "local":
        try:
            client = Client(cluster)
        except (OSError, ValueError) as error:
            raise DataError("cluster", f"no scheduler answers at {cluster} ({error})", "Is it running?") from None
        with client:
            yield client
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = int(number or max(cores // CORES_EACH, 1))
    threads = str(max(cores // count, 1))
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    settings = {
        # what the user has set in the environment goes before
        "distributed.nanny.pre-spawn-environ": {**dict.fromkeys(names, threads), "TQDM_DISABLE": "1"},
        "distributed.worker.daemon": False,  # workers may have processes of their own
        "distributed.worker.memory.terminate": False,  # a slide's memory is bounded, and its files are no leak
        "distributed.scheduler.worker-saturation": 1.0,  # a slide waits for the first worker that is free
    }
    with (
        dask.config.set(settings),
        LocalCluster(count, threads_per_worker=1, dashboard_address=None, memory_limit=None) as workers,
        Client(workers) as client,
    ):
        yield client
