"""The command ``ama-sam`` and ``load``: as a user meets them, from a wheel, and with the numbers of the verb."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import BUNDLE, REPO
from fakes import tiny_model
from PIL import Image
from scripts.config_files import check_config
from scripts.errors import DataError

from ama_sam.commands import COMMANDS

SLOW = {"torch", "itk", "matplotlib", "mlflow", "nibabel", "pandas", "sklearn"}  # packages, to import


def _run(*arguments, cwd, path=REPO):
    """What ``ama-sam`` does in a process of its own; its last line tells which of ``SLOW`` were imported for it."""
    code = "import sys; from ama_sam.cli import main; code = main(); "
    code += f"print(*sorted({SLOW} & sys.modules.keys())); sys.exit(code)"
    environment = {**os.environ, "PYTHONPATH": str(path), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def tile(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiles") / "tile.png"
    pixels = np.random.default_rng(0).integers(0, 255, (16, 20, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model") / "model.pt")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_every_setting(name, tmp_path, capsys):
    from ama_sam.cli import main

    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    from scripts.settings import SETTINGS

    shown = capsys.readouterr().out
    for key in SETTINGS[COMMANDS[name].configs[0]].keys() - {"bundle_root", COMMANDS[name].source}:
        assert f"--{key}" in shown


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["segmnt"], "did you mean 'segment'"),
        (["segment"], "IMAGES"),
        (["segment", ".", "--treshold", "3"], "did you mean 'threshold'"),
        (["segment", ".", "--threshold", "3"], "threshold: it must be a number above 0 and below 1"),
        (["segment", "nowhere"], "nowhere: there is no such file or folder"),
        (["segment", ".", "more"], "more: this argument belongs to no option. The folder for results goes behind -o: "),
        (["segment", ".", "more"], "ama-sam segment . -o more"),
        (["segment", __file__, __file__], "of several files name the folder that holds them"),
        (["segment", ".", "-o", "out", "more"], "more: this argument belongs to no option. One is taken at a time"),
        (["slide", __file__, __file__], "name the folder that holds them, or a text file with one path a line"),
        (["segment", "my", "images"], "images: this argument belongs to no option. Quote what contains spaces"),
        (["segment", ".", "-threshold", "3"], "-threshold: there is no such option (did you mean 'threshold'?)"),
        (["train", "--max-epochs", "0"], "max_epochs: it must be a whole number from 1"),
        (["train", "--run_name", "../x"], "run_name: it must be a name"),
        (["train", "--config", "mine.json"], "mine.json: there is no such config"),
        (["evaluate", "--split", "test"], "did you mean 'testing'"),
        (["train", "--config_file", "mine.json"], "--config_file: there is no such option (did you mean 'config'?)"),
        (["train", "--cache_variants", "2"], "there is no such option (it is called 'cache_windows' now)"),
        (["train", "--train::augmentation::blur::prob"], "--train::augmentation::blur::prob: it has no value"),
        (["slide", ".", "--shard", "2/2"], "--shard: there is no such option any more. --cluster shares slides"),
        (["slide", ".", "--cluster", "local:0"], "cluster: it must be local, local:N"),
        (["adapt", ".", "--init_model", "None"], "init_share: there are no weights to share with"),
    ],
)
def test_what_is_wrong_is_told_before_torch_is_imported(tmp_path, arguments, told):
    done = _run(*arguments, cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == "\n"
    assert done.stderr.startswith("Error: ") and told in done.stderr and done.stderr.count("\n") == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name, content, told",
    [
        ("mine.json", '{"mode": "joint",\n"seed" 0}', "mine.json: the file cannot be read as JSON (line 2: "),
        ("mine.json", '\ufeff{"mode": "joint"}', "mine.json: the file cannot be read as JSON (Unexpected UTF-8 BOM"),
        ("mine.json", '["joint"]', "mine.json: it holds no object. Write {"),
        ("mine.yaml", "a: 1\nmode: [joint\nseed: 0\n", "mine.yaml: the file cannot be read as YAML (line 3: expected "),
        ("mine.yml", "mode: joint\n\tseed: 0\n", "mine.yml: the file cannot be read as YAML (line 2: found character"),
        ("mine.yaml", "mode: !!python/name:os.system\n", "mine.yaml: the file cannot be read as YAML (line 1: could"),
        ("mine.yaml", "mode: \0\n", "mine.yaml: the file cannot be read as YAML (unacceptable character"),
        ("mine.yaml", "", "mine.yaml: it holds no object. Write KEY: VALUE"),
        ("mine.yaml", "yes: 1\n", "mine.yaml: its key True is no text. Put it in quotes"),
        ("mine.txt", "{}", "mine.txt: it is no config. Name a .json or .yaml file"),
    ],
)
def test_a_config_that_is_none_is_told_by_name(tmp_path, monkeypatch, capsys, name, content, told):
    from ama_sam.cli import main

    monkeypatch.chdir(tmp_path)
    Path(name).write_text(content)
    for command, about in COMMANDS.items():
        source = [] if about.source is None else ["."]
        assert main([command, *source, "--config", name]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"Error: {told}") and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    "content, told",
    [(None, "it is a folder, and no config"), ('{"seed": 1}'.encode("utf-16"), "Save it as UTF-8 without")],
)
def test_a_config_that_is_no_text_or_no_file(tmp_path, content, told):
    path = tmp_path / "mine.json"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(DataError, match=told):
        check_config(path)


@pytest.fixture(scope="module")
def segmented(tile, model, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "results"
    arguments = ["segment", tile, "-o", out, "--mpp", "0.25", "--ckpt_path", model, "--tile_size", "256"]
    done = _run(*arguments, "--min_area", "0", "--min_peak", "0", "--device", "cpu", cwd=out.parent)
    assert done.returncode == 0, done.stderr
    return out, done


@pytest.mark.parametrize("name", ["$os.png", "@model.png", "%seed.png"])
def test_an_image_named_like_an_expression_is_a_file(tmp_path, monkeypatch, name):
    from ama_sam import cli

    (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_run", lambda command, settings: settings["dataset_dir"] != str(tmp_path / name))
    assert cli.main(["segment", name]) == 0


def test_one_image_is_segmented_and_the_last_lines_say_what_was_done(segmented):
    out, done = segmented
    assert {path.name for path in out.iterdir()} >= {"tile_mask.png", "tile.geojson", "tile_nuclei.csv", "summary.json"}
    nuclei = json.loads((out / "summary.json").read_text())["nuclei"]
    assert f"Segmented 1 image: {nuclei} nuclei" in done.stdout and f"Results: {out}\n" in done.stdout
    assert "input summary" not in done.stdout and "GHSA" not in done.stdout + done.stderr


def test_segmenting_imports_nothing_that_only_training_needs(segmented):
    assert segmented[1].stdout.splitlines()[-1] == "torch"


def test_a_package_left_out_is_imported_when_an_image_or_a_format_needs_it(tile, model, tmp_path):
    itk = pytest.importorskip("itk")
    itk.imwrite(itk.image_from_array(np.asarray(Image.open(tile)), is_vector=True), str(tmp_path / "tile.mha"))
    arguments = ["segment", "tile.mha", "-o", "out", "--mpp", "0.25", "--ckpt_path", model, "--device", "cpu"]
    done = _run(*arguments, "--tile_size", "256", "--label_format", "nii.gz", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "tile_instances.nii.gz").is_file()
    # where xarray is installed itk brings it along, and that pandas
    assert set(done.stdout.splitlines()[-1].split()) - {"pandas"} == {"itk", "nibabel", "torch"}


def test_a_config_of_the_users_own_finds_all_that_is_installed(tile, model, tmp_path):
    (tmp_path / "mine.json").write_text('{"imports": ["$import os", "$import torch", "$import mlflow"]}')
    arguments = ["segment", tile, "-o", "out", "--mpp", "0.25", "--ckpt_path", model, "--device", "cpu"]
    done = _run(*arguments, "--tile_size", "256", "--config", "mine.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {"mlflow", "itk", "pandas"} <= set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("kind", ["path", "array", "PIL"])
def test_load_gives_what_the_verb_writes(segmented, tile, model, kind):
    pandas = pytest.importorskip("pandas")
    from ama_sam import load

    out, _ = segmented
    image = {"path": tile, "array": np.asarray(Image.open(tile)), "PIL": Image.open(tile)}[kind]
    nuclei = load(model, device="cpu", tile_size=256, min_area=0, min_peak=0).segment(
        image, 0.25, probabilities=True, name="tile"
    )
    assert len(nuclei) > 0 and nuclei.labels.dtype == np.int32
    np.testing.assert_array_equal(nuclei.labels, np.asarray(Image.open(out / "tile_instances.png")))
    pandas.testing.assert_frame_equal(nuclei.table, pandas.read_csv(out / "tile_nuclei.csv"))
    assert nuclei.polygons == json.loads((out / "tile.geojson").read_text())["features"]
    assert nuclei.probabilities.shape == nuclei.labels.shape


def test_a_place_that_the_config_lacks_is_told_by_its_key(tmp_path, tile):
    """Without an image before it, too: its value was taken for the image."""
    done = _run("segment", "--preprocessing::transforms::nothing::a", "true", tile, "-o", "out", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "Error: --preprocessing::transforms::nothing::a: there is no 'nothing' at this place" in done.stderr
    (tmp_path / "mine.json").write_text('{"preprocessing::steps::a": true}')
    done = _run("segment", tile, "--config", "mine.json", "-o", "out", cwd=tmp_path)
    assert done.returncode == 1 and "mine.json: there is no 'steps' at this place of the config" in done.stderr


@pytest.mark.parametrize(
    "name, told", [("none.png", "there is no such file"), ("", "it is a"), ("bad.png", "the file")]
)
def test_load_tells_which_image_cannot_be_read(model, tmp_path, name, told):
    from ama_sam import load

    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with pytest.raises(DataError) as error:
        load(model, device="cpu").segment(tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path / name}: {told}") and "dataset_dir" not in str(error.value)


def test_load_refuses_an_image_without_pixels(model):
    from ama_sam import load

    with pytest.raises(ValueError, match="with pixels, got"):
        load(model, device="cpu").segment(np.zeros((0, 5, 3), np.uint8))


def test_load_refuses_what_the_verb_refuses(model):
    from ama_sam import load

    with pytest.raises(DataError, match="threshold"):
        load(model, threshold=7)
    with pytest.raises(DataError, match="did you mean 'threshold'"):
        load(model, treshold=0.4)
    with pytest.raises(DataError, match="device: there is no cuda:77 on this machine. There is cpu"):
        load(model, device="cuda:77")


def test_another_package_called_scripts_is_told(tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "__init__.py").touch()
    code = "import scripts, ama_sam; ama_sam.load()"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{REPO}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "another package called 'scripts' is imported already" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_wheel_holds_all_that_segmenting_needs(tile, tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    source, site, work = tmp_path / "source", tmp_path / "site", tmp_path / "work"
    for folder in ("ama_sam", "apps", "bundle/configs", "bundle/docs", "bundle/sample", "bundle/scripts"):
        shutil.copytree(REPO / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__", "model", "logs"))
    (source / "bundle" / "models").mkdir()
    for name in (
        "bundle/LICENSE",
        "bundle/models/model.pt",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "requirements.txt",
    ):
        shutil.copy(REPO / name, source / name)
    options = ["--no-deps", "--no-build-isolation", "-t", str(site)]
    subprocess.run([*pip, "install", "-q", *options, str(source)], check=True)
    before = {path for path in site.rglob("*") if "__pycache__" not in path.parts}
    work.mkdir()
    done = _run("segment", tile, "--device", "cpu", cwd=work, path=site)
    assert done.returncode == 0, done.stderr
    assert (work / "output" / "inference" / "summary.json").is_file()
    assert {path for path in site.rglob("*") if "__pycache__" not in path.parts} == before
    assert {f.name for f in (site / "ama_sam" / "bundle" / "sample").rglob("*")} >= {"images", "labels"}
    version = json.loads((BUNDLE / "configs" / "metadata.json").read_text())["version"]
    assert (site / f"ama_sam-{version}.dist-info").is_dir() and (site / "bin" / "ama-sam").is_file()


def test_serving_without_monai_label_is_one_sentence(monkeypatch, capsys):
    from ama_sam import serving
    from ama_sam.cli import main

    monkeypatch.setattr(serving, "find_spec", lambda name: None)
    assert main(["serve", "studies"]) == 1
    assert (
        capsys.readouterr()
        .err.strip()
        .endswith("MONAI Label is not installed. docs/monailabel.md has its two commands")
    )


def test_a_setting_of_the_server_that_is_wrong_is_one_sentence(monkeypatch, capsys):
    from ama_sam import serving
    from ama_sam.cli import main

    monkeypatch.setattr(serving, "find_spec", lambda name: object())
    monkeypatch.setattr(serving.subprocess, "run", lambda command: pytest.fail("it starts"))
    assert main(["serve", "studies", "-c", "modle_dir", "x"]) == 1
    assert capsys.readouterr().err.startswith("Error: modle_dir: there is no such setting (did you mean 'model_dir'?)")


def test_serve_starts_the_app_of_this_package(monkeypatch, tmp_path):
    """The server itself is tested in tests/apps; here, that it is told which app, folder and address."""
    from ama_sam import serving
    from ama_sam.cli import main

    started = []
    monkeypatch.setattr(serving, "find_spec", lambda name: object())
    monkeypatch.setattr(
        serving.subprocess, "run", lambda command: started.append(command) or SimpleNamespace(returncode=0)
    )
    assert main(["serve", str(tmp_path / "s"), "--port", "8123", "-c", "mpp", "0.5"]) == 0
    (command,) = started
    app = Path(command[command.index("-a") + 1])
    assert (app / "main.py").is_file() and str(tmp_path / "s") in command and "8123" in command
    assert command[-2:] == ["mpp", "0.5"] and "127.0.0.1" in command


def test_extras_are_what_the_requirement_files_say(monkeypatch):
    import runpy

    import setuptools

    given = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    runpy.run_path(str(REPO / "setup.py"))
    extras = given["extras_require"]
    assert extras.keys() == {"label", "export", "dev"} and set(extras["export"]) < set(extras["dev"])
    assert not [line for lines in extras.values() for line in lines if line.startswith(("-", "#"))]


@pytest.mark.parametrize("settings", [{"mpp": 0.5}, {"output_dir": "x"}])
def test_load_refuses_what_is_of_an_image_or_a_file(model, settings):
    from ama_sam import load

    with pytest.raises(DataError, match="says nothing of a model. Give mpp to segment"):
        load(model, **settings)


def test_an_estimate_is_not_promised_in_notebooks(model, tile):
    from ama_sam import load

    with pytest.raises(DataError, match="'estimate' is no number"):
        load(model, "cpu").segment(tile, mpp="estimate")


def test_a_folder_below_a_file_is_refused(tmp_path, tile, capsys):
    from ama_sam.cli import main

    (tmp_path / "file").write_text("x")
    assert main(["segment", str(tile), "-o", str(tmp_path / "file" / "out")]) == 1
    assert "output_dir" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["pydantic", "torch"])
def test_ctrl_c_while_libraries_are_loaded_is_no_traceback(tmp_path, tile, module):
    """Interrupted at the import of a module, before the verb begins."""
    finder = f"""
import sys, signal, os
signal.signal(signal.SIGINT, signal.default_int_handler)
class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupts())
from ama_sam.cli import main
sys.exit(main())
"""
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    command = [sys.executable, "-c", finder, "segment", str(tile), "-o", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode != 0 and not (tmp_path / "out").exists()
    told = [line for line in done.stderr.splitlines() if line]
    assert told == ["Interrupted: what was finished is kept.", "The same command begins again."]


def test_a_set_prepared_alone_is_trained_on_alone(tmp_path):
    from ama_sam.closing import closing_lines

    for name, ending in (("mine", "--primary mine --mode single"), ("theirs", "--primary theirs")):
        (tmp_path / name).mkdir()
        for file in ("split.json", "contact_sheet.png"):
            (tmp_path / name / file).touch()
        told = closing_lines("preparing", {"output_dir": str(tmp_path), "name": name})
        assert f"To train on it: ama-sam train {tmp_path} {ending}" in told
