"""Which files are ours: only those are replaced or removed, whatever else lies beside them."""

from __future__ import annotations

import pytest
from scripts.errors import DataError
from scripts.owned import LIST, OwnFiles, remove_own_folder


def test_what_we_wrote_is_known_again_and_replaced(tmp_path):
    OwnFiles(tmp_path / "out").path("sub/a.csv").parent.mkdir()
    (tmp_path / "out" / "sub" / "a.csv").write_text("1")
    (tmp_path / "out").rename(tmp_path / "moved")
    files = OwnFiles(tmp_path / "moved")
    assert list(files) == ["sub/a.csv"]
    files.check(["sub/a.csv", "new.csv"])
    files.remove("sub/a.csv")
    assert not (tmp_path / "moved" / "sub" / "a.csv").exists()


def test_what_others_wrote_is_neither_replaced_nor_removed(tmp_path):
    (tmp_path / "a.csv").write_text("precious")
    files = OwnFiles(tmp_path)
    for call in (files.path, lambda name: files.check([name])):
        with pytest.raises(DataError, match="a.csv: it was not written by this bundle.*Choose another output_dir"):
            call("a.csv")
    files.remove("a.csv")
    assert (tmp_path / "a.csv").read_text() == "precious" and not (tmp_path / LIST).exists()
    with pytest.raises(DataError, match="a.csv: it is a file, and results need a folder"):
        OwnFiles(tmp_path / "a.csv").check(["x"])


def test_a_file_in_the_place_of_one_that_we_removed_is_not_ours(tmp_path):
    OwnFiles(tmp_path).path("errors.csv").write_text("ours")
    OwnFiles(tmp_path).remove("errors.csv")
    (tmp_path / "errors.csv").write_text("precious")
    OwnFiles(tmp_path).remove("errors.csv")
    assert (tmp_path / "errors.csv").read_text() == "precious"
    (tmp_path / "errors.csv").unlink()
    OwnFiles(tmp_path).path("errors.csv").write_text("ours")
    OwnFiles(tmp_path).check(["errors.csv"])


def test_several_processes_add_to_one_list(tmp_path):
    one, two = OwnFiles(tmp_path), OwnFiles(tmp_path)
    one.path("a").write_text("")
    two.path("b").write_text("")
    two.check(["a"])
    assert set(one) == {"a", "b"}


def test_a_line_that_a_kill_cut_short_does_not_count(tmp_path):
    (tmp_path / LIST).write_text("+whole.csv\n+nuclei.cs")
    assert list(OwnFiles(tmp_path)) == ["whole.csv"]
    OwnFiles(tmp_path).add(["next.csv"])
    assert "next.csv" in OwnFiles(tmp_path)


@pytest.mark.parametrize("name", ["späte Fälle/ä 1.csv", "-a.csv", "+a.csv", "a\udce9.csv"])
def test_any_name_is_known_again(tmp_path, name):
    OwnFiles(tmp_path).add([name])
    assert list(OwnFiles(tmp_path)) == [name]


def test_a_name_of_several_lines_names_no_other_file(tmp_path):
    OwnFiles(tmp_path).path("a\n+precious.csv").write_text("")
    assert list(OwnFiles(tmp_path)) == []


def test_files_of_an_earlier_version_count_only_where_there_is_no_list(tmp_path):
    (tmp_path / "a.csv").write_text("")
    OwnFiles(tmp_path, ["a.csv"]).path("b.csv").write_text("")
    assert list(OwnFiles(tmp_path)) == ["a.csv", "b.csv"], "listed from then on"
    (tmp_path / "c.csv").write_text("precious")
    assert "c.csv" not in OwnFiles(tmp_path, ["c.csv"])


@pytest.mark.parametrize("other", ["notes.txt", "folder/x", ".hidden"])
def test_a_folder_with_anything_else_in_it_is_never_removed(tmp_path, other):
    folder = tmp_path / "out"
    OwnFiles(folder).path("a.csv").write_text("ours")
    (folder / other).parent.mkdir(exist_ok=True)
    (folder / other).write_text("precious")
    with pytest.raises(DataError, match=f"{other.partition('/')[0]}: it was not written by this bundle"):
        remove_own_folder(OwnFiles(folder))
    assert (folder / other).read_text() == "precious" and (folder / "a.csv").exists()


def test_a_folder_of_our_files_is_removed_with_what_kills_and_systems_leave(tmp_path):
    folder = tmp_path / "out"
    OwnFiles(folder).path("a.csv").write_text("")
    for name in (".a.0123456789ab.partial.csv", ".DS_Store"):
        (folder / name).write_text("")
    remove_own_folder(OwnFiles(folder))
    assert not folder.exists()
    remove_own_folder(OwnFiles(folder))


def test_a_link_to_a_folder_is_never_removed(tmp_path):
    OwnFiles(tmp_path / "real").path("a.csv").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(DataError):
        remove_own_folder(OwnFiles(tmp_path / "link"))
    assert (tmp_path / "real" / "a.csv").exists()
