"""Training with domains whose labels nobody may read: where each lies a folder, which no reader can open."""

from __future__ import annotations

import csv
import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import interrupt
from ignite.engine import Events
from PIL import Image
from scripts.data.readers import read_label
from scripts.errors import DataError, root_cause
from scripts.inference.in_memory import Segmenter
from scripts.networks.model_file import read_model_file
from scripts.networks.model_info import model_info
from scripts.training.checkpoints import read_checkpoint
from scripts.training.teacher import Teacher, check_taught

BUNDLE = Path(__file__).resolve().parents[2] / "bundle"


def _hide_labels(data: Path, *domains: str) -> None:
    for domain in domains:
        for label in (data / domain / "labels").iterdir():
            label.unlink()
            label.mkdir()


@pytest.fixture()
def data(synthetic, tmp_path) -> Path:
    return Path(shutil.copytree(synthetic, tmp_path / "data"))


def _columns(run_dir: Path) -> dict[str, str]:
    with (run_dir / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))[-1]


@pytest.mark.parametrize("cache", ["on", "off"])
def test_an_unlabelled_auxiliary_is_aligned_and_its_labels_are_never_opened(open_training, data, tmp_path, cache):
    _hide_labels(data, "synthetic_dark")
    workflow = open_training(
        tmp_path, dataset_dir=str(data), unlabelled="synthetic_dark", max_epochs=2, alignment_report=True, cache=cache,
        cache_dir=str(tmp_path / "features"), cache_windows=1,
    )  # fmt: skip
    trainer, seen = workflow.parser.get_parsed_content("train::trainer"), []

    @trainer.on(Events.ITERATION_COMPLETED)
    def _(engine):
        seen.extend(engine.state.output["domain"].tolist())

    workflow.run()
    run_dir = tmp_path / "synthetic_pink_ama_seed0"
    last = _columns(run_dir)
    dark = workflow.parser.get_parsed_content("domain_names").index("synthetic_dark")
    assert dark in seen and float(last["domain_loss"]) > 0
    assert "train_dice_synthetic_dark" not in last and float(last["train_dice_synthetic_blurred"]) >= 0
    assert float(last["val_dice"]) >= 0
    assert (run_dir / "alignment.json").is_file(), "of the domains with labels"
    areas = model_info(run_dir / "model.pt").nucleus_area_px
    assert set(areas) == {"synthetic_pink", "synthetic_blurred"}


def test_an_unlabelled_primary_is_aligned_to_and_the_last_weights_are_kept(open_training, data, tmp_path, caplog):
    _hide_labels(data, "synthetic_pink")
    with caplog.at_level(logging.INFO):
        open_training(
            tmp_path, dataset_dir=str(data), unlabelled="synthetic_pink", max_epochs=2, adapters="late",
            cache_dir=str(tmp_path / "features"), cache_windows=1,
        ).run()  # fmt: skip
    assert "the primary 'synthetic_pink' has no labels: its Dice cannot be known" in caplog.text
    run_dir = tmp_path / "synthetic_pink_ama_seed0"
    last = _columns(run_dir)
    assert not {name for name in last if name.startswith("val_")} and "train_dice_synthetic_pink" not in last
    kept = read_model_file(run_dir / "model.pt")
    assert kept["provenance"]["epoch"] == 2 and "val_dice" not in kept["provenance"]
    assert [domain["role"] for domain in kept["domains"]] == ["primary", "auxiliary", "auxiliary"]


def test_the_segmentation_learns_nothing_of_an_unlabelled_domain(open_training, data, tmp_path):
    """With mode joint, which reverses nothing, other unlabelled images give the same network."""
    weights = []
    for n in range(2):
        workflow = open_training(
            tmp_path / str(n), dataset_dir=str(data), unlabelled="synthetic_dark", max_epochs=1, mode="joint",
            auxiliary="synthetic_dark", cache="off", domain_images=0, overlay_images=0,
        )  # fmt: skip
        # the discriminator's gradient would count in the norm
        workflow.parser.get_parsed_content("train::iteration").clip_norm = 0
        workflow.run()
        weights.append(workflow.parser.get_parsed_content("network").decoder.state_dict())
        for image in (data / "synthetic_dark" / "images").iterdir():
            Image.fromarray(255 - np.asarray(Image.open(image))).save(image)
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.fixture()
def teacher(open_training, synthetic, tmp_path) -> Path:
    """A model that sees enough to teach: trained on all labels."""
    open_training(
        tmp_path / "teacher", dataset_dir=str(synthetic), mode="joint", max_epochs=2, batches_per_epoch=20,
        learning_rate=0.003, warmup_iterations=5, domain_images=0, overlay_images=0,
    ).run()  # fmt: skip
    return tmp_path / "teacher" / "synthetic_pink_joint_seed0" / "model.pt"


def _taught_in(output_dir: Path) -> Path:
    (folder,) = (output_dir / "pseudo_labels").iterdir()
    return folder


@pytest.mark.parametrize(
    "primary, mode, cache, adapters",
    [("synthetic_dark", "joint", "on", "none"), ("synthetic_dark", "ama", "off", "late"),
     ("synthetic_pink", "ama", "on", "none")],
)  # fmt: skip
def test_a_teacher_labels_images_whose_labels_are_never_opened(
    open_training, data, teacher, tmp_path, primary, mode, cache, adapters
):
    _hide_labels(data, primary)
    workflow = open_training(
        tmp_path, dataset_dir=str(data), primary=primary, unlabelled=primary, mode=mode, cache=cache,
        adapters=adapters, teacher=str(teacher), max_epochs=1, overlay_images=0,
        cache_dir=str(tmp_path / "features"), cache_windows=1,
    )  # fmt: skip
    workflow.run()
    run_dir = tmp_path / f"{primary}_{mode}_seed0"
    assert float(_columns(run_dir)[f"train_dice_{primary}"]) >= 0, "against what the teacher says"
    images = {path.stem for path in (data / primary / "images").iterdir()}
    labels = list((_taught_in(tmp_path) / primary).iterdir())
    pictures = {path.stem for path in (_taught_in(tmp_path) / f"{primary}_overlays").iterdir()}
    assert pictures == {path.stem for path in labels} and {path.stem[:-13] for path in labels} <= images
    assert sum(int(read_label(path).max()) for path in labels) > 0
    assert primary in model_info(run_dir / "model.pt").nucleus_area_px


def test_the_teacher_looks_several_times_as_inferring_does(open_training, data, teacher, tmp_path):
    _hide_labels(data, "synthetic_dark")
    open_training(
        tmp_path, dataset_dir=str(data), unlabelled="synthetic_dark", mode="joint", teacher=str(teacher),
        teacher_views=2, max_epochs=1, domain_images=0, overlay_images=0,
    ).run()  # fmt: skip
    label = sorted((_taught_in(tmp_path) / "synthetic_dark").iterdir())[0]
    image = next(p for p in (data / "synthetic_dark" / "images").iterdir() if p.stem == label.stem[:-13])
    segmenter = Segmenter(BUNDLE / "configs" / "inference.json", BUNDLE, {"ckpt_path": str(teacher), "views": 2})
    assert np.array_equal(read_label(label), segmenter.segment(image).labels)


def test_what_the_teacher_labelled_is_kept_when_the_run_goes_on(open_training, data, teacher, tmp_path):
    states = {}
    for name in ("whole", "stopped"):
        settings = dict(
            dataset_dir=str(data), unlabelled="synthetic_dark", mode="joint", teacher=str(teacher),
            max_epochs=2, domain_images=0, overlay_images=0,
        )  # fmt: skip
        workflow = open_training(tmp_path / name, **settings)
        if name == "stopped":
            interrupt(workflow, Events.EPOCH_STARTED(once=2))
            labels = _taught_in(tmp_path / name) / "synthetic_dark"
            before = {path: path.stat().st_mtime_ns for path in labels.iterdir()}
            workflow = open_training(tmp_path / name, resume=True, **settings)
        workflow.run()
        states[name] = read_checkpoint(tmp_path / name / "synthetic_pink_joint_seed0" / "checkpoint.pt")["parts"]
    assert before == {path: path.stat().st_mtime_ns for path in labels.iterdir()}
    for name, value in states["whole"]["decoder"].items():
        assert torch.equal(value, states["stopped"]["decoder"][name]), name


def test_labels_of_one_teacher_and_image_are_never_taken_for_those_of_another(data, teacher, tmp_path):
    """
    Another teacher, other views, settings of ``inferring`` or release, other pixels under the same name; one that
    cannot be read stops no other.
    """
    images = sorted((data / "synthetic_dark" / "images").iterdir())[:2]

    configs = shutil.copytree(BUNDLE / "configs", tmp_path / "bundle" / "configs")

    def change(file: str, **values: object) -> None:
        path = configs / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    def labels(path: Path = teacher, views: int = 1) -> list[str]:
        items = [
            {"image": str(image), "unlabelled": True, "domain": 0, "domain_name": "d", "mpp": float("nan")}
            for image in images
        ]
        made = Teacher(str(path), views, "cpu", configs / "inference.json", tmp_path / "told")
        return [item["label"] for item in made(items)]

    first = labels()
    assert labels() == first and all(Path(path).is_file() for path in first)
    assert not {*first} & {*labels(views=2)}
    other = tmp_path / "other.pt"
    content = torch.load(teacher, weights_only=True)
    torch.save({**content, "provenance": {}}, other)
    assert not {*first} & {*labels(other)}
    for file, values in (("inference.json", {"min_area": 5}), ("metadata.json", {"version": "99.0.0"})):
        before = (configs / file).read_text()
        change(file, **values)
        assert not {*first} & {*labels()}, values
        (configs / file).write_text(before)
    assert labels() == first
    Image.fromarray(np.asarray(Image.open(images[1]))[::-1]).save(images[1])
    assert [path in first for path in labels()] == [True, False]
    images[0].write_bytes(b"no image")
    Image.fromarray(np.asarray(Image.open(images[1]))[:, ::-1]).save(images[1])
    before = len(list(Path(first[0]).parent.iterdir()))
    with pytest.raises(DataError, match=images[0].name):
        labels()
    assert len(list(Path(first[0]).parent.iterdir())) == before + 1, "the other one is labelled"


@pytest.mark.parametrize(
    "settings, told",
    [
        ({}, "teacher: every domain that is trained on has labels"),
        ({"teacher": "nowhere.pt", "unlabelled": "synthetic_dark"}, "nowhere.pt: there is no .* with --teacher, or"),
        ({"teacher": __file__, "unlabelled": "synthetic_dark"}, f"{__file__}: it cannot be .* with --teacher"),
    ],
)
def test_a_teacher_with_nobody_to_teach_or_that_is_not_there_is_refused(
    open_training, synthetic, teacher, tmp_path, settings, told
):
    settings = {"teacher": str(teacher), "dataset_dir": str(synthetic), **settings}
    with pytest.raises(Exception) as error:  # noqa: B017 which class MONAI wraps it in does not matter
        open_training(tmp_path, max_epochs=1, cache_dir=str(tmp_path / "features"), **settings).run()
    assert re.match(told, str(root_cause(error.value)))
    assert not (tmp_path / "features").exists(), "told before images are encoded"


def test_a_teacher_that_finds_nothing_is_told(open_training, data, teacher, tmp_path):
    for image in (data / "synthetic_dark" / "images").iterdir():
        Image.fromarray(np.full_like(np.asarray(Image.open(image)), 255)).save(image)
    with pytest.raises(Exception) as error:  # noqa: B017 which class MONAI wraps it in does not matter
        open_training(
            tmp_path, dataset_dir=str(data), unlabelled="synthetic_dark", mode="joint", teacher=str(teacher),
            leakage="allow", max_epochs=1,
        ).run()  # fmt: skip
    assert "the teacher found no nucleus in the images without labels" in str(root_cause(error.value))


@pytest.mark.parametrize(
    "mode, labelled, told", [("joint", False, True), ("ama", False, False), ("joint", True, False)]
)
def test_images_without_labels_from_which_nothing_is_learned_are_told(mode, labelled, told, caplog):
    check_taught(None, [True, labelled], mode)
    assert ("Add --teacher MODEL" in caplog.text) == told


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"held_out": 0.25}, "held_out: the primary 'synthetic_pink' has no labels to validate by"),
        ({"mode": "single"}, "no labels to learn from in synthetic_pink"),
        ({"start_counts": True}, "no validation image can judge the start"),
    ],
)
def test_what_needs_the_primarys_labels_is_refused(open_training, data, tmp_path, settings, told):
    with pytest.raises(Exception) as error:  # noqa: B017 which class MONAI wraps it in does not matter
        open_training(
            tmp_path, dataset_dir=str(data), unlabelled="synthetic_pink", max_epochs=1, cache="off", **settings
        ).run()
    assert isinstance(root_cause(error.value), DataError) and told in str(root_cause(error.value))


def test_a_domain_list_says_it_in_place_of_the_key(open_training, data, tmp_path):
    _hide_labels(data, "synthetic_dark")
    domains = [
        {"name": "synthetic_pink", "role": "primary", "root": str(data / "synthetic_pink")},
        {"name": "synthetic_dark", "role": "auxiliary", "root": str(data / "synthetic_dark"), "labels": False},
    ]
    open_training(tmp_path, domains=domains, max_epochs=1, cache="off", domain_images=0, overlay_images=0).run()
    settings = json.loads((tmp_path / "synthetic_pink_ama_seed0" / "train.json").read_text())
    assert settings["domains"][1]["labels"] is False


def test_the_recipe_for_images_without_labels_begins_with_its_teacher(open_training, data, teacher, tmp_path, caplog):
    """Of a folder that holds ``images/`` and nothing else; without a primary named there is nothing to label."""
    shutil.rmtree(data / "synthetic_pink" / "labels")
    (data / "synthetic_pink" / "split.json").unlink(missing_ok=True)
    recipe = json.loads((BUNDLE / "configs" / "no_labels.json").read_text())
    own = {"init_model": str(teacher), "max_epochs": 1, "batches_per_epoch": 2, "overlay_images": 0}
    shared = {"dataset_dir": str(data), "cache_windows": 1, "cache_dir": str(tmp_path / "features")}
    with caplog.at_level(logging.INFO):
        open_training(tmp_path, **{**recipe, **own, **shared, "primary": "synthetic_pink"}).run()
    run_dir = tmp_path / "synthetic_pink_joint_seed0"
    images = list((data / "synthetic_pink" / "images").iterdir())
    assert len(list((_taught_in(tmp_path) / "synthetic_pink").iterdir())) == len(images)
    assert read_model_file(run_dir / "model.pt")["provenance"]["epoch"] == 1
