from __future__ import annotations

from types import SimpleNamespace

from scripts.training.history import History, read_history


def engine(epoch: int, **metrics: float) -> SimpleNamespace:
    return SimpleNamespace(state=SimpleNamespace(epoch=epoch, metrics=metrics))


def test_a_resumed_run_goes_on_behind_its_checkpoint(tmp_path):
    """A kill may come between an epoch's row and its checkpoint: the epoch is trained again, and has one row."""
    first = History(tmp_path)
    for epoch in (1, 2, 3):
        first(engine(epoch, train_loss=float(epoch)))
    resumed = History(tmp_path)  # from the checkpoint of epoch 1
    resumed(engine(2, train_loss=20.0))
    assert read_history(tmp_path / "history.csv") == [
        {"epoch": 1, "train_loss": 1.0},
        {"epoch": 2, "train_loss": 20.0},
    ]


def test_a_run_that_begins_anew_has_no_rows_of_another(tmp_path):
    History(tmp_path)(engine(1, train_loss=5.0))
    History(tmp_path)(engine(1, train_loss=6.0, val_dice=0.5))
    assert read_history(tmp_path / "history.csv") == [{"epoch": 1, "train_loss": 6.0, "val_dice": 0.5}]
    assert read_history(tmp_path / "none.csv") == [] and (tmp_path / "curves.png").stat().st_size > 1000
