from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from mlflow.entities import Run
from scripts.data.domains import SPLITS, check_domains, domain_names
from scripts.errors import DataError
from scripts.experiments.plan import LEFT_OUT, PlannedRun
from scripts.experiments.results import RESULT
from scripts.experiments.run_progress import RunProgress
from scripts.experiments.verbs import BundleVerb, VerbFailed
from scripts.files import read_json, unused_path, write_json
from scripts.tracking.experiments import ExperimentStore
from scripts.tracking.store import how_to_look
from scripts.training.checkpoints import read_checkpoint
from tqdm import tqdm

__all__ = ["Experiment"]

_STATE, _CHECKPOINT = "state.json", "checkpoint.pt"


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
        output_dir: folder of the children's folders.
        jobs: how many children run at once; they share the processor's threads.
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
    ) -> None:
        if jobs < 1:
            raise DataError("jobs", f"{jobs} runs cannot go on at once", "Use 1 or more")
        if split not in SPLITS:
            raise DataError("split", f"there is no '{split}'", f"Use one of {', '.join(SPLITS)}")
        self.store, self.children = store, list(children)
        self.training, self.evaluating = training, evaluating
        self.split, self.domains, self.output_dir = split, check_domains(domains), Path(output_dir)
        self.jobs = jobs
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
                failed = self._run_children(todo, parent, bar)
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

    def _run_children(self, todo: Sequence[tuple[PlannedRun, Run | None]], parent: Run, bar: tqdm) -> list[str]:
        """Run them, ``jobs`` at a time; the names of those that failed."""
        failed = []
        with ThreadPoolExecutor(self.jobs) as workers:
            progress = RunProgress(bar, len(self.children))
            names = {workers.submit(self._run_child, child, run, parent, progress): child.name for child, run in todo}
            try:
                for future in as_completed(names):
                    if not future.result():
                        failed.append(names[future])
                    bar.update()
            except BaseException:
                workers.shutdown(wait=False, cancel_futures=True)
                self.training.stop()
                self.evaluating.stop()
                raise
        return failed

    def _run_child(self, child: PlannedRun, run: Run | None, parent: Run, progress: RunProgress) -> bool:
        """Train and evaluate a child; False when it failed."""
        started = time.monotonic()
        number = self.children.index(child) + 1
        progress.started(number, child.name)
        tell = partial(progress.tell, number, child.name)
        settings = self._settings(child)
        training, evaluated = child.domains(self.domains)
        if run is None:
            about = {"split": self.split, "primary": training[0]["name"], "settings": json.dumps(settings)}
            tags = {**child.tags, **about}
            run = self.store.open_child(parent, child.name, tags)
        else:
            run = self.store.reopen(run)
        folder = self.output_dir / child.name
        status, failure = "KILLED", None
        try:
            self._train(child, folder, run, settings["training"], tell)
            self._evaluate(child, folder, run, tell)
            if not self.store.holds(run, RESULT):
                raise VerbFailed(f"evaluating: the store was away, and {RESULT} is not in it")
            status = "FINISHED"
        except (VerbFailed, DataError, OSError) as error:
            status, failure = "FAILED", str(error)
            logs = [folder / f"{verb.verb}.log" for verb in (self.training, self.evaluating)]
            self.store.log_files(run, logs)
        finally:
            self.store.close(run, status, failure)
        minutes = (time.monotonic() - started) / 60
        shown = evaluated[0]["name"]
        dice = self.store.metrics(run).get(f"{shown}/dice")
        outcome = f"{shown} Dice {dice:.3f}" if failure is None and dice is not None else f"failed: {failure}"
        tqdm.write(f"{child.name}: {outcome}  ({minutes:.1f} min)")
        return failure is None

    def _train(self, child: PlannedRun, folder: Path, run: Run, identity: dict, tell: Callable[[str], None]) -> None:
        """Train, go on training, or do nothing where this child's folder holds the trained model already."""
        state_file, checkpoint = folder / _STATE, folder / _CHECKPOINT
        state = read_json(state_file) if state_file.is_file() else {}
        if "settings" not in state and (
            foreign := [file for file in (checkpoint, folder / "model.pt") if file.exists()]
        ):
            hint = "Give the experiment another name or output_dir, or move it away"
            raise DataError(foreign[0], "it was not written by an experiment and would be replaced", hint)
        if state.get("settings") != identity:
            _lay_aside(checkpoint, "of_other_settings")  # and never finished
            state = {"settings": identity, "trained": False}
            write_json(state_file, state)
        try:
            # a finished one: killed between the end of the training and the last line below
            trained = state["trained"] or (checkpoint.is_file() and read_checkpoint(checkpoint).get("finished", False))
        except DataError:
            _lay_aside(checkpoint, "unreadable")
            trained = False
        if trained and (folder / "model.pt").is_file():
            return
        settings = {
            **self._training_settings(child),
            "domains": child.domains(self.domains)[0],
            "run_name": child.name,
            "run_dir": str(folder),
            "resume": checkpoint.is_file(),
            **self.store.place(run),
        }
        try:
            self.training.run(folder, settings, child.config, self.threads, tell)
        except VerbFailed as error:
            if not settings["resume"]:
                raise
            raise VerbFailed(f"{error} (it went on from {checkpoint}: without that file it is begun anew)") from error
        write_json(state_file, {**state, "trained": True})

    def _evaluate(self, child: PlannedRun, folder: Path, run: Run, tell: Callable[[str], None]) -> None:
        settings = {
            **self._evaluating_settings(child),
            "domains": child.domains(self.domains)[1],
            "ckpt_path": str(folder / "model.pt"),
            "output_dir": str(folder / self.split),
            "run_name": child.name,
            **self.store.place(run),
        }
        self.evaluating.run(folder, settings, threads=self.threads, progress=tell)


def _named(domains: Sequence[dict]) -> dict:
    """The two verbs' keys that name these domains; where they lie is no part of what a child is."""
    primary, *auxiliary = domain_names(domains)
    return {"primary": primary, "auxiliary": auxiliary}


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


def _lay_aside(checkpoint: Path, why: str) -> None:
    """Out of the way and not away: it may be hours of training."""
    if checkpoint.is_file():
        os.replace(checkpoint, unused_path(checkpoint.with_stem(f"{checkpoint.stem}_{why}")))
