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
from fakes import TINY_TRAINING, open_verb
from scripts.tracking.experiments import ExperimentStore

psutil = pytest.importorskip("psutil")
pytest.importorskip("distributed")

NAME = "synthetic_pink"


@pytest.fixture
def settings(synthetic, encoder, tmp_path, monkeypatch) -> dict:
    """Of an experiment at its smallest: one run whose training kills its worker once, and one that fails."""
    monkeypatch.setenv("PYTHONPATH", str(Path(fakes.__file__).parent))  # of the verbs' processes
    handler = {"_target_": "fakes.KillsStarter", "told": str(tmp_path / "killed"), "epoch_length": 2}
    (tmp_path / "kills.json").write_text(json.dumps({"+train::handlers": [handler]}))
    tiny = {key: value for key, value in TINY_TRAINING.items() if key not in ("backbone", "batches_per_epoch")}
    return {
        "dataset_dir": synthetic, "auxiliary": "synthetic_dark", "cache_dir": str(tmp_path / "features"),
        "backbone": "vit_test", "backbone_weights": str(encoder[1]), "max_epochs": 2, "batches_per_epoch": 2,
        "seeds": 5, "only": None, **{f"training::settings::{k}": v for k, v in tiny.items()},
        "variants": [
            {"name": "joint", "mode": "joint", "config": str(tmp_path / "kills.json")},
            {"name": "broken", "mode": "joint", "training": {"batch_size": -1}},
        ],
    }  # fmt: skip


def runs_of(output_dir: Path) -> dict:
    store = ExperimentStore(f"sqlite:///{output_dir / 'mlruns.db'}", "ama_sam_experiments", None)
    return {run.info.run_name: run for run in store.children(store.find_parent())}


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_costs_no_run(bundle_root, settings, tmp_path, capsys):
    outputs = {cluster: tmp_path / str(cluster) for cluster in ("local:2", None)}  # the second kills nobody
    for cluster, output in outputs.items():
        with pytest.raises(SystemExit, match="1 of 2 runs failed: broken_seed5"):
            open_verb(bundle_root, "experiment", None, **settings, output_dir=str(output), cluster=cluster).run()
    killed = json.loads((tmp_path / "killed").read_text())
    assert killed["killed"] != os.getpid() and not any(psutil.pid_exists(pid) for pid in killed.values())
    folders = [output / NAME / "joint_seed5" for output in outputs.values()]
    assert json.loads((folders[0] / "training_settings.json").read_text())["resume"] is True
    for name in ("testing/metrics.csv", "testing/metrics.json"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    on_cluster, alone = (runs_of(output) for output in outputs.values())
    assert {name: run.info.status for name, run in on_cluster.items()} == {
        "joint_seed5": "FINISHED",
        "broken_seed5": "FAILED",
    }
    assert "batch_size" in on_cluster["broken_seed5"].data.tags["failure"]
    measured = [run["joint_seed5"].data.metrics[f"{NAME}/dice"] for run in (on_cluster, alone)]
    assert measured[0] == measured[1]
    assert "run 1 of 2: joint_seed5" in capsys.readouterr().out


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
def test_interrupting_leaves_nothing_running_and_the_same_command_goes_on(bundle_root, settings, tmp_path):
    """In the second epoch of a training that has a data loader of its own."""
    output, marked = tmp_path / "out", {**os.environ, "AMA_SAM_TEST_FOLDER": str(tmp_path)}
    (variant, _) = settings["variants"]
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
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=120) != 0
    assert "Interrupted: what was finished is kept." in log.read_text()
    assert len(before) > 3, "the experiment, Dask's worker, the verb and its loader"
    gone, alive = psutil.wait_procs(of_this_test(tmp_path), timeout=60)
    assert not alive, [process.cmdline() for process in alive]
    assert {run.info.status for run in runs_of(output).values()} == {"KILLED"}
