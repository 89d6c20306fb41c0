"""What every verb does first: paths become absolute, and its folder is taken only if nothing of others is replaced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from monai.bundle import ConfigWorkflow
from scripts.errors import DataError, root_cause
from scripts.owned import LIST, OwnFiles

CONFIG = {
    "imports": ["$import os"],
    "bundle_root": ".",
    "dataset_dir": "$os.path.join(@bundle_root, 'data')",
    "output_dir": "$os.path.join(@bundle_root, 'output')",
    "source": None,
    "name": "x",
    "files": "$(@dataset_dir, @source, @name)",
    "initialize": [{"_target_": "scripts.setup_run.setup_run", "seed": 0, "defaults": "$@bundle_root + '/verb.json'"}],
    "run": [
        {
            "_target_": "scripts.setup_run.write_config",
            "path": "$os.path.join(@output_dir, 'verb.json')",
            "also": ["metrics.*", "overlays/*_best_*.png"],
        }
    ],
}


@pytest.fixture
def verb(tmp_path, monkeypatch):
    """A small verb, run inside of its bundle's folder."""
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "verb.json").write_text(json.dumps(CONFIG))
    monkeypatch.chdir(tmp_path / "bundle")

    def open_verb(**overrides) -> ConfigWorkflow:
        workflow = ConfigWorkflow("verb.json", workflow_type=None, logging_file=False, **overrides)
        workflow.initialize()
        return workflow

    return open_verb


def test_relative_paths_are_those_of_the_folder_in_which_the_verb_was_started(verb, tmp_path, monkeypatch):
    opened = verb(output_dir="../out", source="somewhere")
    monkeypatch.chdir("/")
    bundle = tmp_path / "bundle"
    assert opened.parser.get_parsed_content("files") == (str(bundle / "data"), str(bundle / "somewhere"), "x")
    opened.run()
    config = json.loads((tmp_path / "out" / "verb.json").read_text())
    assert (config["bundle_root"], config["output_dir"]) == (str(bundle), str(tmp_path / "out"))


@pytest.mark.parametrize("config", ["align", "evaluate", "experiment", "inference", "prepare", "share", "train", "wsi"])
def test_every_key_for_a_path_is_known_as_one(bundle_root, config):
    """Those that start with another function, or that have no default, are named in setup_run."""
    from scripts import setup_run

    content = json.loads((bundle_root / "configs" / f"{config}.json").read_text())
    ends = ("_dir", "_path", "_root", "source", "slide", "init_model")
    paths = {key for key in content if key.endswith(ends) and isinstance(content[key], str | None)}
    assert paths <= {*setup_run.path_keys(content), *setup_run._PATHS}


@pytest.mark.parametrize("name", ["verb.json", "metrics.csv", "overlays/a_best_b.png"])
def test_a_users_file_is_not_replaced(verb, tmp_path, name):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("precious")
    for _ in range(2):
        with pytest.raises(RuntimeError) as ended:
            verb(output_dir=str(tmp_path / "out")).run()
        cause = root_cause(ended.value)
        assert isinstance(cause, DataError) and f"{name}: it was not written by this bundle" in str(cause)
    assert [file for file in (tmp_path / "out").rglob("*") if file.is_file()] == [path]
    assert path.read_text() == "precious"


def test_a_folder_of_the_same_verb_is_written_to_again(verb, tmp_path):
    verb(output_dir=str(tmp_path / "out"), name="one").run()
    (tmp_path / "out" / "metrics.csv").write_text("ours")
    verb(output_dir=str(tmp_path / "out"), name="two").run()
    assert json.loads((tmp_path / "out" / "verb.json").read_text())["name"] == "two"


def test_a_folder_of_the_version_before_is_taken_over(verb, tmp_path):
    verb(output_dir=str(tmp_path / "out")).run()
    (tmp_path / "out" / LIST).unlink()
    (tmp_path / "out" / "metrics.csv").write_text("ours")
    verb(output_dir=str(tmp_path / "out")).run()
    assert set(OwnFiles(tmp_path / "out")) == {"metrics.csv", "verb.json"}


def test_the_configs_of_a_bundle_are_not_results(verb, tmp_path):
    (tmp_path / "bundle" / "metadata.json").write_text("{}")
    before = Path("verb.json").read_text()
    with pytest.raises(RuntimeError):
        verb(output_dir=".").run()
    assert Path("verb.json").read_text() == before
