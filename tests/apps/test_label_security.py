"""What strangers may not do with our app: a real server on 127.0.0.1 that wants a token, and is asked with it."""

from __future__ import annotations

import http.client
import io
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
from fakes import own_app
from label_server import LabelServer, missing_package
from PIL import Image
from slides import make_drawing

REPO = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing_package() is not None, reason=f"{missing_package()} is not installed"),
]
TOKEN, VIEWER, FOREIGN = "a-secret", "https://viewer.example.org", "https://evil.example"


def png(seed):
    buffer = io.BytesIO()
    Image.fromarray(make_drawing(512, 512, seed=seed).draw(0, 0, 512, 512, 1.0)).save(buffer, "PNG")
    return buffer.getvalue()


TILE = png(seed=4)


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """An image that is nobody's business."""
    path = tmp_path_factory.mktemp("outside") / "private.png"
    path.write_bytes(png(seed=5))
    return path


@pytest.fixture(scope="module")
def server(bundle_root, outside, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    studies = folder / "studies"
    studies.mkdir()
    (studies / "tile.png").write_bytes(TILE)
    (studies / "link.png").symlink_to(outside)
    settings = {"model_dir": folder / "model", "origins": VIEWER}
    with LabelServer(
        own_app(bundle_root, folder), folder, settings, [REPO / "tests" / "helpers"], token=TOKEN
    ) as started:
        label = started.http.post(f"{started.url}/infer/ama_sam?image=tile&output=image").content
        put(started, "label", {"image": "tile"}, label, "label.png").raise_for_status()
        yield started


def put(server, kind, query, content, name, **more):
    field = {"image": "file", "label": "label"}[kind]
    return server.http.put(f"{server.url}/datastore/{kind}", params=query, files={field: (name, content)}, **more)


def infer(server, params, **query):
    form = {"params": params if isinstance(params, str) else json.dumps(params)}
    return server.http.post(
        f"{server.url}/infer/ama_sam", params={"output": "image", "image": "tile", **query}, data=form
    )


def region(server, body, **query):
    return server.http.post(
        f"{server.url}/infer/wsi/ama_sam", params={"output": "json", "image": "tile", **query}, json=body
    )


def uploaded_region(server, body):
    form = {"data": {"wsi": json.dumps(body)}, "files": {"file": ("tile.png", TILE)}}
    return server.http.post(f"{server.url}/infer/wsi_v2/ama_sam?output=json", **form)


def post(path):
    return lambda server, body: server.http.post(f"{server.url}/{path}", json=body)


ASK = {
    "infer": infer,
    "region": lambda server, params: region(server, {"params": params}),
    "uploaded region": lambda server, params: uploaded_region(server, {"params": params}),
    "train": post("train/ama_sam"),
    "train all": lambda server, body: post("train/")(server, {"ama_sam": body}),
    "batch": post("batch/infer/ama_sam"),
    "sample": post("activelearning/uncertain"),
}
SEGMENT = ("device", "threshold", "min_peak", "marker_depth", "min_area", "mpp", "client_id")
TRAIN = (
    "device",
    "pretrained",
    "use_unlabelled",
    "mode",
    "max_epochs",
    "batches_per_epoch",
    "learning_rate",
    "seed",
    "val_split",
    "publish",
)
FIELDS = [
    *(("infer", field) for field in (*SEGMENT, "save_label", "label_tag")),
    *(("region", field) for field in SEGMENT),
    *(("uploaded region", field) for field in SEGMENT),
    *(("train", field) for field in TRAIN),
    ("train all", "max_epochs"),
    *(("batch", field) for field in ("device", "min_area", "max_batch_size")),
    ("sample", "max_images"),
]


def refused(answer, *words, status=422):
    assert answer.status_code == status, answer.text
    detail = answer.json()["detail"]
    assert isinstance(detail, str) and all(word in detail for word in words), detail


# --- nothing of a request is a config


@pytest.mark.parametrize("kind, field", FIELDS)
def test_no_value_of_a_request_is_executed(server, tmp_path, kind, field):
    marker = tmp_path / "marker"
    expressions = f"$open({str(marker)!r}, 'w').close() or 1", "@network", "%configs/train.json"
    for value in (*expressions, {"_target_": "builtins.open", "file": str(marker), "mode": "w"}):
        refused(ASK[kind](server, {field: value}), field)
        listed = [value]
        assert ASK[kind](server, {field: listed}).status_code == 422
    assert not marker.exists()
    assert server.http.get(f"{server.url}/train/").status_code == 404, "nothing was queued"
    assert server.http.get(f"{server.url}/batch/infer").status_code == 404, "nothing was queued"


@pytest.mark.parametrize(
    "kind, options",
    [
        *(("infer", {"threshold": value}) for value in (7, 1, 0, -0.5, "high", [0.5])),
        *(
            ("infer", {name: value})
            for name, value in (("marker_depth", 0), ("min_area", -1), ("mpp", -1), ("mpp", 1e6))
        ),
        *(("region", {"threshold": value}) for value in (7, 0)),
        *(("train", {"max_epochs": value}) for value in (0, -1, 10**9, 1.5, "many")),
        *(("train", {name: 0}) for name in ("batches_per_epoch", "learning_rate")),
        *(("train", {name: value}) for name, value in (("learning_rate", 2), ("seed", -1), ("val_split", 1))),
        *(("train", {name: "xyz"}) for name in ("mode", "publish", "pretrained", "use_unlabelled", "device")),
        ("train", {"mode": "ama"}),  # this app was given no auxiliary domains
        ("sample", {"max_images": -1}),
    ],
)
def test_a_value_out_of_its_range_is_named_and_queues_nothing(server, kind, options):
    refused(ASK[kind](server, options), *options)
    assert server.http.get(f"{server.url}/train/").status_code == 404, "nothing was queued"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_are_finite(server, number):
    refused(infer(server, f'{{"min_area": {number}}}'), "min_area")


@pytest.mark.parametrize(
    "kind, misspelt, right",
    [
        ("infer", "treshold", "threshold"),
        ("region", "min_aera", "min_area"),
        ("train", "max_epoch", "max_epochs"),
        ("sample", "max_image", "max_images"),
    ],
)
def test_a_misspelt_field_is_told_with_the_nearest_right_name(server, kind, misspelt, right):
    refused(ASK[kind](server, {misspelt: 1}), f"'{misspelt}' is not known; did you mean '{right}'?")


def test_unknown_fields_of_addresses_and_of_images_are_told(server):
    refused(infer(server, {}, outptu="json"), "'outptu'", "'output'")
    refused(region(server, {"sizes": [1, 1]}), "'sizes'", "'size'")
    refused(region(server, {"location": [0]}), "location")
    info = {"image": "tile"}
    refused(server.http.put(f"{server.url}/datastore/image/info", params=info, data={"info": '{"mp": 1}'}), "'mpp'")
    refused(put(server, "image", {"image": "new"}, TILE, "a.png", data={"params": '{"mpp": "$1"}'}), "mpp")
    refused(put(server, "image", {"image": "new"}, TILE, "a.png", data={"params": "no json"}), "params")


def test_a_device_is_one_that_there_is(server):
    assert infer(server, {"device": "cpu"}).status_code == 200
    listed = server.http.get(f"{server.url}/info/").json()["models"]["ama_sam"]["config"]["device"]
    assert infer(server, {"device": listed}).status_code == 200, "clients send back the choices as they got them"
    count = torch.cuda.device_count()
    for name in ("cuda", "cuda:0")[: 2 if count else 0]:
        assert infer(server, {"device": name}).status_code == 200
    for name in (f"cuda:{count}", "cuda:99", "gpu", "", *([] if count else ["cuda"])):
        refused(infer(server, {"device": name}), "device", "cpu")
        refused(ASK["train"](server, {"device": name}), "device", "cpu")


# --- what real clients send


def test_monai_labels_own_client_with_what_slicer_sends(server, tmp_path):
    from monailabel.client import MONAILabelClient

    def client():  # a new one each time: it keeps the headers of its requests, those of a form too
        made = MONAILabelClient(server.url, str(tmp_path), client_id="user-xyz")
        made.update_auth({"token_type": "Bearer", "access_token": TOKEN})
        return made

    info = client().info()
    config = {k: v[0] if isinstance(v, list) else v for k, v in info["models"]["ama_sam"]["config"].items()}
    slicer = {**config, "result_extension": ".nrrd", "result_dtype": "uint8", "label": "nuclei", "foreground": []}
    file, told = client().infer("ama_sam", "tile", slicer)
    assert Path(file).stat().st_size and told["nuclei"] > 0
    image = tmp_path / "new.png"
    image.write_bytes(TILE)
    session = client().create_session(str(image))["session_id"]
    assert client().get_session(session)["name"] == session
    assert client().infer("ama_sam", "", {}, session_id=session)[1] == told
    client().remove_session(session)
    assert client().upload_image(str(image), "new", {"mpp": 0.25})["image"] == "new"
    client().save_label("new", file, "original", {"label_info": [{"name": "nuclei", "idx": 1}]})
    assert client().next_sample("first", {})["id"] == "new"
    assert b"elements" in server.http.post(f"{server.url}/infer/wsi/ama_sam?output=dsa&image=new", json=DSA).content
    server.http.delete(f"{server.url}/datastore/image?id=new").raise_for_status()


DSA = {
    "level": 0, "location": [0, 0], "size": [0, 0], "tile_size": [1024, 1024], "min_poly_area": 40, "output": "dsa",
    "girder_api_url": "http://dsa/api/v1", "girder_token": "t", "client_id": None,
    "params": {"wsi_tiles": [{"location": [0, 0], "size": [9, 9]}]},
}  # fmt: skip
OHIF = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False, "restore_label_idx": False}
QUPATH_SAMPLE = {"image": "tile", "patch_size": [1024, 1024], "image_size": [512, 512]}


def test_what_ohif_cvat_and_qupath_send(server):
    config = server.http.get(f"{server.url}/info/").json()["models"]["ama_sam"]["config"]
    for params in (
        {**config, **OHIF, "label_prompt": [1]},
        {"output": "mask", "foreground": [[1, 2]], "roi": [1, 2, 3, 4]},
    ):
        assert infer(server, params).status_code == 200
    # QuPath does not say that its JSON is JSON
    for path, body in (("infer/wsi/ama_sam?output=asap&image=tile", {}), ("activelearning/first", QUPATH_SAMPLE)):
        answer = server.http.post(f"{server.url}/{path}", data=json.dumps(body))
        assert answer.status_code == 200 and "Content-Type" not in answer.request.headers, answer.text
    refused(server.http.post(f"{server.url}/train/ama_sam", data='{"max_epochs": 0}'), "max_epochs")


# --- who may ask


def forms(server):
    """Requests that a form or a script on any page can make without being asked for leave."""
    text = {"Content-Type": "text/plain"}
    yield "POST", "/infer/ama_sam?image=tile", {"files": {"file": ("a.png", TILE)}}
    yield "POST", "/infer/ama_sam?image=tile", {"data": {"params": "{}"}}
    yield "POST", "/infer/wsi/ama_sam?image=tile", {"data": "{}", "headers": text}
    yield "POST", "/infer/wsi/ama_sam?image=tile", {"data": "{}"}
    yield "POST", "/train/ama_sam", {"data": '{"max_epochs": 1}', "headers": text}
    yield "POST", "/train/ama_sam", {"data": '{"max_epochs": 1}'}
    yield "POST", "/train/ama_sam", {"json": {"max_epochs": 1}}
    yield "POST", "/reload", {}
    yield "PUT", "/datastore/image?image=evil", {"files": {"file": ("a.png", TILE)}}
    yield "DELETE", "/datastore/image?id=tile", {}
    yield "DELETE", "/train/", {}
    yield "GET", "/datastore/image?image=tile", {}
    yield "GET", "/info/", {}
    yield "HEAD", "/datastore/image?image=tile", {}
    yield "OPTIONS", "/train/ama_sam", {"headers": {"Access-Control-Request-Method": "POST"}}


@pytest.mark.parametrize(
    "origin", [FOREIGN, "null", "http://127.0.0.1:1", "http://localhost", f"{VIEWER}.evil.example"]
)
def test_a_foreign_page_is_refused_whatever_it_asks(server, origin):
    before = server.http.get(f"{server.url}/datastore/?output=all").json()
    for method, path, more in forms(server):
        headers = {"Origin": origin, **more.pop("headers", {})}
        answer = server.http.request(method, server.url + path, headers=headers, **more)
        assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers, (method, path)
        assert method == "HEAD" or "may not ask" in answer.json()["detail"]
    assert server.http.get(f"{server.url}/datastore/?output=all").json() == before
    assert server.http.get(f"{server.url}/train/").status_code == 404, "nothing was queued"


def test_a_page_that_names_no_origin_is_told_by_the_browser(server):
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)):
        answer = server.http.get(f"{server.url}/info/", headers={"Sec-Fetch-Site": site})
        assert answer.status_code == status, site


def test_configured_pages_and_the_servers_own_may_ask(server):
    own = server.url
    for origin in (VIEWER, VIEWER.upper(), own):
        assert server.http.get(f"{own}/info/", headers={"Origin": origin}).status_code == 200
    preflight = {
        "Origin": VIEWER,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    answer = requests.options(f"{own}/infer/ama_sam", headers=preflight)
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == VIEWER
    for page in ("/", "/docs", "/openapi.json"):
        assert server.http.get(own + page).status_code == 200


def test_a_name_that_is_pointed_at_this_machine_is_refused(server):
    port = server.url.rpartition(":")[2]
    for host in (f"evil.example:{port}", "evil.example", f"127.0.0.1.evil.example:{port}", "[::1"):
        for origin in ({}, {"Origin": f"http://{host}"}):
            refused(server.http.get(f"{server.url}/info/", headers={"Host": host, **origin}), "answer as", status=403)
    for host in (f"localhost:{port}", "127.0.0.1", f"[::1]:{port}", "viewer.example.org"):
        assert server.http.get(f"{server.url}/info/", headers={"Host": host}).status_code == 200


def test_without_the_token_nothing_is_answered(server):
    for given in ({}, {"Authorization": "Bearer other"}, {"Authorization": TOKEN}, {"Authorization": "Bearer "}):
        for method, path, more in forms(server):
            if method != "OPTIONS":
                answer = requests.request(
                    method, server.url + path, **{**more, "headers": {**more.get("headers", {}), **given}}
                )
                assert answer.status_code == 401 and answer.headers["WWW-Authenticate"] == "Bearer", (method, path)
        assert requests.get(server.url, headers=given).status_code == 401
    assert TOKEN not in (server.folder / "server.log").read_text()


# --- images, names, addresses


def test_images_are_those_of_the_studies(server, outside):
    relative = os.path.relpath(outside, server.studies)
    for image in (str(outside), relative, f"../{outside.name}", relative.removesuffix(".png"), "..", "/", "\0"):
        refused(infer(server, {}, image=image), "no image", status=404)
        refused(region(server, {}, image=image), "no image", status=404)
        assert server.http.get(f"{server.url}/datastore/image", params={"image": image}).status_code == 404
        assert server.http.delete(f"{server.url}/datastore/image", params={"id": image}).status_code == 404
    for name in ("image", "model", "session", "description"):
        refused(infer(server, {name: str(outside)}), f"'{name}'")
    assert outside.is_file()


def test_a_link_out_of_the_studies_is_not_followed(server, outside):
    before = outside.read_bytes()
    refused(infer(server, {}, image="link"), "link", "leads out of the studies")
    refused(region(server, {}, image="link"), "leads out of the studies")
    for method, query in (("get", "image?image"), ("delete", "image?id")):
        refused(server.http.request(method, f"{server.url}/datastore/{query}=link"), "leads out of the studies")
    refused(put(server, "image", {"image": "link"}, TILE, "link.png"), "leads out of the studies")
    refused(put(server, "label", {"image": "link"}, TILE, "l.png"), "leads out of the studies")
    sample = server.http.post(f"{server.url}/activelearning/uncertain", json={})
    assert sample.status_code == 200 and sample.json().get("id") != "link"
    assert outside.read_bytes() == before


def test_a_file_that_is_sent_may_name_no_other(server, outside):
    header = b"ObjectType = Image\nNDims = 2\nDimSize = 8 8\nElementType = MET_UCHAR\nElementDataFile = %s\n"
    header %= os.fsencode(outside)
    sent = {"files": {"file": ("a.mha", header)}}
    refused(server.http.post(f"{server.url}/infer/ama_sam?output=image", **sent), "other files")
    refused(server.http.post(f"{server.url}/infer/wsi_v2/ama_sam", **sent), "other files")
    refused(put(server, "image", {"image": "new"}, header, "a.mha"), "other files")
    refused(put(server, "label", {"image": "tile"}, header, "a.mha"), "other files")
    refused(server.http.put(f"{server.url}/session/", files=[("files", ("a.mha", header))]), "other files")


LONG = "n" * 300


@pytest.mark.parametrize(
    "kind, query, name",
    [
        ("image", {"image": LONG}, "a.png"),
        ("image", {"image": "ü" * 150}, "a.png"),
        ("image", {}, f"{LONG}.png"),
        ("image", {"image": "a"}, f"a.{LONG}"),
        *(
            ("image", {"image": image}, "a.png")
            for image in ("../a", "/a", "a/b", "a\\b", ".a", "$a", "@a", "%a", "a\nb", "a\0")
        ),
        *(
            ("label", {"image": "tile", "tag": tag}, "a.png")
            for tag in (LONG, "../..", "/tmp", ".", "$x", "a/b", "a\0")
        ),
        ("label", {"image": "tile"}, f"a.{LONG}"),
    ],
)
def test_names_that_no_file_should_have_are_refused(server, kind, query, name):
    files = sorted(server.folder.rglob("*"))
    answer = put(server, kind, query, TILE, name)
    assert answer.status_code == 422 and 0 < len(answer.json()["detail"]) < 500, answer.text
    assert sorted(server.folder.rglob("*")) == files


def test_long_names_that_are_asked_for_are_not_found(server):
    for path in (f"infer/ama_sam?image={LONG}", f"infer/{LONG}?image=tile", f"train/{LONG}", f"activelearning/{LONG}"):
        answer = server.http.post(f"{server.url}/{path}", **({} if "infer" in path else {"json": {}}))
        assert answer.status_code in (400, 404) and answer.json()["detail"], answer.text


@pytest.mark.parametrize("session", ["..", "../model", "/etc", "x", "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"])
def test_a_session_is_named_by_what_the_server_gave_out(server, session):
    # sessions were folders that the name was joined to, and a stale one is removed
    refused(infer(server, {}, session_id=session), "session", status=404 if session.count("-") == 4 else 422)
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    for method in ("GET", "DELETE"):
        connection.request(method, f"/session/{session}", headers={"Authorization": f"Bearer {TOKEN}"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status in (404, 405, 422)


def test_a_session_is_one_image_and_no_archive(server, tmp_path):
    import tarfile

    evil = tmp_path / "evil.tar"
    with tarfile.open(evil, "w") as archive:
        archive.add(__file__, arcname="../../escaped.py")
    one = [("files", ("a.tar", evil.read_bytes()))]
    refused(server.http.put(f"{server.url}/session/?uncompress=true", files=one), "uncompress")
    refused(server.http.put(f"{server.url}/session/", files=one), "'.tar' is not known")
    two = [("files", ("a.png", TILE)), ("files", ("b.png", TILE))]
    refused(server.http.put(f"{server.url}/session/", files=two), "one image")
    refused(server.http.put(f"{server.url}/session/", files=[("files", ("..", TILE))]), "not known")


def test_addresses_that_mean_nothing_here_are_not_served(server):
    model = server.folder / "bundle" / "models" / "model.pt"
    before = model.read_bytes()
    for method, path in (
        ("PUT", "model/ama_sam"),
        ("DELETE", "model/ama_sam"),
        ("POST", "scoring/dice"),
        ("GET", "proxy/dicom/wado/x"),
        ("GET", "ohif/"),
    ):
        answer = server.http.request(
            method, f"{server.url}/{path}", files={"file": ("model.pt", b"evil")} if method == "PUT" else None
        )
        assert answer.status_code in (404, 405), path
    assert model.read_bytes() == before


def test_after_all_this_the_server_infers_and_trains_at_once(server):
    assert infer(server, {"threshold": 0.4, "min_area": "30"}).status_code == 200
    assert ASK["train"](server, {"max_epochs": 1, "device": "cpu"}).status_code == 200
    deadline = time.monotonic() + 60
    while server.http.get(f"{server.url}/train/").json()["status"] == "SUBMITTED":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert server.http.delete(f"{server.url}/train/").json()["status"] == "STOPPED"


def test_an_image_that_is_there_is_not_replaced_by_another(server):
    """Its labels would be of the wrong picture, and it may be the user's own file."""
    for _ in range(2):  # clients send it again beside each label
        assert put(server, "image", {"image": "kept"}, TILE, "kept.png").status_code == 200
    other = io.BytesIO()
    Image.fromarray(255 - np.asarray(Image.open(io.BytesIO(TILE)))).save(other, "PNG")
    told = put(server, "image", {"image": "kept"}, other.getvalue(), "kept.png")
    assert told.status_code == 409 and "kept: the studies hold another image of this id" in told.text
    as_tiff = io.BytesIO()
    Image.open(io.BytesIO(TILE)).save(as_tiff, "TIFF")
    assert put(server, "image", {"image": "kept"}, as_tiff.getvalue(), "kept.tif").status_code == 409
    assert server.http.get(f"{server.url}/datastore/image", params={"image": "kept"}).content == TILE


def test_no_advice_lets_every_page_in(server):
    answer = server.http.get(f"{server.url}/info/", headers={"Origin": "null"})
    assert answer.status_code == 403 and "-c origins" not in answer.text
