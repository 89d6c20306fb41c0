"""
Verbs that are killed, again and again, and end as if they had not been; verbs that are interrupted, and say so.

Each kill is at a step of the process itself (see ``killing``), so that neither load nor speed matters.
``benchmarks/kills.py`` kills at random steps.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path

import archives
import mlflow
import numpy as np
import pytest
import torch
from archives import known_sample, octagon_ring, save
from fakes import TINY_TRAINING, place_store, tiny_model
from killing import case, kill_at, run_verbs
from PIL import Image
from scripts.files import finished_name
from scripts.networks.model_file import read_model_file
from scripts.owned import LOCK
from slides import make_drawing, save_slide

RUN = "synthetic_pink_ama_seed0"
SMALL = {"batches_per_epoch": 1, "domain_images": 2, "alignment_report": True, "alignment_windows": 4, "keep": "last"}


def left_over(folder: Path) -> list[Path]:
    """What no finished verb leaves: half-written files, locks, unfinished folders."""
    return [p for p in folder.rglob(".*") if finished_name(p.name) or p.name == LOCK or p.suffix == ".unfinished"]


def assert_killed_and_ended(codes: list[int], log: Path) -> None:
    assert codes == [-signal.SIGKILL] * (len(codes) - 1) + [0], log.read_text()[-3000:]


def assert_same_files(one: Path, other: Path, names: list[str]) -> None:
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.fixture(scope="module")
def settings(synthetic, encoder):
    """Of a training, by the name of its output folder."""

    def settings(output: Path, features: str, **more) -> dict:
        place_store(output)
        options = {**TINY_TRAINING, **SMALL, "dataset_dir": synthetic, "backbone_weights": encoder[1], "max_epochs": 2}
        options |= {"output_dir": output, "cache_dir": output.parent / features, "warmup_iterations": 0}
        options |= {"publish_path": output / "served" / "model.pt", **more}
        return {key: str(value) for key, value in options.items()}

    return settings


def test_a_training_killed_in_every_phase_ends_as_the_undisturbed_one(settings, tmp_path):
    """Caching; a checkpoint, the history, the model of an epoch; report, reference, publishing, the end."""
    log, out = tmp_path / "log", tmp_path / "killed"
    disturbed = settings(out, "features")
    kills = [
        kill_at("os.rename", "*/checkpoint.pt", 2),
        kill_at("os.rename", "*/history.csv"),
        kill_at("os.rename", f"*/{RUN}/model.pt"),
        kill_at("os.rename", "*/alignment.json"),
        kill_at("os.rename", f"*/{RUN}/model.pt"),
        kill_at("os.rename", "*/served/model.pt"),
        kill_at("os.rename", "*/checkpoint.pt"),
        None,
    ]
    cases = [case("training", "train.json", log, **settings(tmp_path / "whole", "other_features"))]
    cases += [case("caching", "train.json", log, kill_at("os.rename", "*/features/*.pt", 3), **disturbed)]
    cases += [
        case("training", "train.json", log, kill, **disturbed, **({"resume": "true"} if number else {}))
        for number, kill in enumerate(kills)
    ]
    code, *codes = run_verbs(cases)
    assert code == 0
    assert_killed_and_ended(codes, log)
    run, whole = out / RUN, tmp_path / "whole" / RUN
    assert [path.name for path in out.iterdir() if path.name.startswith(RUN)] == [RUN]
    for one, other in ((run, whole), (out / "served", tmp_path / "whole" / "served")):
        model, expected = (read_model_file(folder / "model.pt") for folder in (one, other))
        assert model.keys() == expected.keys()
        for key, value in expected["model"].items():
            assert torch.equal(model["model"][key], value), key
    assert_same_files(run, whole, ["history.csv", "alignment.csv"] if (whole / "alignment.csv").exists() else ["history.csv"])
    assert not left_over(run) and not left_over(out / "served")
    client = mlflow.MlflowClient(f"sqlite:///{out / 'mlruns.db'}")
    (filed,) = client.search_runs([client.get_experiment_by_name("ama_sam").experiment_id])
    assert filed.info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(filed.info.run_id, "train_loss")] == [1, 2]


def slide_case(log: Path, slide: Path, out: Path, kill: dict | None = None) -> dict:
    knowing = {"network": "{'_target_':'slides.Darkness'}", "ckpt_path": "none", "device": "cpu"}
    knowing["model"] = "{'_target_':'scripts.networks.model_info.ModelInfo'}"
    options = {"slide": str(slide), "output_dir": str(out), "tile_size": 256}
    return case("segmenting_slide", "wsi.json", log, kill, **knowing, **options)


def test_a_slide_killed_in_every_phase_gives_the_same_files(tmp_path):
    """In the second tile, some tiles later, at the overview, at the summary, when the folder gets its name."""
    slide = save_slide(tmp_path / "a.tif", make_drawing(1500, 1200, seed=3), 0.2, levels=(1, 4))
    log, out = tmp_path / "log", tmp_path / "killed"
    kills = [kill_at("os.fsync", nth=6), kill_at("os.fsync", nth=15), kill_at("os.rename", "*/overview.jpg")]
    kills += [kill_at("os.rename", "*/summary.json"), kill_at("os.rename", "*/killed/a"), None]
    code, *codes = run_verbs(
        [slide_case(log, slide, tmp_path / "whole"), *(slide_case(log, slide, out, kill) for kill in kills)]
    )
    assert code == 0
    assert_killed_and_ended(codes, log)
    names = ["nuclei.geojson", "nuclei.csv", "tiles.csv", "overview.jpg"]
    assert_same_files(out / "a", tmp_path / "whole" / "a", names)
    assert json.loads((out / "a" / "summary.json").read_text())["tiles_of_earlier_runs"] > 0
    assert not left_over(out) and not list(out.glob(".a.*"))


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Two images of dark discs."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(2):
        pixels, _, _ = known_sample(number)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def images_case(log: Path, images: Path, out: Path, weights: Path, kill: dict | None = None) -> dict:
    options = {"dataset_dir": images, "output_dir": out, "ckpt_path": weights, "tile_size": 256, "device": "cpu"}
    options |= {"network": "{'_target_':'slides.Darkness'}", "handlers::1::_disabled_": True}
    return case("inferring", "inference.json", log, kill, **{key: str(value) for key, value in options.items()})


def test_images_killed_in_every_phase_give_the_same_files(images, tmp_path):
    log, out, weights = tmp_path / "log", tmp_path / "killed", tiny_model(tmp_path / "model.pt")
    kills = [kill_at("os.rename", f"*/{end}") for end in ("inference.json", "1_instances.png", "summary.csv")]
    others = tmp_path / "killed" / "sub"
    others.mkdir(parents=True)
    (others / ".mine.0123456789ab.partial.png").write_text("precious")
    code, *codes = run_verbs(
        [
            images_case(log, images, tmp_path / "whole", weights),
            *(images_case(log, images, out, weights, kill) for kill in [*kills, None]),
        ]
    )
    assert code == 0, log.read_text()[-3000:]
    assert_killed_and_ended(codes, log)
    written = [f"{n}{end}" for n in "01" for end in ("_mask.png", "_instances.png", ".geojson", "_nuclei.csv")]
    assert_same_files(out, tmp_path / "whole", written)
    assert [path.parent for path in left_over(out)] == [others], "in a folder that is not ours nothing is removed"


def test_preparing_killed_in_every_phase_gives_the_same_domain(tmp_path):
    source = tmp_path / "MoNuSegTrainingData"
    for number in range(3):
        name = f"TCGA-A7-{1000 + number}-01Z-00-DX1"
        image, _, places = known_sample(number)
        save(source / "Tissue Images" / f"{name}.tif", image)
        archives.aperio(source / "Annotations" / f"{name}.xml", [octagon_ring(*place) for place in places])
    log, out = tmp_path / "log", tmp_path / "killed"
    kills = [kill_at("os.rename", f"*/monuseg/{end}", nth) for end, nth in (("labels/*.png", 2), ("split.json", 1))]

    def prepare(output: Path, kill: dict | None = None) -> dict:
        options = {"dataset": "monuseg", "source": str(source), "output_dir": str(output), "workers": 1}
        return case("preparing", "prepare.json", log, kill, **options)

    code, *codes = run_verbs([prepare(tmp_path / "whole"), *(prepare(out, kill) for kill in [*kills, None])])
    assert code == 0, log.read_text()[-3000:]
    assert_killed_and_ended(codes, log)
    whole = tmp_path / "whole"
    files = [str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file() and ".preparing" not in path.parts]
    assert len(files) > 8
    assert_same_files(out, whole, [name for name in files if not name.endswith(".ama_sam_files")])
    assert not left_over(out / "monuseg")


# --- interruptions


def test_interrupted_verbs_end_in_two_lines(settings, images, tmp_path):
    """Ctrl-C and SIGTERM: what happened, how to go on; the run in MLflow is closed; nothing half-written stays."""
    slide = save_slide(tmp_path / "a.tif", make_drawing(1500, 1200, seed=3), 0.2, levels=(1, 4))
    weights = tiny_model(tmp_path / "model.pt")
    epoch = kill_at("os.rename", "*/history.csv", 2, signal.SIGINT)
    cases = [
        case("training", "train.json", tmp_path / "0", epoch, **settings(tmp_path / "int", "features")),
        case("training", "train.json", tmp_path / "1", {**epoch, "signal": 15}, **settings(tmp_path / "term", "features")),
        images_case(tmp_path / "2", images, tmp_path / "o2", weights, kill_at("open", "*_mask.png", 1, signal.SIGINT)),
        slide_case(tmp_path / "3", slide, tmp_path / "o3", kill_at("os.fsync", "*", 9, signal.SIGTERM)),
    ]
    codes = run_verbs(cases)
    goes_on = ["with --resume true goes on after the last epoch"] * 2 + ["begins again", "goes on where it ended"]
    for number, (code, how) in enumerate(zip(codes, goes_on)):
        told = (tmp_path / str(number)).read_text()
        assert code != 0 and "Traceback" not in told and "ERROR" not in told, told[-3000:]
        what = "Ended by SIGTERM" if number in (1, 3) else "Interrupted"
        assert f"\n{what}: what was finished is kept.\nThe same command {how}" in told, told[-3000:]
    for name in ("int", "term"):
        client = mlflow.MlflowClient(f"sqlite:///{tmp_path / name / 'mlruns.db'}")
        (run,) = client.search_runs([client.get_experiment_by_name("ama_sam").experiment_id])
        assert run.info.status == "KILLED"
    assert not left_over(tmp_path / "int") and not left_over(tmp_path / "term") and not left_over(tmp_path / "o2")
    assert (tmp_path / "o3" / ".a.unfinished" / "journal.jsonl").is_file()


def test_numbers_of_files_are_counted_by_the_process_itself(images, tmp_path):
    """What the random kills in ``benchmarks/kills.py`` draw from."""
    one = images_case(tmp_path / "log", images, tmp_path / "out", tiny_model(tmp_path / "model.pt"))
    assert run_verbs([{**one, "count": str(tmp_path / "count")}]) == [0]
    counts = json.loads((tmp_path / "count").read_text())
    assert np.min([counts["os.rename"], counts["open"]]) > 10
