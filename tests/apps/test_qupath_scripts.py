"""
QuPath's scripts against a real server. QuPath itself is not here: where Groovy is installed, the scripts run on classes
that stand for the few of QuPath's that they use; what they send is sent from here too.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from fakes import own_app
from label_server import LabelServer, missing_package
from PIL import Image
from scripts.data.readers import read_image
from slides import make_drawing

REPO = Path(__file__).resolve().parents[2]
SCRIPTS = REPO / "apps" / "qupath"
GROOVY = shutil.which("groovy")
BOX = 300, 200, 700, 500
pytestmark = pytest.mark.slow
needs_server = pytest.mark.skipif(missing_package() is not None, reason=f"{missing_package()} is not installed")
RUNS = GROOVY is not None and subprocess.run([GROOVY, "--version"], capture_output=True).returncode == 0
needs_groovy = pytest.mark.skipif(not RUNS, reason="groovy is not installed, or does not run")


@pytest.fixture(scope="module")
def server(bundle_root, tmp_path_factory):
    """Our app, with a network that finds what is dark."""
    folder = tmp_path_factory.mktemp("own")
    app, path = own_app(bundle_root, folder), [REPO / "tests" / "helpers"]
    with LabelServer(app, folder, {"model_dir": folder / "model"}, python_path=path, token="a secret") as server:
        yield server


@pytest.fixture
def stub(tmp_path):
    """An open image of 1200 x 900 with a selected rectangle, and the nuclei in it as octagons."""
    drawing = make_drawing(1200, 900, seed=2)
    image = tmp_path / "My slide (1).png"
    Image.fromarray(drawing.draw(0, 0, 1200, 900, 1)).save(image)
    x, y, width, height = BOX
    turns = np.linspace(0, 2 * np.pi, 9)[:-1]
    nuclei = [
        [(np.stack([np.cos(turns), np.sin(turns)], 1) * short + (cx, cy)).tolist()]
        for cx, cy, _, short, _ in drawing.nuclei
        if x + 20 < cx < x + width - 20 and y + 20 < cy < y + height - 20
    ]
    region = [[x, y], [x + width, y], [x + width, y + height], [x, y + height]]
    about = {"image": str(image), "mpp": 0.25, "region": region, "nuclei": nuclei}
    (tmp_path / "stub.json").write_text(json.dumps(about))
    return tmp_path / "stub.json"


def run_script(stub: Path, name: str, **given: str) -> str:
    """Run a script with other values in its part 'what to change'; what it prints."""
    text = (SCRIPTS / name).read_text()
    for key, value in given.items():
        (old,) = (line for line in text.splitlines() if line.startswith(f"def {key} = "))
        text = text.replace(old, f"def {key} = {value}")
    (stub.parent / name).write_text(text)
    command = [GROOVY, "-cp", str(REPO / "tests" / "helpers" / "qupath_stub"), str(stub.parent / name)]
    done = subprocess.run(command, env={**os.environ, "QUPATH_STUB": str(stub)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def centres(rings: list) -> np.ndarray:
    return np.array([np.asarray(ring[0])[:, :2].mean(0) for ring in rings])


def assert_near(found: np.ndarray, truth: np.ndarray) -> None:
    distance = np.linalg.norm(truth[:, None] - found[None], axis=2).min(1)
    assert len(truth) > 10 and distance.max() < 3


@needs_server
def test_what_send_corrections_sends_is_a_labelled_image(server, stub):
    about = json.loads(stub.read_text())
    x, y, width, height = BOX
    region = Image.open(about["image"]).crop((x, y, x + width, y + height))
    region.save(stub.parent / "region.png")
    rows = []
    for number, (ring,) in enumerate(about["nuclei"], start=1):
        corners = "".join(f'<Coordinate Order="{i}" X="{px - x}" Y="{py - y}"/>' for i, (px, py) in enumerate(ring))
        kind = f'Name="{number}" PartOfGroup="nuclei" Type="Polygon"'
        rows.append(f"<Annotation {kind}><Coordinates>{corners}</Coordinates></Annotation>\n")
    xml = f'<?xml version="1.0"?>\n<ASAP_Annotations><Annotations>\n{"".join(rows)}</Annotations></ASAP_Annotations>\n'
    png, name = (stub.parent / "region.png").read_bytes(), "sent_300_200_700_500"
    for kind, params, field in [
        ("image", '{"mpp":0.25}', {"file": (f"{name}.png", png)}),
        ("label", "{}", {"label": (f"{name}.xml", xml)}),
    ]:
        address = f"{server.url}/datastore/{kind}?image={name}"
        answer = server.http.put(address, data={"params": params}, files=field, timeout=60)
        assert answer.status_code == 200, answer.text
    assert_labelled(server, name, len(about["nuclei"]))


def assert_labelled(server, name: str, nuclei: int) -> None:
    about = server.http.get(f"{server.url}/datastore/?output=all", timeout=60).json()["objects"][name]
    assert about["image"]["info"]["mpp"] == 0.25 and "final" in about["labels"]
    text = next((server.studies / "labels" / "final").glob(f"{name}.*")).read_text()
    assert text.count("<Annotation ") == nuclei > 10
    assert read_image(server.studies / f"{name}.png").shape == (500, 700, 3)


@needs_server
@needs_groovy
def test_send_corrections_stores_region_and_nuclei(server, stub):
    told = run_script(stub, "send_corrections.groovy", address=f'"{server.url}"', token='"a secret"')
    count = len(json.loads(stub.read_text())["nuclei"])
    assert told == f"{count} nuclei of My_slide_1_png_300_200_700_500 sent\n"
    assert_labelled(server, "My_slide_1_png_300_200_700_500", count)


@needs_server
@needs_groovy
def test_segment_region_puts_nuclei_into_the_annotation(server, stub):
    about = json.loads(stub.read_text())
    stub.write_text(json.dumps({**about, "nuclei": []}))
    run_script(stub, "segment_region.groovy", address=f'"{server.url}"', token='"a secret"')
    left = json.loads(stub.read_text())["left"]
    assert_near(centres([one["rings"] for one in left]), centres(about["nuclei"]))
    assert all(one["measurements"]["area_um2"] > 0 for one in left)


@needs_server
@needs_groovy
def test_a_refusal_is_told_in_the_servers_words(server, stub):
    with pytest.raises(AssertionError, match=r"The server refuses \(401\).*wants a token"):
        run_script(stub, "segment_region.groovy", address=f'"{server.url}"')


@needs_groovy
def test_segment_region_runs_the_command_where_one_is_named(stub):
    """The command stands aside for one that writes what the slide verb writes, and keeps what it was asked."""
    fake = stub.parent / "fake.sh"
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [[[400, 300], [420, 300], [420, 320], [400, 320]]]},
        "properties": {"objectType": "detection", "measurements": {"haematoxylin_od": 0.5}},
    }
    (stub.parent / "n.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    lines = [
        "#!/bin/sh",
        f'echo "$@" > "{stub.parent}/asked"',
        'for last; do :; done; mkdir "$last/a"',
        f'cp "{stub.parent}/n.geojson" "$last/a/nuclei.geojson"',
    ]
    fake.write_text("\n".join(lines) + "\n")
    fake.chmod(0o755)
    assert run_script(stub, "segment_region.groovy", command=f'["{fake}"]') == "1 nuclei in the annotation\n"
    asked = (stub.parent / "asked").read_text()
    image = json.loads(stub.read_text())["image"]
    assert asked.startswith(f"slide {image} --region 300,200,700,500 --outputs geojson --output_dir ")


@needs_groovy
def test_import_nuclei_replaces_those_of_an_earlier_run(stub):
    folder = stub.parent / "out" / "My slide (1)"
    folder.mkdir(parents=True)
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[[at, 0], [at + 9, 0], [at, 9]]]},
            "properties": {"objectType": "detection", "measurements": {"id": at, "haematoxylin_od": 0.5}},
        }
        for at in (10, 20)
    ]
    (folder / "nuclei.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    others = len(json.loads(stub.read_text())["nuclei"])
    told = run_script(stub, "import_nuclei.groovy", results=f'"{stub.parent / "out"}"')
    assert told.startswith("2 nuclei from ") and len(json.loads(stub.read_text())["left"]) == others + 2
