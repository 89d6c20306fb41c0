"""The kept model in MLflow: loaded and served by MLflow itself where nothing of the bundle is, registered, small."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import mlflow
import numpy as np
import pytest
from conftest import BUNDLE
from fakes import place_store, tiny_model
from mlflow_servers import Line
from PIL import Image
from scripts.networks.loading import load_network, save_model
from scripts.tracking import logged_model
from scripts.tracking.data_inputs import data_fingerprint, data_inputs
from scripts.tracking.logged_model import LoggedModel
from scripts.tracking.store import open_experiment, open_store

from ama_sam import load

# what a user of the model runs, with nothing but MLflow
LOADING = """
import sys, mlflow, numpy
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
(found,) = model.predict(numpy.load("image.npy")[None], params={"mpp": 0.25})
assert [row["id"] for row in found["nuclei"]] == sorted(set(found["labels"].ravel().tolist()) - {0})
assert model.get_raw_model().training is False
import scripts
print(scripts.__path__[0])
numpy.save("labels.npy", found["labels"])
"""


def _elsewhere():
    """A process' environment that knows nothing of this repository."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_WAIT_POLICY": "PASSIVE"}


def _local(folder):
    return f"sqlite:///{folder / 'mlruns.db'}"


@pytest.fixture(scope="module")
def trained(open_training, synthetic, tmp_path_factory):
    """A training whose model is logged and registered, and an image."""
    folder = tmp_path_factory.mktemp("trained")
    open_training(folder, max_epochs=1, log_model=True, register_model="nuclei").run()
    image = next((Path(synthetic) / "synthetic_pink").rglob("images/*.png"))
    np.save(folder / "image.npy", np.asarray(Image.open(image).convert("RGB")))
    client = mlflow.MlflowClient(_local(folder))
    (run,) = client.search_runs([client.get_experiment_by_name("ama_sam").experiment_id])
    return folder, client, run


@pytest.mark.slow
def test_a_fresh_process_loads_the_registered_model_without_the_bundle(trained):
    folder, _, _ = trained
    command = [sys.executable, "-c", LOADING, _local(folder), "models:/nuclei@best"]
    done = subprocess.run(command, cwd=folder, env=_elsewhere(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.strip().startswith(str(BUNDLE)), "its own code"
    (kept,) = folder.glob("*/model.pt")
    expected = load(kept, device="cpu").segment(np.load(folder / "image.npy"), 0.25).labels
    np.testing.assert_array_equal(np.load(folder / "labels.npy"), expected)


@pytest.mark.slow
def test_mlflow_serves_it(trained):
    """By MLflow's own command, on this machine; what is answered is JSON of nuclei."""
    folder, client, run = trained
    (output,) = run.outputs.model_outputs
    model = client.get_logged_model(output.model_id).artifact_location
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model, "--env-manager", "local"]
    with (folder / "serving.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "-h", "127.0.0.1", "-p", str(port)], cwd=folder, env=_elsewhere(), stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=60).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "serving.log").read_text()
                time.sleep(0.5)
        image = np.load(folder / "image.npy")[:64, :64]
        (found,) = _ask(port, {"inputs": image[None].tolist(), "params": {"mpp": 0.25}})["predictions"]
        assert np.asarray(found["labels"]).shape == (64, 64) and isinstance(found["nuclei"], list)
        with pytest.raises(urllib.error.HTTPError) as refused:
            _ask(port, {"inputs": image[None, :, :, :2].tolist()})
        assert refused.value.code == 400 and "(-1, -1, -1, 3)" in refused.value.read().decode()
    finally:
        os.killpg(process.pid, 15)
        process.wait()


def _ask(port, content):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations", json.dumps(content).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


@pytest.mark.slow
def test_the_run_tells_what_it_was_made_of(trained, synthetic):
    folder, client, run = trained
    (output,) = run.outputs.model_outputs
    logged = client.get_logged_model(output.model_id)
    place = Path(mlflow.artifacts.download_artifacts(logged.artifact_location, tracking_uri=_local(folder)))
    (kept,) = folder.glob("*/model.pt")
    size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
    assert len(list(place.rglob("*.pt"))) == 1 and size < kept.stat().st_size + 3e6, "the weights once"
    about = mlflow.models.Model.load(str(place))
    assert str(logged.status) == "READY" and about.signature.params.params[0].name == "mpp"
    assert about.load_input_example(str(place)).shape == (1, 64, 64, 3)
    version = client.get_model_version_by_alias("nuclei", "best")
    assert version.run_id == run.info.run_id and "val_dice" in version.tags
    tags = run.data.tags
    assert tags["mlflow.source.name"] == "monai.bundle run training" and tags["mlflow.note.content"]
    assert tags["bundle_version"] and len(tags["data_fingerprint"]) == 16
    data = {entry.dataset.name: entry for entry in run.inputs.dataset_inputs}
    assert data.keys() == {path.parent.name for path in Path(synthetic).glob("*/dataset.json")}
    told = json.loads(data["synthetic_pink"].dataset.profile)
    assert told["images"]["training"] > 0 and told["images"]["validation"] > 0
    assert {tag.key: tag.value for tag in data["synthetic_pink"].tags}["role"] == "primary"
    kind = client.get_experiment(run.info.experiment_id).tags["mlflow.experimentKind"]
    assert kind == "custom_model_development"


def test_digests_are_of_the_files_not_of_their_place(tmp_path):
    root = tmp_path / "one" / "a"
    root.mkdir(parents=True)
    (root / "dataset.json").write_text('{"license": "CC0 1.0"}')
    (root / "image.png").write_bytes(b"12")
    shutil.copytree(tmp_path / "one", tmp_path / "two")

    def inputs(folder, **more):
        items = [{"image": str(folder / "image.png"), "label": str(folder / "image.png"), **more}]
        return data_inputs([{"name": "a", "role": "primary", "root": str(folder)}], {"training": items})

    first, copy = inputs(root), inputs(tmp_path / "two" / "a")
    assert first[0].dataset.digest == copy[0].dataset.digest
    assert json.loads(first[0].dataset.profile) == {"images": {"training": 1}, "license": "CC0 1.0"}
    assert {tag.key: tag.value for tag in first[0].tags}["license"] == "CC0 1.0"
    assert data_fingerprint(inputs(root, span=(0, 0.5))) != data_fingerprint(first)
    unlabelled = [{"image": str(root / "image.png"), "unlabelled": True}]
    domain = {"name": "a", "role": "auxiliary", "root": str(root), "labels": False}
    assert data_inputs([domain], {"training": unlabelled})[0].dataset.digest != first[0].dataset.digest
    (root / "image.png").write_bytes(b"123")
    assert data_fingerprint(inputs(root)) != data_fingerprint(first)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Model files by their validation Dice."""
    folder = tmp_path_factory.mktemp("models")
    network = load_network(tiny_model(folder / "tiny.pt"))
    for score in (0.5, 0.6, 0.7):
        save_model(folder / f"{score}.pt", network, {"val_dice": score, "epoch": round(score * 10)})
    return folder


def _run(folder, name="r"):
    place_store(folder)
    client = open_store(_local(folder))
    return client, client.create_run(open_experiment(client, "e"), run_name=name)


def test_the_alias_is_that_of_the_best_on_the_same_data(models, tmp_path):
    for score, data, best in [(0.6, "a", 1), (0.5, "a", 1), (0.7, "b", 1), (0.7, "a", 4)]:
        client, run = _run(tmp_path)
        LoggedModel(models / f"{score}.pt", BUNDLE, "nuclei", data).log(client, run)
        assert int(client.get_model_version_by_alias("nuclei", "best").version) == best
    assert len(client.search_model_versions("name = 'nuclei'")) == 4


def test_a_run_that_goes_on_does_not_log_the_same_model_again(models, tmp_path):
    client, run = _run(tmp_path)
    for score in (0.5, 0.5, 0.6):
        LoggedModel(models / f"{score}.pt", BUNDLE).log(client, run)
    assert len(client.get_run(run.info.run_id).outputs.model_outputs) == 2


def test_a_network_of_ones_own_is_told_and_not_logged(models, tmp_path, caplog):
    import torch

    content = torch.load(models / "0.5.pt")
    content["about"]["decoder"]["type"] = "MyDecoder"
    torch.save(content, tmp_path / "model.pt")
    client, run = _run(tmp_path)
    LoggedModel(tmp_path / "model.pt", BUNDLE).log(client, run)
    assert client.get_run(run.info.run_id).outputs is None or not client.get_run(run.info.run_id).outputs.model_outputs
    assert "its network is none of this bundle's" in caplog.text


@pytest.mark.slow
def test_a_server_keeps_and_registers_it(models, mlflow_server, tmp_path):
    client = open_store(mlflow_server)
    run = client.create_run(open_experiment(client, "kept"))
    LoggedModel(models / "0.5.pt", BUNDLE, "of_server", "a").log(client, run)
    np.save(tmp_path / "image.npy", np.full((32, 32, 3), 200, np.uint8))
    command = [sys.executable, "-c", LOADING, mlflow_server, "models:/of_server@best"]
    done = subprocess.run(command, cwd=tmp_path, env=_elsewhere(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_server_that_goes_away_while_it_gets_the_model(open_training, mlflow_server, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    line, save = Line(mlflow_server), logged_model.save
    monkeypatch.setattr(logged_model, "save", lambda *arguments: (save(*arguments), line.cut()))
    open_training(tmp_path, tracking_uri=line.uri, max_epochs=1, log_model=True, register_model="nuclei").run()
    client = mlflow.MlflowClient(_local(tmp_path))
    (run,) = client.search_runs([client.get_experiment_by_name("ama_sam").experiment_id])
    assert run.info.status == "FINISHED" and len(run.outputs.model_outputs) == 1
    assert client.get_model_version_by_alias("nuclei", "best").run_id == run.info.run_id
    assert client.get_run(run.info.run_id).data.tags["data_fingerprint"]
