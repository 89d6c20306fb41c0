"""Tasks on the workers of a Dask cluster: one of this machine, or that of a running scheduler."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import secrets
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from scripts.ending import not_interrupted
from scripts.errors import DataError

__all__ = ["on_cluster", "still_wanted"]

logger = logging.getLogger(__name__)

RETRIES = 2  # of a task that raised, as where a disk failed
CORES_EACH = 4  # of a worker, where their number is not given
LOOK = 1.0  # seconds between two looks at what goes on
BUNDLE = Path(__file__).absolute().parents[1]


def on_cluster(
    cluster: str,
    function: Callable[..., Any],
    calls: Iterable[tuple[Hashable, tuple]],
    folder: str | os.PathLike,
    environment: Mapping[str, str] | None = None,
    meanwhile: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Hashable, Any, str | None]]:
    """
    Call a function on workers, each call a task.

    A call is begun when a worker is free for it. That of a worker that died is begun again by another; after a few
    deaths, or errors, it is given up.

    Args:
        cluster: ``local``, ``local:N`` for N processes of this machine, or the address of a scheduler, whose workers
            see the same paths.
        function: of a module; a worker imports it from this bundle.
        calls: (what the call is known by, arguments); the next one is asked for when a worker is free.
        folder: of the results; each worker is asked whether it sees it.
        environment: of the workers of this machine, besides their number of threads.
        meanwhile: called about once a second.

    Yields:
        (what it is known by, what the function gave, None), or (..., None, why no worker could).

    Raises:
        DataError: when Dask is not installed, or no scheduler answers.
    """
    with _client(cluster, dict(environment or {})) as client, _mark(Path(folder)) as mark:
        import cloudpickle
        from distributed import KilledWorker, wait

        task, calls, running, told = _bootstrap(), iter(calls), {}, False
        while True:
            workers = sum(client.nthreads().values())
            for key, arguments in itertools.islice(calls, max(workers - len(running), 0)):
                # in bytes: a worker can read it when it knows where our modules are
                call = cloudpickle.dumps(functools.partial(function, *arguments))
                running[client.submit(task, str(BUNDLE), str(mark), call, pure=False, retries=RETRIES)] = key
            if not running and workers:
                return
            if not workers and not told:
                logger.warning("waiting for the workers of %s", cluster)
                told = True
            try:
                done = wait(list(running), timeout=LOOK, return_when="FIRST_COMPLETED").done if running else ()
            except TimeoutError:
                done = ()
            if not running:
                time.sleep(LOOK)
            meanwhile()
            for future in done:
                key = running.pop(future)
                try:
                    yield key, future.result(), None
                except KilledWorker:
                    yield key, None, "every worker that tried it died (of memory?)"
                except Exception as error:  # noqa: BLE001 # of the disk, or of a worker that cannot work at all
                    ours = type(error).__module__.startswith("scripts.")
                    yield key, None, str(error) if ours else f"{type(error).__name__}: {error}"


def still_wanted() -> bool:
    """In a task: whether its client still waits for it; it may have ended, and Dask stops no task that runs."""
    from distributed import get_worker

    worker = get_worker()
    task = worker.state.tasks.get(worker.get_current_task())
    return task is not None and task.state != "cancelled"


def _bootstrap() -> Callable[[str, str, bytes], Any]:
    """The task. A function within a function travels as code, so that it can tell a worker where ours is."""

    def task(bundle: str, mark: str, call: bytes) -> Any:
        import os
        import pickle  # nosec B403 # see below
        import socket
        import sys

        for path, seen in ((bundle, bundle), (os.path.dirname(mark), mark)):
            if not os.path.exists(seen):
                need = "its workers need the bundle, the data and the results on disks they share, at the same paths"
                raise FileNotFoundError(f"{path} of this machine is not that of {socket.gethostname()}: {need}")
        if bundle not in sys.path:
            sys.path.append(bundle)
        return pickle.loads(call)()  # nosec B301 # from our own client, as all that Dask sends

    return task


@contextmanager
def _mark(folder: Path) -> Iterator[Path]:
    """A file that tells this folder from one of the same path on another disk; named as what a kill may leave."""
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder.absolute() / f".cluster.{secrets.token_hex(6)}.partial"
    mark.touch()
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)


@contextmanager
def _client(cluster: str, environment: Mapping[str, str]) -> Iterator[Any]:
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
        with _closed_quietly(client):
            yield client
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = int(number or max(cores // CORES_EACH, 1))
    threads = str(max(cores // count, 1))
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    # workers tell of what they were at when they are ended; what goes wrong with a task is told by who asked for it
    quiet = {"DASK_LOGGING__DISTRIBUTED": "critical"}
    settings = {
        # what the user has set in the environment goes before
        "distributed.nanny.pre-spawn-environ": {**dict.fromkeys(names, threads), **quiet, **environment},
        "distributed.worker.daemon": False,  # workers may have processes of their own
        "distributed.worker.memory.terminate": False,  # a task's memory is bounded, and its files are no leak
        "distributed.scheduler.worker-saturation": 1.0,  # a task waits for the first worker that is free
    }
    resource_tracker.ensure_running()  # started with the first worker, it would let Ctrl-C through to that
    with dask.config.set(settings):
        with not_interrupted():
            options = {"threads_per_worker": 1, "memory_limit": None, "dashboard_address": None}
            # any port, of this machine only: beside a second cluster it would complain that its own is taken
            workers = LocalCluster(count, **options, scheduler_kwargs={"dashboard_address": "127.0.0.1:0"})
            client = Client(workers)
        with _closed_quietly(client, workers):
            yield client


@contextmanager
def _closed_quietly(*parts: Any) -> Iterator[None]:
    """Close a client, and its cluster, at the end: without a word of the tasks that an interruption leaves undone."""
    try:
        yield
    finally:
        with not_interrupted():
            logging.getLogger("distributed").setLevel(logging.CRITICAL)
            for part in parts:
                part.close()
