"""Where a training's time goes."""

from __future__ import annotations

import json
import time

import pytest
from ignite.engine import Engine, Events
from scripts.phases import PHASES, Phases
from scripts.training.timing import TimedSteps, TimeTold


class Clock:
    """Stands still until somebody works."""

    now = 100.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        self.now += seconds


def test_each_second_is_in_one_phase_and_waiting_for_data_is_told(tmp_path, capsys):
    clock = Clock()
    phases = Phases(clock)
    phases.begin(ago=5.0)  # the interpreter, and imports

    def batches():
        while True:
            clock.work(0.25)
            yield None

    validator = Engine(lambda engine, batch: clock.work(3.0))
    trainer = Engine(lambda engine, batch: clock.work(1.0))
    TimedSteps(validator, phases).attach(trainer)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: validator.run([0, 0]))
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: clock.work(0.5))
    trainer.add_event_handler(Events.COMPLETED, lambda engine: clock.work(7.0))
    TimeTold(tmp_path / "phases.json", phases).attach(trainer)

    @phases.within("checking")
    def check() -> None:
        clock.work(2.0)

    clock.work(1.0)
    check()
    with phases.within("encoding"):
        clock.work(4.0)
    trainer.run(batches(), max_epochs=2, epoch_length=4)

    expected = {
        "starting": 6.0, "checking": 2.0, "encoding": 4.0, "steps": 8 * 1.25, "validating": 2 * 6.0, "recording": 1.0,
        "labelling": 0.0, "report": 7.0, "waiting": 8 * 0.25, "total": 42.0,
    }  # fmt: skip
    assert json.loads((tmp_path / "phases.json").read_text()) == pytest.approx({**expected, "processes": 1})
    assert trainer.state.metrics == pytest.approx({f"seconds/{name}": value for name, value in expected.items()})
    told = capsys.readouterr().out
    assert told.startswith(
        "The 42 s of this process until now: starting 6 s (14%), checking data 2 s (5%), encoding features 4 s (10%)"
    )
    assert "training steps 10 s (24%), of these 2 s waiting for data, validating 12 s (29%)" in told


def test_a_real_training_tells_its_time(open_training, tmp_path):
    began = time.monotonic()
    small = {"mode": "single", "cache_windows": 1, "domain_images": 0, "overlay_images": 0}
    workflow = open_training(tmp_path, max_epochs=1, run_name="r", **small)
    workflow.run()
    passed = json.loads((tmp_path / "r" / "phases.json").read_text())
    assert passed.pop("processes") == 1
    total, waiting = passed.pop("total"), passed.pop("waiting")
    assert sum(passed.values()) == pytest.approx(total) and total < time.monotonic() - began
    assert all(passed[phase] > 0 for phase in ("starting", "checking", "encoding", "steps", "validating", "report"))
    assert 0 < waiting < passed["steps"]
    trainer = workflow.parser.get_parsed_content("train::trainer")
    assert trainer.state.metrics["seconds/total"] == total
    # nothing between the beginning and the report is left out: the clock never stood still
    assert PHASES.seconds()["starting"] == pytest.approx(passed["starting"])
