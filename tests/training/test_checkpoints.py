"""Which weights are kept, and what a checkpoint brings back, on a training whose validation scores are given."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine, Events
from monai.optimizers import WarmupCosineSchedule
from scripts.errors import DataError
from scripts.training import keeping
from scripts.training.checkpoints import FinishedRun, ScheduleState, TrainingCheckpoint, check_resume, read_checkpoint
from scripts.training.keeping import EarlyStop, KeptModel

NONE = None  # no validation took place


class Settings:
    """Run settings that are the same or not."""

    def __init__(self, changes=(), version="1") -> None:
        self._changes, self.version = list(changes), version

    def record(self) -> dict:
        return {"version": self.version, "values": {}}

    def changes(self, record) -> list[str]:
        return self._changes


@pytest.fixture
def saved(monkeypatch):
    """Provenance of each model that was written, in order."""
    models = []
    monkeypatch.setattr(keeping, "save_model", lambda path, network, provenance, about: models.append(provenance))
    return models


def train(tmp_path, scores, stop_after=None, start=None, resume=False, parts=None, patience=0, **options):
    """Train with a score (or none) after each epoch; as if killed in the epoch behind ``stop_after``. The KeptModel."""
    kept = KeptModel(torch.nn.Identity(), tmp_path / "model.pt", {"by": "test"}, start=start, **options)
    trainer = Engine(lambda engine, batch: None)
    trainer.state.device = torch.device("cpu")

    @trainer.on(Events.EPOCH_STARTED)
    def kill(engine):
        if stop_after is not None and engine.state.epoch > stop_after:
            raise KeyboardInterrupt

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate(engine):
        score = scores[engine.state.epoch - 1]
        engine.state.metrics = {} if score is None else {"val_dice": score}

    path, stop = tmp_path / "checkpoint.pt", EarlyStop(kept, patience)
    TrainingCheckpoint(path, parts or {}, kept, stop, {"kind": "t"}, Settings(), resume).attach(trainer)
    FinishedRun(path).attach(trainer)
    if stop_after is None:
        trainer.run([0, 0], max_epochs=len(scores))
    else:
        with pytest.raises(KeyboardInterrupt):
            trainer.run([0, 0], max_epochs=len(scores))
    return kept


def epochs(saved) -> list[tuple]:
    return [(told["epoch"], told.get("val_dice")) for told in saved]


@pytest.mark.parametrize(
    "keep, scores, written",
    [
        ("best", [0.3, 0.2, 0.3, 0.4], [(1, 0.3), (4, 0.4)]),  # as good as before is no better
        ("last", [0.3, 0.2, NONE], [(1, 0.3), (2, 0.2), (3, NONE)]),
        ("best", [0.3, NONE, NONE], [(1, 0.3)]),
        ("last", [NONE, NONE, 0.1, NONE, NONE], [(3, 0.1), (5, NONE)]),  # nothing of a best between
        ("best", [NONE, NONE], [(2, NONE)]),
        ("last", [NONE, NONE], [(2, NONE)]),
        ("best", [0.0, 0.0], [(1, 0.0)]),  # a score of 0 is a score
    ],
)
def test_which_epochs_are_written(tmp_path, saved, keep, scores, written):
    train(tmp_path, scores, keep=keep)
    assert epochs(saved) == written and saved[0]["by"] == "test"


def test_what_is_told_at_the_end(tmp_path, saved, caplog):
    caplog.set_level("INFO")
    train(tmp_path, [0.3, 0.2])
    train(tmp_path, [0.3, 0.2], keep="last")
    train(tmp_path, [NONE, NONE])
    told = [r.getMessage().partition(": ")[2] for r in caplog.records if r.name.endswith("keeping")]
    assert told[0] == "best val_dice 0.3000, epoch 1"
    assert told[1] == "last epoch, 2; best val_dice 0.3000, epoch 1"
    assert told[2].endswith("model.pt holds the last epoch, 2")


@pytest.mark.parametrize("patience, last", [(0, 7), (1, 2), (2, 6), (3, 7)])
def test_patience_counts_validations_without_a_new_best(tmp_path, saved, patience, last):
    scores = [0.3, 0.3, 0.4, 0.5, 0.5, 0.4, 0.1]
    train(tmp_path, scores, patience=patience)
    assert read_checkpoint(tmp_path / "checkpoint.pt")["epoch"] == last


def test_epochs_without_validation_are_not_counted(tmp_path, saved):
    train(tmp_path, [0.3, NONE, NONE, 0.2, NONE], patience=2)
    assert read_checkpoint(tmp_path / "checkpoint.pt")["epoch"] == 5


def test_a_resumed_run_remembers_its_best_and_its_patience(tmp_path, saved):
    scores = [0.5, 0.2, 0.4, 0.3, 0.9]
    train(tmp_path, scores, stop_after=2, patience=3)
    assert epochs(saved) == [(1, 0.5)]
    kept = train(tmp_path, scores, resume=True, patience=3)
    assert epochs(saved) == [(1, 0.5)], "the best before the interruption was better"
    content = read_checkpoint(tmp_path / "checkpoint.pt")
    assert (kept.best, kept.best_epoch, content["parts"]["early_stop"]) == (0.5, 1, {"stale": 3})
    assert content["epoch"] == 4, "two before the interruption, and two behind"


class Judge:
    """A validation engine that gives a score, and counts."""

    def __init__(self, score, images=1) -> None:
        self.state, self.runs = SimpleNamespace(epoch_length=images, metrics={"val_dice": score}), 0

    def run(self) -> None:
        self.runs += 1


def test_the_start_counts_as_the_first_best_and_is_judged_once(tmp_path, saved, caplog):
    caplog.set_level("INFO")
    judge, scores = Judge(0.4), [0.3, 0.4, 0.45]
    train(tmp_path, scores, stop_after=1, start=judge)
    kept = train(tmp_path, scores, resume=True, start=judge)
    assert judge.runs == 1 and kept.start_score == 0.4
    assert epochs(saved) == [(0, 0.4), (3, 0.45)]
    assert "best val_dice 0.4500, epoch 3; 0.4000 before training" in caplog.text
    with pytest.raises(DataError, match="no validation image can judge the start"):
        train(tmp_path, scores, start=Judge(0.4, images=0))


def test_keep_is_best_or_last():
    with pytest.raises(ValueError, match="keep must be best or last, got 'first'"):
        KeptModel(torch.nn.Identity(), "model.pt", {}, keep="first")


class Part:
    """A part of a training that remembers one number."""

    def __init__(self, value: int) -> None:
        self.value = value

    def state_dict(self) -> dict:
        return {"value": self.value}

    def load_state_dict(self, state) -> None:
        self.value = state["value"]


def test_parts_epoch_and_iteration_come_back(tmp_path, saved):
    train(tmp_path, [0.1, 0.2, 0.3], stop_after=2, parts={"one": Part(7)})
    content = read_checkpoint(tmp_path / "checkpoint.pt")
    assert (content["epoch"], content["iteration"], content["identity"]) == (2, 4, {"kind": "t"})
    assert content["settings"] == {"version": "1", "values": {}} and "finished" not in content
    part = Part(0)
    train(tmp_path, [0.1, 0.2, 0.3], resume=True, parts={"one": part})
    content = read_checkpoint(tmp_path / "checkpoint.pt")
    assert part.value == 7 and (content["epoch"], content["iteration"], content["finished"]) == (3, 6, True)
    with pytest.raises(DataError, match="checkpoint.pt: its other is of another size"):
        train(tmp_path, [0.1] * 4, resume=True, parts={"other": part})


def test_a_run_without_a_checkpoint_can_end(tmp_path):
    FinishedRun(tmp_path / "none.pt")(None)
    assert not any(tmp_path.iterdir())


def schedule(total: int) -> tuple[torch.optim.Optimizer, WarmupCosineSchedule]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    return optimizer, WarmupCosineSchedule(optimizer, warmup_steps=0, t_total=total)


@pytest.mark.parametrize("total", [10, 20])
def test_a_schedule_goes_on_where_it_stood_with_the_length_of_now(total):
    """The rate behind the same number of steps of a run that was so long from the start."""
    optimizer, before = schedule(10)
    for _ in range(5):
        optimizer.step()
        before.step()
    resumed, after = schedule(total)
    resumed.load_state_dict(optimizer.state_dict())
    ScheduleState(after).load_state_dict(ScheduleState(before).state_dict())
    whole, expected = schedule(total)
    for _ in range(5):
        whole.step()
        expected.step()
    for _ in range(3):
        assert resumed.param_groups[0]["lr"] == pytest.approx(whole.param_groups[0]["lr"])
        for one, its in ((resumed, after), (whole, expected)):
            one.step()
            its.step()


# --- may it be resumed?


def resume(path, identity=NONE, settings=NONE, max_epochs=5, patience=0, **options) -> None:
    check_resume(path, identity or {"kind": "t"}, settings or Settings(), max_epochs, patience, **options)


def test_what_cannot_be_gone_on_with_is_refused(tmp_path, saved):
    path = tmp_path / "checkpoint.pt"
    resume(path, resume=False)
    with pytest.raises(DataError, match="there is no checkpoint to resume from"):
        resume(path)
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="the checkpoint cannot be read"):
        resume(path)
    torch.save({"epoch": 1, "parts": {}, "identity": {}}, path)
    with pytest.raises(DataError, match="it is no checkpoint of a training"):
        resume(path)
    train(tmp_path, [0.5, 0.2, 0.2], stop_after=2)
    resume(path)
    with pytest.raises(DataError, match="it is of another run: kind 't', now 'u'"):
        resume(path, {"kind": "u"})
    with pytest.raises(DataError, match="made with other settings: lr 1, now 2, b 3, now 4"):
        resume(path, settings=Settings(["lr 1, now 2", "b 3, now 4"]))


def test_a_finished_run_can_be_made_longer_but_not_done_again(tmp_path, saved):
    path = tmp_path / "checkpoint.pt"
    train(tmp_path, [0.5, 0.2, 0.2])
    for max_epochs, patience in ((3, 0), (2, 0), (9, 2), (9, 1)):
        with pytest.raises(DataError, match="this run is finished, with epoch 3.*Raise --max_epochs"):
            resume(path, max_epochs=max_epochs, patience=patience)
    resume(path, max_epochs=4)
    resume(path, max_epochs=9, patience=3)
    content = read_checkpoint(path)
    torch.save({**content, "finished": False}, path)
    resume(path, max_epochs=3)  # its end was interrupted


def test_an_end_that_was_interrupted_is_done_without_another_epoch(tmp_path, saved, caplog):
    caplog.set_level("INFO")
    train(tmp_path, [0.5, 0.2], parts={"p": Part(1)})
    train(tmp_path, [0.5, 0.2], resume=True, parts={"p": Part(0)})
    assert "epoch 2 was the last one" in caplog.text and epochs(saved) == [(1, 0.5)]
    train(tmp_path, [0.5, 0.2, 0.9], resume=True, parts={"p": Part(0)})
    assert "after epoch 2" in caplog.text and epochs(saved)[1:] == [(3, 0.9)]


def test_versions_are_told_where_they_matter(tmp_path, saved, caplog):
    path = tmp_path / "checkpoint.pt"
    train(tmp_path, [0.5, 0.2], stop_after=1)
    caplog.clear()
    resume(path)
    assert not caplog.records
    resume(path, settings=Settings(version="2"))
    assert "version 1 wrote it: only settings" in caplog.text
    content = read_checkpoint(path)
    del content["settings"]
    torch.save(content, path)
    resume(path, settings=Settings(["x"]))
    assert "whether they have changed cannot be told" in caplog.text
