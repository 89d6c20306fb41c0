from __future__ import annotations

import os
from pathlib import Path

import pytest
from scripts.files import atomic_path, finished_name, has_columns, unused_path, write_table


def test_what_is_replaced_is_another_file_and_the_old_one_stays_whole(tmp_path):
    """Whoever has the old one open, or a link to it, keeps it: it is not written over in place."""
    path, link = tmp_path / "model.pt", tmp_path / "link.pt"
    path.write_text("old " * 1000)
    os.link(path, link)
    with path.open() as reader:
        with atomic_path(path) as partial:
            partial.write_text("new")
            assert path.read_text() == "old " * 1000
        assert reader.read() == link.read_text() == "old " * 1000
    assert path.read_text() == "new" and sorted(p.name for p in tmp_path.iterdir()) == ["link.pt", "model.pt"]


def test_what_fails_leaves_everything_as_it_was(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), atomic_path(path) as partial:
        partial.write_text("half")
        raise OSError("the disk is full")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["model.pt", "a.b.json", "README", "with space.csv", "ä.png"])
def test_what_a_kill_leaves_tells_which_file_it_was_to_be(tmp_path, name):
    with atomic_path(tmp_path / name) as partial:
        assert finished_name(partial.name) == name
        assert partial.suffix == (Path(name).suffix or ".partial"), "many writers choose the format by it"
        partial.touch()
    assert finished_name(name) is None and finished_name(".model.0123.partial.pt") is None


def test_the_first_number_that_is_not_taken(tmp_path):
    path = tmp_path / "model.pt"
    assert unused_path(path) == path
    for number in (2, 3):
        unused_path(path).touch()
        assert unused_path(path) == tmp_path / f"model_{number}.pt"


def test_a_table_is_known_by_its_columns(tmp_path):
    path = tmp_path / "a.csv"
    assert not has_columns(path, ["a", "b"])
    write_table(path, [{"b": 1}, {"a": 2, "c": 3}], ["a"])
    assert path.read_text() == "a,b,c\n,1,\n2,,3\n"
    assert has_columns(path, ["a", "b", "c"]) and not has_columns(path, ["a", "b"])
    path.write_bytes(b"\xff\xfe\x00")
    assert not has_columns(path, ["a", "b"]), "not text"
