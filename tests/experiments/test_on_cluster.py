"""An experiment on a Dask cluster: a worker that is killed, or Ctrl-C, costs nothing but time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fakes
import pytest
from fakes import TINY_TRAINING, FakeVerb, domains_named, open_verb
from scripts.errors import DataError
from scripts.experiments.experiment import Experiment
from scripts.experiments.plan import PlannedRun
from scripts.experiments.verbs import VerbKilled
from scripts.tracking.experiments import ExperimentStore

psutil = pytest.importorskip("psutil")
distributed = pytest.importorskip("distributed")

NAME = "synthetic_pink"


@pytest.fixture
def settings(synthetic, encoder, tmp_path, monkeypatch) -> dict:
    """Of an experiment at its smallest: one run, whose training kills its worker once."""
    monkeypatch.setenv("PYTHONPATH", str(Path(fakes.__file__).parent))  # of the verbs' processes
    handler = {"_target_": "fakes.KillsStarter", "told": str(tmp_path / "killed"), "epoch_length": 2}
    (tmp_path / "kills.json").write_text(json.dumps({"+train::handlers": [handler]}))
    tiny = {key: value for key, value in TINY_TRAINING.items() if key not in ("backbone", "batches_per_epoch", "mode")}
    return {
        "dataset_dir": synthetic, "auxiliary": "synthetic_dark", "cache_dir": str(tmp_path / "features"),
        "backbone": "vit_test", "backbone_weights": str(encoder[1]), "max_epochs": 2, "batches_per_epoch": 2,
        "seeds": 5, "only": None, **{f"training::settings::{k}": v for k, v in tiny.items()},
        "variants": [{"name": "joint", "mode": "joint", "config": str(tmp_path / "kills.json")}],
    }  # fmt: skip


def runs_of(output_dir: Path) -> dict:
    store = ExperimentStore(f"sqlite:///{output_dir / 'mlruns.db'}", "ama_sam_experiments", None)
    return {run.info.run_name: run for run in store.children(store.find_parent())}


class Unlucky(FakeVerb):
    """Its process is killed, once, as by a full memory."""

    def run(self, folder, settings, config=None, threads=None, progress=None):
        if not folder.exists():
            folder.mkdir(parents=True)
            raise VerbKilled("training: killed by signal 9")
        super().run(folder, settings, config, threads, progress)


def test_runs_on_workers_end_in_the_store_and_failures_in_the_list(tmp_path, capsys):
    """With verbs that take no time, on a worker in a thread of this process."""
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "protocol": "tcp://"}
    store = ExperimentStore(f"sqlite:///{tmp_path / 'mlruns.db'}", "ama_sam_experiments", "tnbc")
    children = [PlannedRun(mode, mode, 0) for mode in ("joint", "ama")]
    verbs = Unlucky("training", fails={"joint_seed0"}), FakeVerb("evaluating")
    with distributed.LocalCluster(**options, dashboard_address=None) as workers:
        common = {"split": "testing", "domains": domains_named("tnbc"), "output_dir": tmp_path / "tnbc"}
        experiment = Experiment(store, children, *verbs, **common, cluster=workers.scheduler_address)
        with pytest.raises(SystemExit, match="1 of 2 runs failed: joint_seed0"):
            experiment.run()
    runs = runs_of(tmp_path)
    assert {name: run.info.status for name, run in runs.items()} == {"joint_seed0": "FAILED", "ama_seed0": "FINISHED"}
    assert runs["joint_seed0"].data.tags["failure"] == "training: it broke"
    assert "ama_seed0: tnbc Dice 0.500" in capsys.readouterr().out
    with pytest.raises(DataError, match="jobs: a cluster runs as many at once as it has workers"):
        Experiment(store, children, *verbs, **common, jobs=2, cluster="local")


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_costs_no_run(bundle_root, settings, tmp_path):
    outputs = {cluster: tmp_path / str(cluster) for cluster in ("local:2", None)}  # the second kills nobody
    for cluster, output in outputs.items():
        open_verb(bundle_root, "experiment", None, **settings, output_dir=str(output), cluster=cluster).run()
    killed = json.loads((tmp_path / "killed").read_text())
    assert killed["killed"] != os.getpid() and not any(psutil.pid_exists(pid) for pid in killed.values())
    folders = [output / NAME / "joint_seed5" for output in outputs.values()]
    assert json.loads((folders[0] / "training_settings.json").read_text())["resume"] is True
    for name in ("history.csv", "testing/metrics.csv", "testing/nuclei.csv"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    on_cluster, alone = (runs_of(output)["joint_seed5"] for output in outputs.values())
    assert on_cluster.info.status == "FINISHED"
    assert on_cluster.data.metrics[f"{NAME}/dice"] == alone.data.metrics[f"{NAME}/dice"]


def of_this_test(folder: Path) -> list[psutil.Process]:
    """Processes that know of its folder, from their command line or environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder) in " ".join([*process.cmdline(), *process.environ().values()]):
                found.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


@pytest.mark.slow
def test_interrupting_leaves_nothing_running(bundle_root, settings, tmp_path):
    """In the second epoch of a training that has a data loader of its own."""
    output, marked = tmp_path / "out", {**os.environ, "AMA_SAM_TEST_FOLDER": str(tmp_path)}
    (variant,) = settings["variants"]
    settings |= {"variants": [{**variant, "training": {"max_epochs": 200}}], "training::settings::num_workers": 1}
    (tmp_path / "killed").touch()
    file = tmp_path / "overlay.json"
    file.write_text(json.dumps({**settings, "cluster": "local:1", "output_dir": str(output)}))
    files = repr([str(bundle_root / "configs" / "experiment.json"), str(file)])
    command = [sys.executable, "-m", "monai.bundle", "run", "experimenting", "--config_file", files]
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    log = tmp_path / "log"
    with log.open("w") as told:
        options = {"stdout": told, "stderr": told, "env": marked, "preexec_fn": heed, "start_new_session": True}
        with subprocess.Popen([*command, "--bundle_root", str(bundle_root)], **options) as process:
            checkpoint = output / NAME / "joint_seed5" / "checkpoint.pt"
            deadline = time.monotonic() + 300
            while not checkpoint.exists():
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            before = of_this_test(tmp_path)
            os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to all
            assert process.wait(timeout=120) != 0
    told = log.read_text()
    assert told.count("Interrupted: what was finished is kept.") == 1 and "Traceback" not in told
    assert "distributed" not in told and len(told.partition("Interrupted: ")[2].strip().splitlines()) == 2
    assert len(before) > 3, "the experiment, Dask's worker, the verb and its loader"
    gone, alive = psutil.wait_procs(of_this_test(tmp_path), timeout=60)
    assert not alive, [process.cmdline() for process in alive]
    assert {run.info.status for run in runs_of(output).values()} == {"KILLED"}
