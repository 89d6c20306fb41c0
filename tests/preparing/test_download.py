"""Downloads, from a server on this machine."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading

import archives
import pytest
from scripts.errors import DataError
from scripts.preparing.download import download_dataset, fetch
from scripts.preparing.prepare import prepare

CONTENT = bytes(range(256)) * 8000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT with ranges; the first answer for ``/cut`` breaks off in the middle."""

    def __init__(self, state, *args):
        self.state = state
        super().__init__(*args)

    def do_GET(self):
        self.state["requests"].append((self.path, self.headers.get("Range")))
        if self.path == "/nowhere":
            self.send_error(404)
            return
        content = self.state.get(self.path, CONTENT)
        start = 0
        if (wanted := self.headers.get("Range")) and self.path != "/norange":
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            if start >= len(content):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        cut = self.path in ("/cut", "/norange") and len(self.state["requests"]) == 1
        self.wfile.write(content[start : len(content) // 3] if cut else content[start:])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    state = {"requests": []}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, state)) as running:
        state["url"] = f"http://127.0.0.1:{running.server_address[1]}"
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield state
        running.shutdown()


def test_a_file_is_fetched_once_and_checked(server, tmp_path):
    path = fetch(f"{server['url']}/x", tmp_path / "sub" / "x.zip", SHA256.upper())
    assert path.read_bytes() == CONTENT
    fetch(f"{server['url']}/x", path, SHA256)
    assert len(server["requests"]) == 1 and [p.name for p in path.parent.iterdir()] == ["x.zip"]


@pytest.mark.parametrize("kind", ["cut", "norange"])
def test_a_broken_download_goes_on(server, tmp_path, kind):
    with pytest.raises(DataError, match="broke off.*again to go on"):
        fetch(f"{server['url']}/{kind}", tmp_path / "x.zip", SHA256)
    assert not (tmp_path / "x.zip").exists()
    have = (tmp_path / "x.zip.part").stat().st_size
    assert 0 < have < len(CONTENT)
    assert fetch(f"{server['url']}/{kind}", tmp_path / "x.zip", SHA256).read_bytes() == CONTENT
    assert server["requests"][1] == (f"/{kind}", f"bytes={have}-")


def test_a_whole_part_needs_only_its_name(server, tmp_path):
    (tmp_path / "x.zip.part").write_bytes(CONTENT)
    assert fetch(f"{server['url']}/x", tmp_path / "x.zip", SHA256).read_bytes() == CONTENT


def test_another_checksum_is_refused(server, tmp_path):
    with pytest.raises(DataError, match=f"{SHA256}, not 00"):
        fetch(f"{server['url']}/x", tmp_path / "x.zip", "00")
    assert not (tmp_path / "x.zip").exists()


def test_an_unknown_checksum_is_told(server, tmp_path, caplog):
    fetch(f"{server['url']}/x", tmp_path / "x.zip")
    assert "not verified" in caplog.text and SHA256 in caplog.text


def test_what_cannot_be_fetched(server, tmp_path):
    with pytest.raises(DataError, match="404"):
        fetch(f"{server['url']}/nowhere", tmp_path / "x.zip")
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
