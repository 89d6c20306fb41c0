from __future__ import annotations

import os

import pytest
from scripts.files import atomic_path


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
