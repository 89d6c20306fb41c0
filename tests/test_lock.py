"""One process at a time writes into a folder; what a kill left half-written there goes, and nothing else."""

from __future__ import annotations

import json
import os
import time
from types import SimpleNamespace

import numpy as np
import pytest
from fakes import open_verb
from PIL import Image
from scripts.errors import DataError, root_cause
from scripts.files import LEFT
from scripts.lock import only_writer, run_alone
from scripts.owned import LIST, OwnFiles
from scripts.training.publishing import PublishModel

PARTIAL = ".a.0123456789ab.partial.png"


def test_a_folder_that_is_taken_is_refused_before_the_first_step_and_free_again_after_an_error(tmp_path):
    out, steps = tmp_path / "out", []

    def fail():
        raise ValueError("the network raises")

    with only_writer(out, inside=True), pytest.raises(DataError, match=f"process {os.getpid()} on .* is writing there"):
        run_alone(out, [lambda: steps.append(1)])
    with pytest.raises(ValueError, match="raises"):
        run_alone(out, [fail])
    assert not steps and not list(out.iterdir())
    run_alone(out, [lambda: steps.append(1), lambda: steps.append(2)])
    assert steps == [1, 2]


def test_a_second_inferring_changes_nothing_and_one_whose_network_raises_frees_the_folder(bundle_root, tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(tmp_path / "in" / "a.png")
    out = tmp_path / "out"
    options = {"dataset_dir": str(tmp_path / "in"), "output_dir": str(out), "tile_size": 64, "ckpt_path": "none"}
    options |= {"model": {"_target_": "scripts.networks.model_info.ModelInfo"}, "handlers::1::_disabled_": True}

    def infer(network: str, **more) -> None:
        open_verb(bundle_root, "inference", "infer", network={"_target_": network}, **options, **more).run()

    infer("slides.Darkness")
    before = {path: path.read_bytes() for path in out.rglob("*")}
    with only_writer(out, inside=True):
        with pytest.raises(RuntimeError) as told:
            infer("slides.Darkness", threshold=0.9)
        assert isinstance(root_cause(told.value), DataError) and "is writing there" in str(root_cause(told.value))
        assert {path: path.read_bytes() for path in before} == before
    with pytest.raises(RuntimeError):
        infer(
            "torch.nn.Bilinear", **{"network::in1_features": 1, "network::in2_features": 1, "network::out_features": 1}
        )
    infer("slides.Darkness", threshold=0.9)
    assert json.loads((out / "inference.json").read_text())["threshold"] == 0.9


def test_what_a_kill_left_half_written_goes_where_the_folder_is_ours(tmp_path):
    for folder in ("out", "out/sub", "out/theirs", "other"):
        (tmp_path / folder).mkdir()
        for name in (PARTIAL, ".a.xyz.partial.png", "a.0123456789ab.partial.png", ".a.png"):
            (tmp_path / folder / name).write_text("")
    OwnFiles(tmp_path / "out").add(["sub/a.png", "summary.csv"])
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    for folder in ("out", "other"):
        run_alone(tmp_path / folder, [])
    assert before - set(tmp_path.rglob("*")) == {tmp_path / "out" / PARTIAL, tmp_path / "out" / "sub" / PARTIAL}
    assert not (tmp_path / "other" / LIST).exists()


def test_half_written_features_go_once_nobody_can_be_at_them(bundle_root, tmp_path, synthetic, encoder):
    """Several trainings share the folder: what is young may be another one's."""
    names = {name: f".{name * 64}.0123456789ab.partial.pt" for name in "ab"}
    OwnFiles(tmp_path).add([f"{'c' * 64}.pt"])
    for name in names.values():
        (tmp_path / name).write_text("")
        if name != names["b"]:
            os.utime(tmp_path / name, (time.time() - 2 * LEFT,) * 2)
    options = {"dataset_dir": synthetic, "backbone_weights": str(encoder[1]), "backbone": "vit_test"}
    options |= {"cache_dir": str(tmp_path), "cache_windows": 1, "window_size": 64, "crop_size": 64}
    workflow = open_verb(bundle_root, "train", "train", output_dir=str(tmp_path / "out"), **options)
    workflow.parser.get_parsed_content("train::dataset")
    assert {path.name for path in tmp_path.glob(".*.partial.pt")} == {names["b"]}


def test_half_written_models_go_from_where_models_are_published(tmp_path):
    """What else lies there stays: the folder may be anybody's."""
    model, other = (tmp_path / f".{name}.0123456789ab.partial.pt" for name in ("model", "other"))
    young = tmp_path / ".model.00112233aabb.partial.pt"
    for path in (model, other, young):
        path.touch()
    for path in (model, other):
        os.utime(path, (time.time() - 2 * LEFT,) * 2)
    (tmp_path / "new.pt").write_text("weights")
    evaluator = SimpleNamespace(state=SimpleNamespace(epoch_length=0))
    PublishModel(tmp_path / "new.pt", tmp_path / "model.pt", "always", None, evaluator)(None)
    assert {path.name for path in tmp_path.iterdir()} == {other.name, young.name, "new.pt", "model.pt"}


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="out: nothing can be written there .Not a directory.. Choose another"):
        run_alone(tmp_path / "file" / "out", [])
