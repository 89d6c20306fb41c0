from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from mlflow.entities import Run
from scripts.cluster import on_cluster
from scripts.data.domains import SPLITS, check_domains, domain_names, is_labelled, training_domains
from scripts.errors import DataError
from scripts.experiments.child import Child, NotWanted, run_on_worker
from scripts.experiments.plan import LEFT_OUT, PlannedRun
from scripts.experiments.results import RESULT
from scripts.experiments.run_progress import RunProgress
from scripts.experiments.verbs import BundleVerb, VerbFailed
from scripts.tracking.experiments import ExperimentStore
from scripts.tracking.store import how_to_look
from tqdm import tqdm

__all__ = ["Experiment"]

# said once, for all children and both verbs
_OWN = {"dataset_dir", "primary", "auxiliary", "unlabelled", "domains"}


class Experiment:
    """
    Trains and evaluates planned runs, each filed in MLflow as a child run of the experiment's.

    A child run carries the parameters, curves and artefacts of its training, and the metrics and ``metrics.csv`` of
    its evaluation. Run again, the experiment skips what is finished, goes on with what was interrupted (from its
    checkpoint, if an epoch was completed), and tries again what failed. A child that fails is recorded with the
    reason and does not stop the others.

    In ``output_dir`` each child has a folder of its name: the training's files, ``<verb>_settings.json`` and
    ``<verb>.log`` of both verbs, and the evaluation's files in ``<split>/``. A checkpoint that is not gone on
    with is kept there under another name; a folder that holds a training of somebody else's is refused.

    Args:
        store: where the runs are filed.
        children: what is run.
        training, evaluating: the two verbs.
        split: evaluated part of the data; another split evaluates the same trained models in child runs of its own.
        domains: the domain list; a child that leaves out a domain is evaluated on that one, and trained on the others.
            Labels of an unlabelled domain are read by the evaluation alone.
        output_dir: folder of the children's folders.
        jobs: how many children run at once; they share the processor's threads.
        cluster: the workers of a Dask cluster run them instead, see :func:`on_cluster`. Runs are opened and closed in
            MLflow by this process; what a verb records comes from the worker, so it must reach the store.
    """

    def __init__(
        self,
        store: ExperimentStore,
        children: Sequence[PlannedRun],
        training: BundleVerb,
        evaluating: BundleVerb,
        split: str,
        domains: Sequence[dict],
        output_dir: str | os.PathLike,
        jobs: int = 1,
        cluster: str | None = None,
    ) -> None:
        if jobs < 1:
            raise DataError("jobs", f"{jobs} runs cannot go on at once", "Use 1 or more")
        if cluster is not None and jobs > 1:
            raise DataError("jobs", "a cluster runs as many at once as it has workers", "Leave it out")
        if split not in SPLITS:
            raise DataError("split", f"there is no '{split}'", f"Use one of {', '.join(SPLITS)}")
        self.store, self.children = store, list(children)
        self.training, self.evaluating = training, evaluating
        self.split, self.domains, self.output_dir = split, check_domains(domains), Path(output_dir)
        self._check_children()
        self.jobs, self.cluster = jobs, cluster
        self.threads = None if jobs == 1 else max(1, torch.get_num_threads() // jobs)

    def run(self) -> None:
        """
        Run what is not finished.

        Raises:
            DataError: before anything runs, when a finished child was made with other settings, or those of the parent
                leave out domains and these do not, or the other way round.
            SystemExit: at the end, when children failed.
        """
        parent = self.store.open_parent({"primary": self.domains[0]["name"]})
        status = "KILLED"
        try:
            todo = self._todo(self.store.children(parent))
            done = len(self.children) - len(todo)
            print(f"{len(self.children)} runs of '{self.store.name}' on {self.split}: {done} finished before")
            # the bar's time to go counts only what is run now
            bar = tqdm(total=len(self.children), initial=done, desc="experiment", unit="run", smoothing=0)
            with bar, _ended_by_sigterm():
                self._progress = RunProgress(bar, len(self.children))
                failed = (self._run_here if self.cluster is None else self._run_on_cluster)(todo, parent)
            status = "FAILED" if failed else "FINISHED"
        except Exception:
            status = "FAILED"
            raise
        finally:
            self.store.close(parent, status)
            print(how_to_look(self.store.tracking_uri))
        if failed:
            raise SystemExit(
                f"{len(failed)} of {len(self.children)} runs failed: {', '.join(failed)}. The reasons are above, "
                f"in MLflow's tag 'failure' and in the logs in {self.output_dir}; run this again to try them again"
            )

    def _check_children(self) -> None:
        """What would end each child, or be read by none of them."""
        of_all = [("training::settings", self.training.settings), ("evaluating::settings", self.evaluating.settings)]
        given = [*of_all, *((f"variants: {c.variant}", {**c.training, **c.evaluating}) for c in self.children)]
        for key, settings in given:
            for name in sorted(_OWN.intersection(settings)):
                raise DataError(key, f"'{name}' is the experiment's own key", f"Give it as --{name}, for all")
        for child in self.children:
            training_domains(child.domains(self.domains)[0], child.mode)

    def _todo(self, recorded: Sequence[Run]) -> list[tuple[PlannedRun, Run | None]]:
        """The children that are not finished, each with its unfinished run to go on with, if there is one."""
        kinds = {run.data.tags.get(LEFT_OUT) is None for run in recorded}
        if kinds - {child.left_out is None for child in self.children}:
            what = "leaves out no domain" if True in kinds else "leaves out domains"
            raise DataError("name", f"the experiment '{self.store.name}' {what}", "Give this one another --name")
        todo = []
        for child in self.children:
            settings = self._settings(child)
            runs = [run for run in recorded if child.tags.items() <= run.data.tags.items()]
            here = [run for run in runs if run.data.tags["split"] == self.split]
            for run in runs:
                earlier = json.loads(run.data.tags["settings"])
                # on another split the evaluation's settings may differ, but the trained model is the same
                verbs = list(settings) if run in here else ["training"]
                changed = _difference({v: earlier[v] for v in verbs}, {v: settings[v] for v in verbs})
                if run.info.status == "FINISHED" and changed:
                    raise DataError(
                        f"{self.store.name}/{child.name}",
                        f"it is finished, but with other settings ({changed})",
                        "Give this experiment another --name, or delete that run in MLflow",
                    )
            if not any(run.info.status == "FINISHED" for run in here):
                same = [run for run in here if json.loads(run.data.tags["settings"]) == settings]
                todo.append((child, same[0] if same else None))
        return todo

    def _settings(self, child: PlannedRun) -> dict[str, dict]:
        """What the child is made of by verb; recorded with its run, so that it is known again."""
        return {
            "training": self.training.identity(self._training_settings(child), child.config),
            "evaluating": self.evaluating.identity(self._evaluating_settings(child), None),
        }

    def _training_settings(self, child: PlannedRun) -> dict:
        training, _ = child.domains(self.domains)
        own = {"mode": child.mode, "seed": child.seed, "limit_groups": child.limit_groups}
        return {**child.training, **own, **_named(training)}

    def _evaluating_settings(self, child: PlannedRun) -> dict:
        _, evaluated = child.domains(self.domains)
        return {**child.evaluating, "split": self.split, **_named(evaluated)}

    def _open(self, child: PlannedRun, run: Run | None, parent: Run) -> _Opened:
        """Open the child's run, or go on in an unfinished one, and make its verbs ready."""
        settings = self._settings(child)
        training, evaluated = child.domains(self.domains)
        if run is None:
            about = {"split": self.split, "primary": training[0]["name"], "settings": json.dumps(settings)}
            run = self.store.open_child(parent, child.name, {**child.tags, **about})
        else:
            run = self.store.reopen(run)
        folder, both = self.output_dir / child.name, {"run_name": child.name, **self.store.place(run)}
        train = {**self._training_settings(child), "domains": training, "run_dir": str(folder), **both}
        paths = {"ckpt_path": str(folder / "model.pt"), "output_dir": str(folder / self.split)}
        evaluate = {**self._evaluating_settings(child), "domains": evaluated, **paths, **both}
        identity = settings["training"]
        verbs = Child(folder, self.training, self.evaluating, identity, train, evaluate, child.config, self.threads)
        self._progress.started(self.children.index(child) + 1, child.name)
        return _Opened(child, run, verbs, evaluated[0]["name"])

    def _tell(self, opened: _Opened, line: str) -> None:
        self._progress.tell(self.children.index(opened.planned) + 1, opened.planned.name, line)

    def _close(self, opened: _Opened, failure: str | None) -> bool:
        """End a child's run and say how it went; False when it failed."""
        run, name = opened.run, opened.planned.name
        if failure is None and not self.store.holds(run, RESULT):
            failure = f"evaluating: the store was away, and {RESULT} is not in it"
        if failure is not None:
            self.store.log_files(run, opened.verbs.logs)
        self.store.close(run, "FINISHED" if failure is None else "FAILED", failure)
        minutes = (time.time() - opened.since) / 60
        dice = self.store.metrics(run).get(f"{opened.shown}/dice")
        outcome = f"{opened.shown} Dice {dice:.3f}" if failure is None and dice is not None else f"failed: {failure}"
        tqdm.write(f"{name}: {outcome}  ({minutes:.1f} min)")
        return failure is None

    def _run_here(self, todo: Sequence[tuple[PlannedRun, Run | None]], parent: Run) -> list[str]:
        """Run them, ``jobs`` at a time; the names of those that failed."""
        failed, stopped = [], threading.Event()
        with ThreadPoolExecutor(self.jobs) as workers:
            names = {workers.submit(self._run_one, child, run, parent, stopped): child.name for child, run in todo}
            try:
                for future in as_completed(names):
                    if not future.result():
                        failed.append(names[future])
                    self._progress.bar.update()
            except BaseException:
                workers.shutdown(wait=False, cancel_futures=True)
                stopped.set()
                raise
        return failed

    def _run_one(self, child: PlannedRun, run: Run | None, parent: Run, stopped: threading.Event) -> bool:
        opened, failure, done = self._open(child, run, parent), None, False

        def tell(line: str) -> None:
            if stopped.is_set():
                raise NotWanted(child.name)
            self._tell(opened, line)

        try:
            opened.verbs.run(tell)
            done = True
        except (VerbFailed, DataError, OSError) as error:
            failure, done = str(error), True
        finally:
            if not done:
                self.store.close(opened.run, "KILLED")
        return self._close(opened, failure)

    def _run_on_cluster(self, todo: Sequence[tuple[PlannedRun, Run | None]], parent: Run) -> list[str]:
        """Run them on the cluster's workers; the names of those that failed."""
        failed: list[str] = []
        running: dict[str, _Opened] = {}

        def calls() -> Iterator[tuple[str, tuple[Child]]]:
            for child, run in todo:
                running[child.name] = self._open(child, run, parent)
                yield child.name, (running[child.name].verbs,)

        def look() -> None:
            for opened in running.values():
                self._tell(opened, opened.verbs.last_words(opened.since))

        tasks = on_cluster(self.cluster, run_on_worker, calls(), self.output_dir, meanwhile=look)
        try:
            with closing(tasks):
                for name, failure, problem in tasks:
                    if not self._close(running.pop(name), problem or failure):
                        failed.append(name)
                    self._progress.bar.update()
        finally:
            for opened in running.values():
                self.store.close(opened.run, "KILLED")
        return failed


@dataclass(frozen=True)
class _Opened:
    """A child that is run: its run in MLflow, its verbs, the domain whose Dice is told."""

    planned: PlannedRun
    run: Run
    verbs: Child
    shown: str
    since: float = field(default_factory=time.time)


def _named(domains: Sequence[dict]) -> dict:
    """The two verbs' keys that name these domains; where they lie is no part of what a child is."""
    primary, *auxiliary = domain_names(domains)
    without = [domain["name"] for domain in domains if not is_labelled(domain)]
    return {"primary": primary, "auxiliary": auxiliary, **({"unlabelled": without} if without else {})}


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends like Ctrl-C: the running verb is stopped and its run is closed, not left behind."""

    def stop(*_) -> None:
        raise SystemExit("terminated")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _difference(earlier: dict, now: dict) -> str:
    """What differs between two settings, e.g. ``training max_epochs: 8, now 16``."""
    found = []
    for verb in now:
        before, after = earlier.get(verb, {}), now[verb]
        found += [
            f"{verb} {key}: {before.get(key)!r}, now {after.get(key)!r}"
            for key in sorted({*before, *after})
            if before.get(key) != after.get(key)
        ]
    return "; ".join(found)
