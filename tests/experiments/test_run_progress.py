"""What a user sees of an experiment's runs while they run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from scripts.experiments import run_progress, verbs
from scripts.experiments.run_progress import RunProgress, last_line
from scripts.experiments.verbs import BundleVerb
from tqdm import tqdm


def test_the_last_line_of_a_log_is_what_stands_there_now(tmp_path):
    log = tmp_path / "a.log"
    before = "an earlier run\n"
    log.write_text(before)
    assert last_line(log, len(before)) == ""
    bar = "training:  33%|███▎      | 2/6 [00:00<00:01, epoch=1]\rtraining:  50%|█████     | 3/6 [00:01<00:01, epoch=2]"
    log.write_text(f"{before}a line\n{bar}\n\n", encoding="utf-8")
    assert last_line(log, len(before)) == "training: 50% 3/6 [00:01<00:01, epoch=2]"
    log.write_text("x" * 100_000 + "\rend")
    assert last_line(log) == "end"


@pytest.mark.parametrize("terminal", [True, False])
def test_many_words_of_a_run_are_few_lines(monkeypatch, capsys, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    clock = [0.0]
    monkeypatch.setattr(run_progress.time, "monotonic", lambda: clock[0])
    with tqdm(total=3) as bar:
        progress = RunProgress(bar, 3)
        progress.started(2, "joint_seed0")
        shown = set()
        for second in range(1, 181):
            clock[0] = float(second)
            progress.tell(2, "joint_seed0", f"training: {second}")
            shown.add(bar.postfix)
    told = capsys.readouterr()
    assert "run 2 of 3: joint_seed0\n" in told.out
    lines = [line for line in told.out.splitlines() if "training" in line]
    if terminal:
        assert not lines and len(shown - {None, ""}) == 90 and "run 2 of 3: joint_seed0: training: 180" in shown
    else:
        assert lines == [f"run 2 of 3: joint_seed0: training: {second}" for second in (60, 120, 180)]


def test_a_running_verb_is_looked_at(tmp_path, monkeypatch):
    """A process in the place of the bundle's, which ends once its words were read."""
    code = "import sys, time, pathlib\nprint('half done', flush=True)\n"
    code += "while not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.01)"
    monkeypatch.setattr(verbs, "_LOOK", 0.05)
    wait = BundleVerb._wait
    command = [sys.executable, "-c", code, str(tmp_path / "read")]
    monkeypatch.setattr(BundleVerb, "_wait", lambda self, _, look, **options: wait(self, command, look, **options))

    def progress(line: str) -> None:
        if line == "half done":
            Path(tmp_path / "read").touch()

    BundleVerb("training", "train.json", {}).run(tmp_path, {}, progress=progress)
    assert (tmp_path / "read").exists()
