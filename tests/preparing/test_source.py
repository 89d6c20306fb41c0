"""Zip files that are unsafe or damaged are refused before anything is written."""

from __future__ import annotations

import io
import stat
import zipfile

import pytest
from scripts.errors import DataError
from scripts.preparing import source as source_module
from scripts.preparing.prepare import prepare
from scripts.preparing.source import check_archive, open_source


@pytest.mark.parametrize("name", ["../evil.txt", "a/../../evil.txt", "/etc/evil.txt", "C:/evil.txt", "..\\evil.txt"])
def test_path_traversal_is_refused(datasets, tmp_path, name):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("MoNuSegTestData/fine.txt", "x")
        archive.writestr(zipfile.ZipInfo(name), "evil")
    with pytest.raises(DataError, match="outside the folder"):
        prepare(datasets, "monuseg", tmp_path / "out", tmp_path / "x.zip")
    assert not list(tmp_path.rglob("*evil*")) and not list(tmp_path.rglob("fine.txt"))


def test_links_and_encrypted_members_are_refused(tmp_path):
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="is a link"):
        check_archive(tmp_path / "link.zip")
    plain = io.BytesIO()
    with zipfile.ZipFile(plain, "w") as archive:
        archive.writestr("a", "x")
    content = bytearray(plain.getvalue())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(content)
    with pytest.raises(DataError, match="encrypted"):
        check_archive(tmp_path / "locked.zip")


def test_a_zip_bomb_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.writestr(f"{number}.tif", bytes(100 * 2**20))
    with pytest.raises(DataError, match="zip bomb"):
        open_source(tmp_path / "bomb.zip", tmp_path / "work")
    assert not (tmp_path / "work").exists()
    monkeypatch.setattr(source_module, "MAX_MEMBERS", 2)
    with pytest.raises(DataError, match="3 members"):
        check_archive(tmp_path / "bomb.zip")


def test_damaged_archives_are_named(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"no zip at all")
    with pytest.raises(DataError, match="cannot be read as a zip"):
        open_source(tmp_path / "x.zip", tmp_path / "work")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", "some content that is changed")
    (tmp_path / "y.zip").write_bytes(buffer.getvalue().replace(b"is changed", b"is CHANGED", 1))
    with pytest.raises(DataError, match="a.txt"):
        open_source(tmp_path / "y.zip", tmp_path / "work")
    assert not list((tmp_path / "work").iterdir())
