from __future__ import annotations

from pathlib import Path
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


def test_the_picture_has_each_metric_in_the_panel_of_its_kind(tmp_path, monkeypatch):
    drawn = {}

    def save(figure, path, **options):
        assert figure.get_suptitle() == "a run" and figure.get_figwidth() > 3 * len(figure.axes)
        for axis in figure.axes:
            lines = {line.get_label(): line.get_xydata().tolist() for line in axis.get_lines()}
            drawn[axis.get_title()] = lines
        Path(path).touch()

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", save)
    history = History(tmp_path, "a run")
    both = {"train_loss": 3.0, "domain_accuracy_0": 0.5, "lambda": 0.1, "something": 7.0}
    history(engine(1, **both))
    history(engine(2, **both, val_dice=0.25, val_hd95=9.0))
    assert drawn == {
        "loss": {"train_loss": [[1, 3], [2, 3]]},
        "Dice": {"val_dice": [[2, 0.25]]},
        "Hausdorff distance, 95 % (px)": {"val_hd95": [[2, 9]]},
        "domain accuracy, lambda": {"domain_accuracy_0": [[1, 0.5], [2, 0.5]], "lambda": [[1, 0.1], [2, 0.1]]},
    }
