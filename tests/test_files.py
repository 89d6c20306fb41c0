from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from scripts.errors import DataError
from scripts.files import (
    atomic_path,
    bundle_version,
    finished_name,
    has_columns,
    read_json,
    sha256_of,
    unused_path,
    walk_files,
    write_json,
    write_table,
)


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
    for number in range(2, 6):
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


def test_json_is_written_for_people_and_read_as_editors_save_it(tmp_path, bundle_root):
    path = tmp_path / "a.json"
    write_json(path, {"name": "Kärnan", "at": tmp_path}, default=str)
    assert path.read_bytes().decode() == f'{{\n  "name": "Kärnan",\n  "at": "{tmp_path}"\n}}\n'
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):  # the last two begin with a mark
        path.write_text('{"ä": 1}', encoding=encoding)
        assert read_json(path) == {"ä": 1}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": float("nan")})
    assert read_json(path) == {"ä": 1}, "what cannot be written replaces nothing"
    for damaged in (b"{", b"\xff", b"[" * 100_000):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="a.json: the file cannot be read as JSON"):
            read_json(path)
    with pytest.raises(DataError, match="none.json: the file cannot be read as JSON"):
        read_json(tmp_path / "none.json")
    assert bundle_version(bundle_root) == read_json(bundle_root / "configs" / "metadata.json")["version"]


def test_a_checksum_is_that_of_the_content(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    assert sha256_of(tmp_path) is None is sha256_of(tmp_path / "none")


def test_files_are_found_once_by_name_and_hidden_ones_never(tmp_path, caplog):
    folder, outside = tmp_path / "in", tmp_path / "out"
    for name in ("b/2.png", "a.png", "b/1.png", ".hidden/x.png", "b/.x.png", "c/3.png"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).touch()
    write_json(outside / "made" / "too.json", [])  # folders are made
    for link, target in (("b/loop", folder), ("d", folder / "c"), ("e", outside)):
        (folder / link).symlink_to(target)
    found = [path.relative_to(folder).as_posix() for path in walk_files(folder)]
    assert found == ["a.png", "b/1.png", "b/2.png", "c/3.png", "e/made/too.json"]
    assert not list(walk_files(tmp_path / "none")) and "none: the folder cannot be read" in caplog.text
