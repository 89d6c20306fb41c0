"""Real MONAI Label servers on 127.0.0.1, asked as clients ask them; the tiny preset of the real classes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import requests
from fakes import open_verb, own_app, tiny_bundle
from label_server import LabelServer, missing_package
from PIL import Image
from scripts.data.synthetic import make_synthetic
from slides import make_drawing, save_slide

REPO = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing_package() is not None, reason=f"{missing_package()} is not installed"),
]
# as QuPath's extension sends it for an image that the server does not have, the region being the upload
QUPATH = {
    "level": 0, "location": [0, 0], "size": [0, 0], "tile_size": [1024, 1024], "min_poly_area": 30,
    "params": {"foreground": [], "background": [], "max_workers": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    return make_synthetic(tmp_path_factory.mktemp("data") / "synthetic")


@pytest.fixture(scope="module")
def pairs(synthetic):
    """(image, label) files, each with a name of its own."""
    folder = synthetic / "synthetic_pink"
    return [(path, folder / "labels" / path.name) for path in sorted((folder / "images").iterdir())]


@pytest.fixture(scope="module")
def stock(bundle_root, tmp_path_factory):
    """The stock app with the bundle itself, to infer, and a tiny copy of it, to train."""
    folder = tmp_path_factory.mktemp("stock")
    command = [sys.executable, "-m", "monailabel.main", "apps", "--download", "--name", "monaibundle", "--output"]
    subprocess.run([*command, str(folder)], check=True, capture_output=True)
    (folder / "monaibundle" / "model").mkdir()
    (folder / "monaibundle" / "model" / "ama_sam").symlink_to(bundle_root)
    tiny_bundle(bundle_root, folder / "monaibundle" / "model" / "tiny")
    settings = {"models": "ama_sam,tiny", "zoo_source": "local", "sam2": "false"}
    with LabelServer(folder / "monaibundle", folder, settings) as server:
        yield server


@pytest.fixture(scope="module")
def own(bundle_root, synthetic, tmp_path_factory):
    """Our app, with a network that finds what is dark."""
    folder = tmp_path_factory.mktemp("own")
    settings = {"auxiliary_dir": synthetic, "auxiliary": "synthetic_dark", "model_dir": folder / "model"}
    with LabelServer(
        own_app(bundle_root, folder), folder, settings, python_path=[REPO / "tests" / "helpers"]
    ) as server:
        yield server


def infer(server, model, image, name="tile.png", **params):
    answer = requests.post(
        f"{server.url}/infer/{model}?output=image", files={"file": (name, image)}, data={"params": json.dumps(params)}
    )
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(answer.content)))


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def put(server, kind, image, content, name):
    field = {"image": "file", "label": "label"}[kind]
    return requests.put(f"{server.url}/datastore/{kind}?image={image}", files={field: (name, content)})


def upload(server, image, label=None):
    """Store an image, and its label, under the image's name."""
    assert put(server, "image", image.stem, image.read_bytes(), image.name).status_code == 200
    if label is not None:
        assert put(server, "label", image.stem, label.read_bytes(), label.name).status_code == 200


def polygons(answer):
    assert answer.status_code == 200 and "xml" in answer.headers["content-type"], answer.text
    return [
        np.array([(float(c.get("X")), float(c.get("Y"))) for c in annotation.iter("Coordinate")])
        for annotation in ElementTree.fromstring(answer.text).iter("Annotation")
    ]


def area_and_centre(polygon):
    x, y = polygon.T
    cross = x * np.roll(y, -1) - np.roll(x, -1) * y
    area = cross.sum() / 2
    return abs(area), ((x + np.roll(x, -1)) @ cross / (6 * area), (y + np.roll(y, -1)) @ cross / (6 * area))


def assert_are_nuclei(found, nuclei):
    """Each drawn nucleus (x, y, radius, radius, angle) is one polygon of its place and area, and there is no other."""
    assert len(found) == len(nuclei) > 0
    areas, centres = zip(*map(area_and_centre, found))
    distance = np.linalg.norm(np.array(centres)[:, None] - nuclei[None, :, :2], axis=2)
    nearest = distance.argmin(1)
    assert sorted(nearest) == list(range(len(nuclei))) and distance.min(1).max() < 1.5
    assert np.allclose(areas, np.pi * nuclei[nearest, 2] * nuclei[nearest, 3], rtol=0.25)


# --- the stock app


def test_stock_app_tells_what_it_serves(stock):
    info = requests.get(f"{stock.url}/info/").json()
    assert info["labels"] == ["nuclei"] and set(info["models"]) == set(info["trainers"]) == {"ama_sam", "tiny"}
    assert None not in info["models"]["ama_sam"]["config"].values()


def test_stock_app_serves_the_shipped_model_pixel_for_pixel(stock, bundle_root, real_data, tmp_path):
    tile = real_data / "tnbc" / "images" / "09_1.png"
    (tmp_path / "images").mkdir()
    Image.open(tile).convert("RGB").crop((0, 0, 500, 300)).save(tmp_path / "images" / "tile.png")
    options = {"dataset_dir": str(tmp_path / "images"), "output_dir": str(tmp_path / "out"), "outputs": ["instances"]}
    open_verb(bundle_root, "inference", "infer", device="$torch.device('cpu')", **options).run()
    wanted = np.asarray(Image.open(tmp_path / "out" / "tile_instances.png"))
    served = infer(stock, "ama_sam", (tmp_path / "images" / "tile.png").read_bytes())
    assert wanted.max() > 10 and served.dtype == np.uint16 and np.array_equal(served, wanted)


def test_stock_app_takes_rgba_and_grey(stock, pairs):
    tile = Image.open(pairs[0][0]).convert("RGB")
    rgb = infer(stock, "tiny", encoded(tile))
    assert rgb.any() and np.array_equal(infer(stock, "tiny", encoded(tile.convert("RGBA"))), rgb)
    assert infer(stock, "tiny", encoded(tile.convert("L"))).shape == rgb.shape
    assert infer(stock, "tiny", encoded(tile, "JPEG"), "tile.jpg").dtype == np.uint16


def test_stock_app_survives_what_is_no_image(stock):
    answer = requests.post(f"{stock.url}/infer/tiny?output=image", files={"file": ("tile.png", b"no image")})
    assert answer.status_code == 500
    assert requests.get(f"{stock.url}/info/").status_code == 200


def test_stock_app_learns_from_a_single_label_and_serves_what_it_learned(stock, pairs):
    (image, label), tile = pairs[0], pairs[1][0].read_bytes()
    upload(stock, image)
    sample = requests.post(f"{stock.url}/activelearning/random", json={}).json()
    assert sample["id"] == image.stem
    assert put(stock, "label", image.stem, label.read_bytes(), label.name).status_code == 200
    stored = requests.get(f"{stock.url}/datastore/label?label={image.stem}&tag=final")
    assert stored.content == label.read_bytes(), "label round trip"
    before = infer(stock, "tiny", tile), model_info(stock)
    status = stock.train("tiny", {"max_epochs": 1})
    assert status["status"] == "DONE", status["details"]
    assert model_info(stock) != before[1] and not np.array_equal(infer(stock, "tiny", tile), before[0])


def model_info(server):
    return requests.get(f"{server.url}/model/info/tiny").json()["checksum"]


# --- our app: slides, QuPath


@pytest.fixture(scope="module")
def slide(own):
    """A slide at twice the network's pixel size in the studies, its nuclei, and its name there."""
    drawing = make_drawing(1500, 1200, seed=3)
    path = save_slide(own.folder / "slide.svs", drawing, 0.5, "svs")
    assert put(own, "image", "slide", path.read_bytes(), "slide.svs").status_code == 200
    return drawing


def test_a_slide_is_segmented_whole_and_no_nucleus_is_cut(own, slide):
    answer = requests.post(f"{own.url}/infer/wsi/ama_sam?output=asap&image=slide", json=QUPATH)
    assert_are_nuclei(polygons(answer), slide.nuclei)


def test_a_region_has_the_nuclei_whose_centres_lie_in_it(own, slide):
    x, y, width, height = 401, 303, 512, 400
    request = {**QUPATH, "location": [x, y], "size": [width, height], "tile_size": [128, 128]}
    found = polygons(requests.post(f"{own.url}/infer/wsi/ama_sam?output=asap&image=slide", json=request))
    start, stop = np.array([x, y]), np.array([x + width, y + height])
    distance = np.minimum(slide.nuclei[:, :2] - start, stop - slide.nuclei[:, :2]).min(1)
    inside, near = slide.nuclei[distance > 1], np.abs(distance) <= 1
    assert len(inside) <= len(found) <= len(inside) + near.sum()
    if not near.any():
        assert_are_nuclei(found, inside)
    for output, key in (("dsa", "elements"), ("json", "features")):
        answer = requests.post(f"{own.url}/infer/wsi/ama_sam?output={output}&image=slide", json=request).json()
        assert len(answer[key]) == len(found), output


def test_a_region_that_qupath_uploads_comes_back_in_its_own_pixels(own, slide):
    patch = slide.draw(400, 300, 600, 500, 1.0)
    answer = requests.post(
        f"{own.url}/infer/wsi_v2/ama_sam?output=asap",
        files={"file": ("patch.png", encoded(Image.fromarray(patch)))},
        data={"wsi": json.dumps({**QUPATH, "params": {**QUPATH["params"], "mpp": 0.5}})},
    )
    found = polygons(answer)
    names = {a.get("Name") for a in ElementTree.fromstring(answer.text).iter("Annotation")}
    assert names == {"nuclei"}, "QuPath replaces annotations by the class that /info/ names"
    centre = slide.nuclei[:, :2] - (400, 300)
    whole = (np.minimum(centre, (600, 500) - centre) > slide.nuclei[:, 2:3]).all(1)
    nuclei = np.concatenate([centre, slide.nuclei[:, 2:]], axis=1)[whole]
    inner = [p for p in found if p.min() > 0 and (p.max(0) < (600, 500)).all()]
    assert_are_nuclei(inner, nuclei)


def test_memory_does_not_grow_with_the_slide(own, slide):
    def peak():
        status = Path(f"/proc/{own.process.pid}/status")
        if not status.is_file():
            pytest.skip("peak memory is read from /proc")
        return int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) / 1024

    requests.post(f"{own.url}/infer/wsi/ama_sam?output=asap&image=slide", json=QUPATH)
    before = peak()
    drawing = make_drawing(6144, 6144, seed=4, blobs=2)
    path = save_slide(own.folder / "large.tif", drawing, 0.25)
    with path.open("rb") as file:
        answer = requests.post(
            f"{own.url}/infer/wsi_v2/ama_sam?output=asap",
            files={"file": ("l.tif", file)},
            data={"wsi": json.dumps(QUPATH)},
        )
    assert len(polygons(answer)) == len(drawing.nuclei)
    assert peak() - before < 110, "MB; the pixels alone would be 113, as the network sees them 453"


# --- our app: bad input


def bad_requests(own, pairs, tmp_path):
    image = pairs[5][0].read_bytes()
    no_mpp = save_slide(tmp_path / "no_mpp.tif", make_drawing(512, 512), None).read_bytes()
    small, blank = (encoded(Image.fromarray(np.full(s, v, np.uint8))) for s, v in (((9, 9), 1), ((256, 256), 0)))
    url, wsi = own.url, {"wsi": json.dumps(QUPATH)}

    def post(path, **files):
        return requests.post(f"{url}/{path}", files=files, data=wsi)

    stem = pairs[5][0].stem
    yield 422, "a.png: the file cannot be read", post("infer/ama_sam?output=image", file=("a.png", image[:200]))
    yield 422, "broken.png: the file cannot be read", put(own, "image", "broken", image[:200], "broken.png")
    yield 422, "format '.txt' is not known", put(own, "image", "notes", b"text", "notes.txt")
    yield 422, "plain name", put(own, "image", "../../out", image, "out.png")
    yield 422, "micrometres per pixel", post("infer/wsi_v2/ama_sam?output=asap", file=("no_mpp.tif", no_mpp))
    yield 404, "no image 'nowhere'", requests.post(f"{url}/infer/ama_sam?image=nowhere")
    yield 404, "no model 'other'", requests.post(f"{url}/infer/other?image={stem}")
    yield 404, "no image 'nowhere'", put(own, "label", "nowhere", small, "l.png")
    yield 422, "the file is empty", put(own, "label", stem, b"", "l.png")
    yield 422, "no nucleus is labelled", put(own, "label", stem, blank, "l.png")
    yield 422, "9 x 9 pixels, its image", put(own, "label", stem, small, "l.png")
    yield 422, "ASAP", put(own, "label", stem, b"<other/>", "l.xml")
    yield 422, "whole slide", put(own, "label", "slide", b"<ASAP_Annotations/>", "l.xml")
    region = {**QUPATH, "location": [9000, 0], "size": [10, 10]}
    yield 422, "outside of", requests.post(f"{url}/infer/wsi/ama_sam?output=asap&image=slide", json=region)
    yield 404, "no model 'other'", requests.post(f"{url}/train/other", json={})


def test_bad_input_is_told_and_harms_nothing(own, slide, pairs, tmp_path):
    upload(own, pairs[5][0])
    stored = requests.get(f"{own.url}/datastore/?output=all").json()
    files = sorted(own.studies.rglob("*"))
    for status, message, answer in bad_requests(own, pairs, tmp_path):
        assert answer.status_code == status and message in answer.json()["detail"], answer.text
    assert requests.get(f"{own.url}/datastore/?output=all").json() == stored
    assert sorted(own.studies.rglob("*")) == files
    assert infer(own, "ama_sam", pairs[5][0].read_bytes()).any()


def test_the_open_slide_gets_a_patch_that_qupath_can_draw(own, slide):
    """As its extension asks, which draws the four numbers as a rectangle."""
    body = {"image": "slide", "patch_size": [256, 192], "image_size": [slide.width, slide.height]}
    boxes = [requests.post(f"{own.url}/activelearning/uncertain", json=body).json() for _ in range(2)]
    assert [box["id"] for box in boxes] == ["slide"] * 2 and boxes[0]["bbox"] != boxes[1]["bbox"]
    for x, y, width, height in (box["bbox"] for box in boxes):
        assert (width, height) == (256, 192) and x + width <= slide.width and y + height <= slide.height
    answer = requests.post(f"{own.url}/activelearning/uncertain", json={**body, "patch_size": [9000, 9000]})
    assert answer.status_code == 422 and "patch_size" in str(answer.json()["detail"])
    answer = requests.post(f"{own.url}/activelearning/uncertain", json={**body, "image": "nowhere"})
    assert answer.status_code == 422 and "no such slide" in answer.json()["detail"]


# --- our app: learning


def test_our_app_offers_the_most_uncertain_tile_and_learns_from_images_and_xml(own, pairs):
    nothing = requests.post(f"{own.url}/train/ama_sam", json={})
    assert nothing.status_code == 422 and "nothing is labelled" in nothing.json()["detail"]
    for image, _ in pairs[:3]:
        upload(own, image)
    sample = requests.post(f"{own.url}/activelearning/uncertain", json={}).json()
    scores = {i: o["image"]["info"].get("disagreement") for i, o in datastore(own)["objects"].items() if i != "slide"}
    assert scores[sample["id"]] == sample["weight"] == max(scores.values()) and {
        image.stem for image, _ in pairs[:3]
    } <= set(scores)
    upload(own, *pairs[0])
    xml = requests.post(f"{own.url}/infer/wsi/ama_sam?output=asap&image={pairs[1][0].stem}", json=QUPATH)
    assert put(own, "label", pairs[1][0].stem, xml.content, "label.xml").status_code == 200
    first = requests.post(f"{own.url}/train/ama_sam", json={"max_epochs": 1, "batches_per_epoch": 2})
    assert first.status_code == 200
    while requests.get(f"{own.url}/train/").json()["status"] == "SUBMITTED":
        time.sleep(0.1)
    again = requests.post(f"{own.url}/train/ama_sam", json={})
    assert again.status_code == 429 and "Already Running" in again.json()["detail"]
    seen = []
    while (status := requests.get(f"{own.url}/train/").json())["status"] == "RUNNING":
        seen.append(status["progress"])
        time.sleep(0.1)
    assert seen and all(not told or told["max_epochs"] == 1 for told in seen)
    assert status["status"] == "DONE", status["details"]
    drawn = np.asarray(Image.open(own.folder / "model" / "training" / "labels" / f"{pairs[1][0].stem}.png"))
    assert drawn.max() == len(polygons(xml))
    assert (own.folder / "model" / "model.pt").is_file()
    info = requests.get(f"{own.url}/info/").json()
    stats = info["train_stats"]["ama_sam"]
    assert (stats["epoch"], stats["max_epochs"]) == (1, 1) and 0 <= stats["best_metric"] <= 1 and "total_time" in stats
    assert set(info["scoring"]) == {"agreement"}
    assert requests.post(f"{own.url}/scoring/agreement").json() == {}, "nothing that was found is kept"
    history = next((own.folder / "model" / "training").glob("labelled_joint_seed0/history.csv")).read_text()
    assert "train_dice_synthetic_dark" in history


def test_others_are_answered_while_it_looks_at_a_large_image(own, pairs):
    """A large image takes seconds; what the server is asks meanwhile, and gets its answer before."""
    large = io.BytesIO()
    tile = np.asarray(Image.open(pairs[0][0]).convert("RGB"))
    Image.fromarray(np.tile(tile, (8, 8, 1))).save(large, "PNG")
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(infer, own, "ama_sam", large.getvalue())
        answers = 0
        while not busy.done():
            assert requests.get(f"{own.url}/info/", timeout=60).status_code == 200
            answers += not busy.done()
        assert busy.result().shape == np.tile(tile, (8, 8, 1)).shape[:2] and answers > 0


def datastore(server):
    return requests.get(f"{server.url}/datastore/?output=all").json()
