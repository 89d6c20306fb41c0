"""What a kill leaves of files that grow tile by tile, and how the next run goes on with it."""

from __future__ import annotations

import json

import pytest
from scripts.slides.journal import JOURNAL, Journal

HEADS = {"a.json": b"[\n", "b.csv": "Ä,b\n".encode()}  # a letter of two bytes


def begin(folder, **settings) -> Journal:
    return Journal(folder, HEADS, {"tile_size": 512, **settings})


@pytest.fixture
def begun(tmp_path):
    """A folder in which two tiles were written."""
    journal = begin(tmp_path / "new")
    journal.write({"a.json": b"1,\n", "b.csv": "ä,1\n".encode()}, {"tile": 1})
    journal.write({"a.json": b"2,\n"}, {"tile": 2})
    journal.close()
    return tmp_path / "new"


def texts(folder) -> list[str]:
    return [(folder / name).read_text() for name in HEADS]


def test_a_whole_run_has_head_tiles_and_tail(begun):
    journal = begin(begun)
    assert list(journal.records()) == [
        {"tile": 1, "sizes": {"a.json": 5, "b.csv": 10}}, {"tile": 2, "sizes": {"a.json": 8, "b.csv": 10}},
    ]  # fmt: skip
    journal.finish({"a.json": b"]\n"})
    assert texts(begun) == ["[\n1,\n2,\n]\n", "Ä,b\nä,1\n"]
    with pytest.raises(ValueError, match="closed"):
        journal.write({}, {})


def test_what_the_journal_does_not_know_of_is_cut_off(begun):
    """Longer than what comes next, so that writing over it would leave its end."""
    with (begun / JOURNAL).open("a") as log, (begun / "a.json").open("a") as file:
        log.write('{"tile": 3, "sizes": {"a.json": 99, "b.csv": 10}, "more": "' + "x" * 500)
        file.write("half of a tile " * 50)
    journal = begin(begun)
    assert [record["tile"] for record in journal.records()] == [1, 2]
    assert (begun / "a.json").read_text() == "[\n1,\n2,\n"
    journal.write({"a.json": b"3,\n"}, {"tile": 3})
    journal.finish({"a.json": b"]\n"})
    assert texts(begun) == ["[\n1,\n2,\n3,\n]\n", "Ä,b\nä,1\n"]
    lines = (begun / JOURNAL).read_text().splitlines()
    assert [json.loads(line).get("tile") for line in lines] == [None, 1, 2, 3]


def test_a_run_killed_before_its_first_tile_goes_on(tmp_path, caplog):
    folder = tmp_path / "made" / "too"
    begin(folder).close()
    journal = begin(folder)
    assert not list(journal.records()) and not caplog.records
    journal.finish({"a.json": b"]\n"})
    assert texts(folder) == ["[\n]\n", "Ä,b\n"]


@pytest.mark.parametrize("left", ["", '{"settings": {"tile_size": 51'])
def test_a_journal_without_its_first_line_is_begun_anew(begun, left):
    (begun / JOURNAL).write_text(left)
    journal = begin(begun)
    assert not list(journal.records()) and texts(begun) == ["[\n", "Ä,b\n"]


@pytest.mark.parametrize("settings", [{"tile_size": 256}, {"threshold": 0.5}])
def test_other_settings_begin_anew_and_are_named(begun, caplog, settings):
    journal = begin(begun, **settings)
    assert not list(journal.records()) and texts(begun) == ["[\n", "Ä,b\n"]
    assert f"other settings ({next(iter(settings))}), begins anew" in caplog.text
    journal.write({"a.json": b"9,\n"}, {"tile": 9})
    journal.close()
    assert [record["tile"] for record in begin(begun, **settings).records()] == [9]


def test_a_setting_that_is_no_longer_there_is_a_change(tmp_path, caplog):
    begin(tmp_path, threshold=0.5).close()
    begin(tmp_path)
    assert "(threshold)" in caplog.text


@pytest.mark.parametrize("damage", ["shorter", "missing"])
def test_files_shorter_than_the_journal_says_begin_anew(begun, caplog, damage):
    file = begun / "b.csv"
    if damage == "shorter":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        file.unlink()
    assert not list(begin(begun).records()) and texts(begun) == ["[\n", "Ä,b\n"]
    assert "shorter than its journal says" in caplog.text


def test_text_is_on_the_disk_before_the_journal_says_so(tmp_path, monkeypatch):
    """In whatever order the system writes, for each is synced before the next is written."""
    synced = []

    def sync(descriptor):
        synced.append({path.name: path.stat().st_size for path in tmp_path.iterdir()})

    journal = begin(tmp_path)
    monkeypatch.setattr("os.fsync", sync)
    log = (tmp_path / JOURNAL).stat().st_size
    journal.write({"a.json": b"1,\n", "b.csv": b"1,1\n"}, {"tile": 1})
    sizes = [(one["a.json"], one["b.csv"], one[JOURNAL] > log) for one in synced]
    assert sizes == [(5, 5, False), (5, 9, False), (5, 9, True)]


def test_settings_may_be_what_json_has_not(tmp_path, caplog):
    for _ in range(2):
        begin(tmp_path, path=tmp_path, sizes=(1, 2)).close()
    assert not caplog.records, "a tuple is a list when it is read again"
