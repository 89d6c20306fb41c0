"""Downloads, from a server on this machine."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import archives
import pytest
from file_server import CONTENT, SHA256, serving
from scripts.download import fetch
from scripts.errors import DataError
from scripts.preparing.download import download_dataset
from scripts.preparing.prepare import prepare


@pytest.fixture
def server():
    with serving() as state:
        yield state


def test_a_file_is_fetched_once_and_checked(server, tmp_path):
    path = fetch(f"{server['url']}/x", tmp_path / "sub" / "x.zip", SHA256.upper())
    assert path.read_bytes() == CONTENT
    fetch(f"{server['url']}/x", path, SHA256)
    assert len(server["requests"]) == 1 and [p.name for p in path.parent.iterdir()] == ["x.zip"]


@pytest.mark.parametrize(
    "address", ["file:///etc/hostname", "FILE:/etc/hostname", "ftp://127.0.0.1/x", "/etc/hostname"]
)
def test_only_addresses_on_the_web_are_fetched(tmp_path, address):
    with pytest.raises(DataError, match="it is no address on the web"):
        fetch(address, tmp_path / "x.zip")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["cut", "norange"])
def test_a_broken_download_goes_on(server, tmp_path, kind):
    with pytest.raises(DataError, match="broke off.*again to go on"):
        fetch(f"{server['url']}/{kind}", tmp_path / "x.zip", SHA256)
    assert not (tmp_path / "x.zip").exists()
    have = (tmp_path / "x.zip.ama_sam.part").stat().st_size
    assert 0 < have < len(CONTENT)
    assert fetch(f"{server['url']}/{kind}", tmp_path / "x.zip", SHA256).read_bytes() == CONTENT
    assert server["requests"][1] == (f"/{kind}", f"bytes={have}-")


def test_a_whole_part_needs_only_its_name(server, tmp_path):
    (tmp_path / "x.zip.ama_sam.part").write_bytes(CONTENT)
    assert fetch(f"{server['url']}/x", tmp_path / "x.zip", SHA256).read_bytes() == CONTENT


def test_another_checksum_is_refused(server, tmp_path):
    with pytest.raises(DataError, match=f"{SHA256}, not 00"):
        fetch(f"{server['url']}/x", tmp_path / "x.zip", "00")
    assert not list(tmp_path.iterdir()), "the next attempt starts anew"
    (tmp_path / "x.zip").write_bytes(b"the user's")
    with pytest.raises(DataError, match="x.zip.*Delete"):
        fetch(f"{server['url']}/x", tmp_path / "x.zip", SHA256)
    assert (tmp_path / "x.zip").read_bytes() == b"the user's"


def test_of_several_that_want_a_file_one_fetches_it(server, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: fetch(f"{server['url']}/x", tmp_path / "x.pt", SHA256), range(4)))
    assert {path.read_bytes() for path in paths} == {CONTENT} and len(server["requests"]) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt"]


def test_an_unknown_checksum_is_told(server, tmp_path, caplog):
    fetch(f"{server['url']}/x", tmp_path / "x.zip")
    assert "not verified" in caplog.text and SHA256 in caplog.text


def test_what_cannot_be_fetched(server, tmp_path):
    with pytest.raises(DataError, match="404"):
        fetch(f"{server['url']}/nowhere", tmp_path / "x.zip")
    with pytest.raises(DataError, match="nonsense: it is no address on the web"):
        fetch("nonsense", tmp_path / "x.zip")
    with pytest.raises(DataError, match="no address.*Kaggle.*set source"):
        download_dataset("x", {"get": "Get it from Kaggle."}, tmp_path)
    with pytest.raises(DataError, match="several files.*a.zip, b.zip"):
        download_dataset("x", {"download": [{"file": "a.zip"}, {"file": "b.zip"}]}, tmp_path, "00")


def test_download_and_prepare(server, tmp_path):
    import zipfile

    source = tmp_path / "source"
    image, label, _ = archives.known_sample()
    archives.save(source / "a.png", image)
    archives.geojson(source / "a.geojson", archives.corner_rings(label))
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in source.iterdir():
            archive.write(path, path.name)
    server["/set.zip"] = (tmp_path / "set.zip").read_bytes()
    part = {"images": "{name}.png", "labels": "{name}.geojson", "format": "geojson"}
    download = {"url": f"{server['url']}/set.zip", "file": "set.zip", "sha256": None}
    entry = {"parts": [part], "download": [download]}
    settings = {"download": True, "download_dir": tmp_path / "downloads", "workers": 1}
    right = hashlib.sha256(server["/set.zip"]).hexdigest()
    with pytest.raises(DataError, match="not 11"):
        prepare({"mine": entry}, "mine", tmp_path / "out", sha256="11", **settings)
    (about,) = prepare({"mine": entry}, "mine", tmp_path / "out", sha256=right, **settings).values()
    assert about["images"] == 1 and about["source"]["archives"] == {"set.zip": right}
