"""What the docs say exists: every command parses, every link and file is there, and the version is the same."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import monai.bundle
import pytest
from conftest import BUNDLE, REPO
from monai.bundle import ConfigParser
from scripts.setup_run import unknown_keys

WRITTEN = ("bundle/output", "models/model.ts", "models/model.onnx")  # by commands of the docs
PAGES = sorted([*REPO.glob("*.md"), *(BUNDLE / "docs").glob("*.md"), REPO / "benchmarks" / "README.md"])
_FENCE = re.compile(r"^```bash\n(.*?)^```", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
# file names in back-quotes, below folders of the repository
_FILE = re.compile(r"`((?:bundle/|tests/|benchmarks/|scripts/|configs/|docs/|models/model)[\w./*-]*?)`")


def _commands(text):
    for block in _FENCE.findall(text):
        for line in re.sub(r"\\\n", " ", block).splitlines():
            line = re.sub(r"[()]", "", line.replace("&&", "\n")) if "'" not in line else line
            for part in line.splitlines():
                if "monai.bundle" in part:
                    yield part.strip()


COMMANDS = [(page.name, command) for page in PAGES for command in _commands(page.read_text(encoding="utf-8"))]


def _options(words):
    return {name[2:]: value for name, value in zip(words, [*words[1:], ""]) if name.startswith("--")}


@pytest.mark.parametrize("page, command", COMMANDS)
def test_a_command_names_verbs_configs_and_keys_that_exist(page, command):
    words = shlex.split(command.partition("monai.bundle")[2])
    options = _options(words)
    if words[0] != "run":
        function = getattr(monai.bundle, words[0])
        assert options.keys() <= inspect.signature(function).parameters.keys(), f"options of {words[0]}"
        files = [options[key] for key in ("config_file", "meta_file", "args_file") if key in options]
        assert all((BUNDLE / file).is_file() for file in files)
        return
    files = options.pop("config_file")
    files = ast.literal_eval(files) if files.startswith("[") else [files]
    ours = [file for file in files if file != "mine.json"]
    config = ConfigParser.load_config_files([str(BUNDLE / file) for file in ours])
    defaults = ConfigParser.load_config_file(BUNDLE / ours[0])
    assert words[1] in config, f"{words[1]} is no verb of {ours}"
    options.pop("bundle_root", None)
    parser = ConfigParser(config)
    for key in [key for key in options if "::" in key]:
        parent, _, last = key.rpartition("::")
        known = set(parser[parent] or {last})
        if parent.endswith("::settings"):  # any key of the config of that verb
            file = re.search(r"\w+\.json", parser[parent.removesuffix("settings") + "config_file"])[0]
            known |= ConfigParser.load_config_file(BUNDLE / "configs" / file).keys()
        assert last in known, key
        options.pop(key)
    assert unknown_keys({**config, **options}, {**defaults, **config}) == []


@pytest.mark.parametrize(
    "command",
    [
        "run trainin --config_file configs/train.json",
        "run training --config_file configs/trian.json",
        "run training --config_file configs/train.json --epoch 3",
        "run experimenting --config_file configs/experiment.json --training::setting::seed 3",
        "run experimenting --config_file configs/experiment.json --training::settings::sead 3",
        "ckpt_export --config_file configs/inference.json --file model.ts",
    ],
)
def test_a_command_that_is_out_of_step_is_found(command):
    with pytest.raises(Exception):  # noqa: B017 of several kinds
        test_a_command_names_verbs_configs_and_keys_that_exist("", f"python -m monai.bundle {command}")


def _short_commands(text):
    """Of ``ama-sam``, in blocks and in sentences."""
    found = [line for block in _FENCE.findall(text) for line in block.splitlines()]
    return [line for line in [*found, *re.findall(r"`([^`\n]+)`", text)] if line.startswith("ama-sam ")]


SHORT = [(page.name, line) for page in PAGES for line in _short_commands(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page, line", SHORT)
def test_a_short_command_names_sub_commands_and_options_that_exist(page, line):
    from scripts.settings import SETTINGS

    from ama_sam.commands import COMMANDS as SHORT_COMMANDS

    name, *words = shlex.split(line)[1:]
    if name in ("serve", "--help", "COMMAND"):
        return
    settings = SETTINGS[SHORT_COMMANDS[name.replace("-", "_")].configs[0]]
    options = {word[2:].replace("-", "_") for word in words if word.startswith("--")} - {"help", "config"}
    assert {option for option in options if "::" not in option} <= settings.keys()


@pytest.mark.slow
def test_the_short_commands_run_as_written(tmp_path, monkeypatch):
    """Those of command.md's blocks, one after the other, at small size."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    sample = BUNDLE / "sample" / "sample_tnbc"
    shutil.copytree(sample, "DATA/theirs")
    Path("IMAGES").mkdir()
    for path in sorted((sample / "images").iterdir())[:3]:
        Image.open(path).crop((0, 0, 160, 160)).save(Path("IMAGES") / path.name)
    small = "--max_epochs 1 --batches_per_epoch 1 --batch_size 2 --crop_size 64 --window_size 64 --cache_windows 1"
    small += " --alignment_report false --domain_images 0 --decoder_size light"
    more = {
        "prepare": "--validation_share 0.3 --testing_share 0.3 --workers 0",
        "train": small,
        "align": "--window_size 64 --windows_per_domain 4",
    }
    blocks = "".join(_FENCE.findall((BUNDLE / "docs" / "command.md").read_text(encoding="utf-8")))
    lines = {line.split()[1]: line for line in blocks.splitlines()}
    where, ends = {**os.environ, "PYTHONPATH": str(REPO)}, {}
    for name in ("segment", "prepare", "train", "evaluate", "align"):
        if name == "prepare":  # what was corrected in QuPath is like what was found
            shutil.copytree("IMAGES", "ANNOTATED")
            for path in Path("OUT").glob("*.geojson"):
                shutil.copy(path, "ANNOTATED")
        words = [*shlex.split(lines[name])[1:], *more.get(name, "").split()]
        done = subprocess.run([sys.executable, "-m", "ama_sam.cli", *words], env=where, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        ends[name] = done.stdout.splitlines()[-4:]
    assert "Segmented 3 images: " in "".join(ends["segment"]) and ends["segment"][-1] == "Results: OUT"
    assert f"Look at {Path('DATA/mine/contact_sheet.png')}: are the outlines on the nuclei?" in ends["prepare"]
    assert str(tmp_path / "RUNS" / "mine_joint_seed0" / "overlay.png") in ends["train"][-1]
    evaluated = r"Evaluated, images by domain: .*; nuclei: \d+ in the reference, \d+ found[.,]"
    assert any(re.fullmatch(evaluated, line) for line in ends["evaluate"])
    assert str(Path("ALIGNMENT/alignment.png")) in ends["align"][-2]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_named_exist(page):
    text = page.read_text(encoding="utf-8")
    links = [link for link in _LINK.findall(text) if "://" not in link and not link.startswith("mailto:")]
    assert not [link for link in links if not (page.parent / link).exists()], "links"
    roots = (REPO, BUNDLE)
    named = [name for name in _FILE.findall(text) if not name.startswith(WRITTEN)]
    assert not [name for name in named if not any([*root.glob(name.rstrip("/"))] for root in roots)], "files"


def test_the_version_is_the_same_everywhere():
    metadata = json.loads((BUNDLE / "configs" / "metadata.json").read_text(encoding="utf-8"))
    changelog = (REPO / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)", changelog, re.MULTILINE) == list(metadata["changelog"])
    citation = (REPO / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (\S+)", citation, re.MULTILINE)[1] == metadata["version"]
    for page in PAGES:
        packed = re.findall(r"_v(\d+\.\d+\.\d+)\.zip|--version (\d+\.\d+\.\d+)", page.read_text(encoding="utf-8"))
        assert {version for pair in packed for version in pair if version} <= {metadata["version"]}, page.name


def test_every_page_of_the_docs_is_reached_from_the_readme():
    seen, waiting = set(), [REPO / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        links = [link for link in _LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
        waiting += [(page.parent / link).resolve() for link in links]
    assert not [page.name for page in PAGES if page.resolve() not in {p.resolve() for p in seen}]
