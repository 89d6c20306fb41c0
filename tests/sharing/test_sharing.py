"""What the model zoo asks of a bundle, and that metadata, model card, versions and packages say the same."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version as installed_version

import pytest
import torch
from monai.bundle import ckpt_export, create_workflow, load, verify_metadata, verify_net_in_out
from packaging.requirements import Requirement
from scripts.data.synthetic import make_synthetic
from scripts.errors import DataError
from scripts.networks.model_file import read_model_file
from scripts.networks.model_info import model_info
from scripts.nuclei.metric_table import METRICS
from scripts.owned import LIST
from scripts.sharing.model_card import metrics_table, record_metrics
from scripts.sharing.packing import ZOO_LIMIT, bundle_files, pack

SCHEMA_KEYS = ("schema", "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version")
FRAMEWORKS = {"torch": "pytorch_version", "monai": "monai_version", "numpy": "numpy_version"}


@pytest.fixture(scope="module")
def metadata(bundle_root):
    return json.loads((bundle_root / "configs" / "metadata.json").read_text(encoding="utf-8"))


@pytest.fixture
def inside(bundle_root, monkeypatch):
    """Inside the bundle's folder, where the zoo's commands are run."""
    monkeypatch.chdir(bundle_root)


def _requirements(file):
    lines = (line.partition("#")[0].strip() for line in file.read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-r")]


# --- metadata


def test_metadata_have_what_schema_and_zoo_ask_for(metadata):
    wanted = {*SCHEMA_KEYS, "name", "changelog", "task", "description", "authors", "copyright", "network_data_format"}
    wanted |= {"data_source", "data_type", "image_classes", "label_classes", "pred_classes", "intended_use"}
    assert wanted | {"eval_metrics", "references", "supported_apps"} <= metadata.keys()
    assert next(iter(metadata["changelog"])) == metadata["version"], "the newest first"


def test_metadata_are_free_of_names_that_monai_replaces(metadata):
    """From 1.5 on it reads ``optional_packages_version`` as the required ones, which then are lost."""
    assert not {"optional_packages_version"} & metadata.keys()


def test_metadata_keep_to_monais_schema(bundle_root, tmp_path):
    schema = os.environ.get("AMA_SAM_METADATA_SCHEMA") or str(
        bundle_root.parent.parent / "shared" / "schema" / "meta_schema_20240725.json"
    )
    if not os.path.isfile(schema):
        pytest.skip("MONAI's metadata schema is not here; name the file with AMA_SAM_METADATA_SCHEMA")
    verify_metadata(meta_file=str(bundle_root / "configs" / "metadata.json"), filepath=schema)


def test_every_package_the_scripts_import_is_required(bundle_root, metadata):
    names = {"PIL": "pillow", "ignite": "pytorch-ignite", "skimage": "scikit-image", "sklearn": "scikit-learn"}
    names |= {"openslide": "openslide-python", "yaml": "pyyaml"}
    extras = (
        bundle_root.parent / f"requirements-{extra}.txt" for extra in ("export", "cluster", "dicom", "openvino", "zarr")
    )
    optional = {requirement.name for file in extras for requirement in _requirements(file)}
    stated = {*metadata["required_packages_version"], *optional, "scripts"}
    sources = [file.read_text(encoding="utf-8") for file in (bundle_root / "scripts").rglob("*.py")]
    imported = {m for text in sources for m in re.findall(r"^\s*(?:from|import) (\w+)", text, re.MULTILINE)}
    third_party = {module for module in imported - sys.stdlib_module_names if importlib.util.find_spec(module)}
    assert {names.get(m, m) for m in third_party} - set(FRAMEWORKS) <= stated


def test_requirements_and_metadata_name_the_same_packages(bundle_root, metadata):
    requirements = {r.name: r for r in _requirements(bundle_root.parent / "requirements.txt")}
    exact = dict(metadata["required_packages_version"])
    exact |= {name: metadata[key] for name, key in FRAMEWORKS.items()}
    assert requirements.keys() == exact.keys()
    unfit = [name for name, version in exact.items() if version not in requirements[name].specifier]
    assert not unfit, "the exact version lies outside the range"


def test_versions_in_metadata_are_those_tested_with(metadata):
    exact = {**metadata["required_packages_version"], **{n: metadata[key] for n, key in FRAMEWORKS.items()}}
    other = {n: (v, installed_version(n)) for n, v in exact.items() if installed_version(n).partition("+")[0] != v}
    if other:
        pytest.skip(f"this environment has other versions than the metadata name: {other}")


def test_the_input_and_output_are_the_networks(bundle_root, metadata, inside):
    verify_net_in_out("network_def", meta_file="configs/metadata.json", config_file="configs/inference.json")
    output = metadata["network_data_format"]["outputs"]["pred"]
    assert output["channel_def"] == {"0": "background", "1": "nuclei"}, "what MONAI Label offers as labels"
    assert model_info("models/model.pt").decoder["out_channels"] == output["num_channels"]


# --- figures live in one place


def test_the_model_card_shows_the_metrics_of_the_metadata(bundle_root, metadata):
    card = (bundle_root / "docs" / "README.md").read_text(encoding="utf-8")
    assert metrics_table(metadata["eval_metrics"]) in card
    shipped = read_model_file(bundle_root / "models" / "model.pt")["provenance"]
    assert set(shipped["domains"]) <= metadata["eval_metrics"].keys()
    assert f"validation Dice {shipped['val_dice']:.3f}".replace(" 0.", " .") in card


def test_recording_puts_an_evaluation_into_metadata_and_model_card(bundle_root, tmp_path):
    summary = {"images": 2, "undefined": 0}
    summary |= {metric: {"mean": 0.5, "std": 0.25, "n": 2} for metric, about in METRICS.items() if about.title}
    without_nuclei = {metric: value for metric, value in summary.items() if metric not in ("merged", "missed")}
    domains = {"mine": summary, "empty": without_nuclei}
    (tmp_path / "metrics.json").write_text(json.dumps({"domains": domains}))
    for name in ("configs/metadata.json", "docs/README.md"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text((bundle_root / name).read_text(encoding="utf-8"), encoding="utf-8")
    record_metrics(tmp_path, tmp_path / "metrics.json")
    card = (tmp_path / "docs" / "README.md").read_text(encoding="utf-8")
    assert "| 0.500 ± 0.250 | 0.500 ± 0.250 | 0 |\n| `empty` | 2 |" in card and "| - | - | 0 |" in card
    assert "| `mine` | 2 | 0.500 ± 0.250 |" in card and "| `tnbc` | 13 |" not in card
    written = (tmp_path / "configs" / "metadata.json").read_text(encoding="utf-8")
    assert json.loads(written)["eval_metrics"]["mine"]["dice_mean"] == 0.5
    with pytest.raises(DataError, match="Run evaluating first"):
        record_metrics(tmp_path, tmp_path / "none.json")


# --- the zoo's form


def test_configs_are_printed_as_the_zoo_wants(bundle_root):
    for file in (bundle_root / "configs").rglob("*.json"):
        text = file.read_text(encoding="utf-8")
        assert text == json.dumps(json.loads(text), indent=4, ensure_ascii=False) + "\n", file.name


@pytest.mark.parametrize(
    "tool",
    [
        "black --check --quiet --line-length 120 --skip-magic-trailing-comma",
        "isort --check --profile black --line-length 120 -o scripts",
        "flake8 --max-line-length 120 --select B,C,E,F,N,P,T4,W,B9 --ignore E203,E501,E741,W503,W504,C408,N812,B023",
    ],
)
def test_scripts_are_in_the_zoos_style(bundle_root, tool):
    """As the zoo's runtests.sh and setup.cfg have it."""
    pytest.importorskip(tool.split()[0])
    done = subprocess.run(
        [sys.executable, "-m", *tool.split(), str(bundle_root / "scripts")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_files_are_small_enough_and_the_licence_is_inside(bundle_root):
    files = {str(file.relative_to(bundle_root)) for file in bundle_files(bundle_root)}
    needed = {"LICENSE", "docs/README.md", "docs/data_license.txt", "models/model.pt", "configs/metadata.json"}
    assert needed | {"configs/inference.json", "configs/train.json", "scripts/__init__.py"} <= files
    assert not [f for f in files if (bundle_root / f).stat().st_size > ZOO_LIMIT]
    assert (bundle_root / "LICENSE").read_bytes() == (bundle_root.parent / "LICENSE").read_bytes()


def test_the_zoo_loads_the_weights_without_being_told_where_they_are(bundle_root, inside, tmp_path):
    """Its ckpt_export and ``monai.bundle.load`` take model.pt as a state dict; load would pass over anything else."""
    weights = read_model_file("models/model.pt")["model"]
    network = load(bundle_root.name, bundle_dir=str(bundle_root.parent), workflow_type="inference")
    state = network.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[name], value.to(state[name].dtype)) for name, value in weights.items())
    ckpt_export(config_file="configs/inference.json", filepath=str(tmp_path / "verify_model.ts"))
    assert torch.jit.load(tmp_path / "verify_model.ts") is not None


@pytest.mark.parametrize("config, kind", [("train", "train"), ("inference", "infer")])
def test_workflows_as_the_zoos_unit_tests_run_them(bundle_root, tmp_path, monkeypatch, config, kind):
    """The zoo's check_workflow: create, initialise, run, check properties, finalise."""
    data = str(make_synthetic(tmp_path / "synthetic", {"training": 2, "validation": 1, "testing": 1}))
    images = {"train": data, "inference": os.path.join(data, "synthetic_pink", "images")}
    small = {
        "max_epochs": 1, "batches_per_epoch": 1, "batch_size": 4, "crop_size": 64, "window_size": 64,
        "cache_windows": 1, "decoder_size": "light", "alignment_report": False,
    }  # fmt: skip
    monkeypatch.chdir(bundle_root)
    workflow = create_workflow(
        config_file=str(bundle_root / "configs" / f"{config}.json"),
        workflow_type=kind,
        bundle_root=str(bundle_root),
        logging_file=False,
        dataset_dir=str(images[config]),
        output_dir=str(tmp_path / "out"),
        **(small if config == "train" else {}),
    )
    workflow.initialize()
    workflow.run()
    assert workflow.check_properties() == []
    workflow.finalize()


# --- packing


def test_the_same_bundle_gives_the_same_zip(bundle_root, tmp_path):
    first, second = (pack(bundle_root, tmp_path / str(n), "mine") for n in range(2))
    assert first.read_bytes() == second.read_bytes()


def test_a_zip_of_somebody_else_is_not_replaced(bundle_root, tmp_path):
    path = pack(bundle_root, tmp_path, "mine")
    assert pack(bundle_root, tmp_path, "mine") == path, "our own is"
    (tmp_path / LIST).unlink()
    before = path.read_bytes()
    with pytest.raises(DataError, match="it was not written by this bundle"):
        pack(bundle_root, tmp_path, "mine")
    assert path.read_bytes() == before


def test_a_bundle_that_lacks_a_part_is_not_packed(tmp_path):
    (tmp_path / "LICENSE").write_text("free")
    with pytest.raises(DataError, match="configs.*a bundle needs it"):
        pack(tmp_path, tmp_path, "mine")
    assert not list(tmp_path.glob("*.zip"))
