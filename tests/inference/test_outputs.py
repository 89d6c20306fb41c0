from __future__ import annotations

import csv
import json
import logging
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import geopandas
import numpy as np
import pytest
import tifffile
import torch
from ignite.handlers import ProgressBar
from monai.data import DataLoader, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, Lambda
from PIL import Image
from scripts.data.images import list_images
from scripts.data.readers import LoadNucleid
from scripts.errors import DataError
from scripts.inference.outputs import OUTPUTS, PredictionWriter
from scripts.inference.tolerant import TolerantDataset
from scripts.out_of_domain.reference import DomainScore
from scripts.owned import LIST, OwnFiles


def load(item: dict) -> dict:
    """Read an image as the bundle's reader does."""
    pixels = np.asarray(Image.open(item["image"]).convert("RGB"), np.float32).transpose(2, 0, 1)
    meta = {"filename_or_obj": str(item["image"]), "spatial_shape": np.array(pixels.shape[1:])}
    return {**item, "image": MetaTensor(pixels, meta=meta)}


def dark_is_nucleus(item: dict) -> dict:
    """Stands for network and post-processing: dark pixels left of the middle are nucleus 1, right of it 2."""
    dark = item["pred"][:1] < 128
    right = torch.arange(dark.shape[2]) >= dark.shape[2] // 2
    return {**item, "mask": dark.to(torch.uint8), "instances": (dark * (1 + right.int())).int()}


def save_picture(path: Path, height: int = 30, width: int = 50) -> Path:
    """White, with a dark square on either side."""
    pixels = np.full((height, width, 3), 250, np.uint8)
    pixels[5:15, 5:15] = pixels[5:15, width - 15 : width - 5] = 40
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def run(dataset, *handlers, postprocessing=dark_is_nucleus, num_workers: int = 0) -> SupervisedEvaluator:
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(dataset, batch_size=1, num_workers=num_workers),
        network=torch.nn.Identity(),
        postprocessing=postprocessing,
        val_handlers=list(handlers),
    )
    evaluator.run()
    return evaluator


def predict(files, output_dir, transform=load, outputs=OUTPUTS, label_format="png", **kwargs) -> TolerantDataset:
    data = [{"image": str(file)} for file in files]
    dataset = TolerantDataset(data, transform)
    run(dataset, PredictionWriter(output_dir, data, outputs=outputs, label_format=label_format), **kwargs)
    return dataset


def rows_of(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_every_image_gets_its_files(tmp_path):
    files = [save_picture(tmp_path / "in" / "a.png"), save_picture(tmp_path / "in" / "deep" / "b.png", 41, 60)]
    predict(files, tmp_path / "out")
    for name, size in (("a", (30, 50)), ("deep/b", (41, 60))):
        mask = np.asarray(Image.open(tmp_path / "out" / f"{name}_mask.png"))
        instances = np.asarray(Image.open(tmp_path / "out" / f"{name}_instances.png"))
        assert mask.shape == instances.shape == size
        assert mask.dtype == np.uint8 and np.unique(mask).tolist() == [0, 255]
        assert instances.dtype == np.uint16 and np.unique(instances).tolist() == [0, 1, 2]
        np.testing.assert_array_equal(mask > 0, instances > 0)
        assert np.asarray(Image.open(tmp_path / "out" / f"{name}_overlay.jpg")).ndim == 3
        nuclei = geopandas.read_parquet(tmp_path / "out" / f"{name}_nuclei.parquet")
        for id_, shape in zip(nuclei.id, nuclei.geometry, strict=True):  # ids are the values of the label map
            assert instances[int(shape.centroid.y), int(shape.centroid.x)] == id_
    header, first, second = rows_of(tmp_path / "out" / "summary.csv")
    assert header == ["file", "nuclei", "area_fraction", "uncertainty", "seconds", "mpp", "mpp_from", "scale_to_try"]
    assert first[:3] == [str(files[0]), "2", str(round(200 / 1500, 6))]
    assert 0 <= float(first[3]) <= 1 and float(first[4]) >= 0
    assert second[0] == str(files[1])
    assert not list((tmp_path / "out").rglob("*.partial*"))


def test_a_label_map_may_be_a_store_which_is_replaced_whole(tmp_path):
    zarr = pytest.importorskip("zarr")
    file, store = save_picture(tmp_path / "a.png"), tmp_path / "out" / "a_instances.ome.zarr"
    for _ in range(2):
        predict([file], tmp_path / "out", outputs=["instances"], label_format="ome.zarr")
    ids = zarr.open_array(str(store / "labels" / "nuclei" / "0"), mode="r")[:]
    assert ids.shape == (30, 50) and np.unique(ids).tolist() == [0, 1, 2]
    (store / "note.txt").write_text("precious")
    with pytest.raises(DataError, match="note.txt: it was not written by this bundle and would be removed"):
        predict([file], tmp_path / "out", outputs=["instances"], label_format="ome.zarr")
    with pytest.raises(DataError, match="note.txt: it was not written by this bundle and would be removed"):
        predict([file], tmp_path / "out", outputs=["instances"])
    assert not (tmp_path / "out" / "a_instances.png").exists(), "nothing was begun"
    (store / "note.txt").unlink()
    predict([file], tmp_path / "out", outputs=["instances"])
    assert not store.exists() and (tmp_path / "out" / "a_instances.png").exists()


def test_a_store_that_cannot_be_written_is_told_before_any_work(tmp_path, monkeypatch):
    from scripts.slides.segmenter import SlideSegmenter

    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(DataError, match="ome.zarr: OME-Zarr needs zarr, which is not installed.*pip install"):
        predict([save_picture(tmp_path / "a.png")], tmp_path / "out", outputs=["instances"], label_format="ome.zarr")
    with pytest.raises(DataError, match="ome.zarr: OME-Zarr needs zarr, which is not installed.*pip install"):
        SlideSegmenter(None, {}, outputs=["ome.zarr"])
    assert not (tmp_path / "out").exists()


def test_nuclei_are_separated_beside_the_network_with_the_same_result(tmp_path):
    """Post-processing by the writer, in its thread: the same bytes; what fails in it is one file's problem."""
    files = [save_picture(tmp_path / "in" / f"{name}.png", 30 + 2 * i) for i, name in enumerate("abc")]
    data = [{"image": str(file)} for file in files]
    predict(files, tmp_path / "first")
    threads, problems = set(), []

    def separate(item):
        threads.add(threading.current_thread())
        if item["image"].meta["filename_or_obj"] == str(files[1]):
            raise RuntimeError("applying transform") from ValueError("no such channel")
        return dark_is_nucleus(item)

    writer = PredictionWriter(
        tmp_path / "second", data, outputs=OUTPUTS, postprocessing=separate, failed=lambda *told: problems.append(told)
    )
    run(TolerantDataset(data, load), writer, postprocessing=None)
    assert threading.main_thread() not in threads and len(threads) == 1
    assert problems == [(str(files[1]), "its nuclei cannot be separated (ValueError: no such channel)")]
    assert [row["file"] for row in writer.rows] == [str(files[0]), str(files[2])]
    made = {path.name: path.read_bytes() for path in (tmp_path / "second").iterdir() if path.name[0] in "abc"}
    assert {name[0] for name in made} == {"a", "c"} and len(made) == 2 * len(OUTPUTS)
    assert made == {name: (tmp_path / "first" / name).read_bytes() for name in made}


def test_more_nuclei_than_16_bit_go_to_tiff_and_nothing_stale_stays(tmp_path, caplog):
    file = save_picture(tmp_path / "a.png", 300, 300)

    def many(item):
        ids = torch.arange(300 * 300).reshape(1, 300, 300).int()
        return {**item, "mask": (ids > 0).to(torch.uint8), "instances": ids}

    predict([file], tmp_path / "out")
    with caplog.at_level(logging.WARNING):
        predict([file], tmp_path / "out", postprocessing=many, outputs=["instances"])
    assert "89999 nuclei" in caplog.text
    stored = tifffile.imread(tmp_path / "out" / "a_instances.tif")
    assert stored.dtype == np.uint32 and stored.max() == 89_999
    assert not (tmp_path / "out" / "a_instances.png").exists()
    predict([file], tmp_path / "out")
    assert not (tmp_path / "out" / "a_instances.tif").exists()


@pytest.mark.parametrize("position", ["first", "last"])
def test_a_disk_that_fills_up_ends_the_run_with_its_error(tmp_path, monkeypatch, position):
    """Files are written beside the network's work; what fails there must still end the run."""
    files = [save_picture(tmp_path / f"{name}.png") for name in "abcdef"]
    failing = files[0] if position == "first" else files[-1]
    save = Image.Image.save

    def full(image, path, **kwargs):
        if f".{failing.stem}_" in Path(path).name:
            raise OSError(28, "No space left on device")
        save(image, path, **kwargs)

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left"):
        predict(files, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.partial*")) and not list((tmp_path / "out").glob(f"{failing.stem}_*"))


def test_same_stem_does_not_overwrite(tmp_path):
    predict([save_picture(tmp_path / "a.png", 30, 50), save_picture(tmp_path / "a.bmp", 60, 70)], tmp_path / "out")
    assert Image.open(tmp_path / "out" / "a_png_mask.png").size == (50, 30)
    assert Image.open(tmp_path / "out" / "a_bmp_mask.png").size == (70, 60)


def test_an_input_file_is_never_written_over(tmp_path):
    files = [save_picture(tmp_path / "a.png"), save_picture(tmp_path / "a_mask.png")]
    with pytest.raises(DataError, match="a_mask.png: is an input file"):
        PredictionWriter(tmp_path, [{"image": file} for file in files])


@pytest.mark.parametrize(
    "name", ["a_mask.png", "a_instances.png", "a.geojson", "a_nuclei.csv", "a_nuclei.parquet", "summary.csv"]
)
def test_a_users_file_of_that_name_survives(tmp_path, name):
    file = save_picture(tmp_path / "in" / "a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / name).write_text("precious")
    with pytest.raises(DataError, match=f"{name}: it was not written by this bundle and would be replaced"):
        predict([file], tmp_path / "labels")
    assert [path.name for path in (tmp_path / "labels").iterdir()] == [name], "before anything was written"


def test_results_may_lie_within_the_folder_of_images_or_around_it_but_not_among_them(tmp_path):
    file = save_picture(tmp_path / "in" / "a.png")
    save_picture(tmp_path / "in" / "out" / "a_mask.png")
    for output_dir in (tmp_path / "in" / "out", tmp_path, tmp_path / "elsewhere"):
        found = [item["image"] for item in list_images(tmp_path / "in", exclude=output_dir)]
        assert found[0] == str(file) and (len(found) == 1) == (output_dir.name == "out")
    for same in (tmp_path / "in", tmp_path / "in" / "out" / ".."):
        with pytest.raises(DataError, match="results would lie among the images"):
            list_images(tmp_path / "in", exclude=same)


def test_results_of_earlier_runs_are_no_images(tmp_path, caplog):
    """Beside an image that was segmented alone, or in a folder among the images; a prepared domain's images are."""
    folder = tmp_path / "in"
    images = [save_picture(folder / name) for name in ("a.png", "a_mask2.png", "mine/images/b.png")]
    OwnFiles(folder / "mine").add(["images/b.png", "split.json"])
    for place, name in (("", "a_mask.png"), ("first", "sub/a_overlay.jpg")):
        save_picture(folder / place / name)
        OwnFiles(folder / place).add(["inference.json", name])
    with caplog.at_level("INFO"):
        found = [item["image"] for item in list_images(folder, exclude=folder / "second")]
    assert found == [str(path) for path in images] and "passed over 2 results of earlier runs" in caplog.text


@pytest.mark.parametrize("place", ["out/sub", "out/sub/deep", "link", "linked/sub"])
def test_results_are_passed_over_from_below_their_folder_too(tmp_path, monkeypatch, caplog, place):
    """The list lies above the folder that is named, by whichever way; what the user put there is an image."""
    for name in ("sub/a_mask.png", "sub/deep/b_overlay.jpg", "sub/deep/c_mask.png"):
        save_picture(tmp_path / "out" / name)
    OwnFiles(tmp_path / "out").add(["inference.json", "sub/a_mask.png", "sub/deep/b_overlay.jpg"])
    (tmp_path / "link").symlink_to(tmp_path / "out" / "sub")
    (tmp_path / "linked").symlink_to(tmp_path / "out")
    own = {"out/sub/deep": "c_mask.png"}.get(place, "deep/c_mask.png")
    monkeypatch.chdir(tmp_path / place)
    for folder in (tmp_path / place, Path(".")):
        with caplog.at_level("INFO"):
            assert [item["image"] for item in list_images(folder, exclude=tmp_path / "new")] == [str(folder / own)]
        assert "of earlier runs" in caplog.text
    (tmp_path / place / own).unlink()
    with pytest.raises(DataError, match="it holds nothing but results of earlier runs. Name the folder of your images"):
        list_images(".")


def test_what_was_added_after_a_run_survives_the_next(tmp_path):
    files = [save_picture(tmp_path / "in" / f"{name}.png") for name in "ab"]
    predict(files[:1], tmp_path / "out", outputs=["instances"])
    for name in ("b_mask.png", "a_instances.tif", "errors.csv"):
        (tmp_path / "out" / name).write_text("precious")
    predict(files[:1], tmp_path / "out", outputs=["instances"]).write_errors(tmp_path / "out")
    with pytest.raises(DataError, match="b_mask.png"):
        predict(files, tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir() if p.read_bytes() == b"precious"} == {
        "b_mask.png", "a_instances.tif", "errors.csv",
    }  # fmt: skip


def test_outputs_of_the_version_before_are_replaced(tmp_path):
    """It kept no list, but told in its summary which images it segmented, and in its config what it wrote of them."""
    files = [save_picture(tmp_path / "in" / f"{name}.png") for name in "ab"]
    predict(files[:1], tmp_path / "out", outputs=["instances", "geojson"])
    (tmp_path / "out" / LIST).unlink()
    config = tmp_path / "out" / "inference.json"
    config.write_text(json.dumps({"bundle_root": ".", "outputs": ["instances", "geojson"]}))
    predict(files, tmp_path / "out", outputs=["instances"])
    (tmp_path / "out" / LIST).unlink()
    (tmp_path / "out" / "a_mask.png").write_text("precious")
    with pytest.raises(DataError, match="a_mask.png"):
        predict(files, tmp_path / "out")
    config.unlink()
    with pytest.raises(DataError, match="was not written by this bundle"):
        predict(files, tmp_path / "out", outputs=["instances"])


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("transform", [load, Compose([Lambda(load)])])
def test_bad_files_are_reported_and_the_others_go_on(tmp_path, num_workers, transform):
    good = [save_picture(tmp_path / "in" / f"{i}.png") for i in range(4)]
    bad = tmp_path / "in" / "bad.png"
    bad.write_bytes(b"no image")
    missing = tmp_path / "in" / "missing.png"
    dataset = predict([good[0], bad, good[1], missing, *good[2:]], tmp_path / "out", transform, num_workers=num_workers)
    assert dataset.total == 6
    assert len(list((tmp_path / "out").glob("*_mask.png"))) == 4
    with pytest.raises(SystemExit) as ended:
        dataset.finish(tmp_path / "out")
    assert "2 of 6 files failed" in ended.value.code and "errors.csv" in ended.value.code
    header, *rows = rows_of(tmp_path / "out" / "errors.csv")
    assert header == ["file", "problem"]
    assert [row[0] for row in rows] == [str(bad), str(missing)]
    assert "cannot identify image file" in rows[0][1], "the cause, not 'applying transform'"
    assert "FileNotFoundError" in rows[1][1]


def test_data_errors_are_told_in_their_own_words_whatever_their_length(tmp_path):
    def refuse(item):
        raise DataError(item["image"], "öde " * 1000, "Use another.")

    dataset = TolerantDataset([{"image": "a.png"}], refuse)
    assert list(dataset) == []
    (file, problem), *others = dataset.errors
    assert (file, others) == ("a.png", [])
    assert problem.startswith("öde öde")


def test_all_files_bad_ends_cleanly_and_a_good_run_removes_the_report(tmp_path):
    bad, good = tmp_path / "bad.png", save_picture(tmp_path / "good.png")
    bad.write_bytes(b"")
    dataset = predict([bad], tmp_path / "out")
    with pytest.raises(SystemExit, match="1 of 1 files failed"):
        dataset.finish(tmp_path / "out")
    assert (tmp_path / "out" / "errors.csv").exists()
    assert len(rows_of(tmp_path / "out" / "summary.csv")) == 1, "a header only"
    predict([good], tmp_path / "out").finish(tmp_path / "out")
    assert not (tmp_path / "out" / "errors.csv").exists()


def test_a_mended_file_is_no_longer_reported(tmp_path):
    dataset = TolerantDataset([{"image": str(tmp_path / "late.png")}], load)
    assert (len(list(dataset)), len(dataset.errors)) == (0, 1)
    save_picture(tmp_path / "late.png")
    assert (len(list(dataset)), len(dataset.errors)) == (1, 0)


def test_a_progress_bar_runs_and_each_file_is_seen_once(tmp_path):
    files = [save_picture(tmp_path / f"{i}.png") for i in range(3)] + [tmp_path / "missing.png"]
    dataset = TolerantDataset([{"image": str(file)} for file in files], load)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Data iterator can not provide")
        evaluator = run(dataset, ProgressBar())
    assert evaluator.state.iteration == 3
    assert len(dataset.errors) == 1


def test_an_image_that_cannot_be_written_stops_no_other(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    names = [b"a\xff.png", b"b" * 240 + b".png", b"c.png"]
    for name in names:
        with open(os.fsencode(folder) + b"/" + name, "wb") as file:
            Image.fromarray(np.full((32, 32, 3), 40, np.uint8)).save(file, format="png")
    data = [{"image": os.path.join(folder, os.fsdecode(name))} for name in names]
    dataset = TolerantDataset(data, LoadNucleid("image"))
    out = tmp_path / "out"
    run(dataset, PredictionWriter(out, data, failed=dataset.add_error))
    with pytest.raises(SystemExit, match="1 of 3"):
        dataset.finish(out)
    told = (out / "errors.csv").read_text(encoding="utf-8")
    assert "bbb" in told and "cannot be written" in told and (out / "c_mask.png").exists()
    assert len(list(out.glob("*.geojson"))) == 2, "a name that is not UTF-8 is written"
    assert '"nuclei"' in (out / "summary.json").read_text(encoding="utf-8")


def test_no_nucleus_at_all_is_said(tmp_path, caplog):
    file = tmp_path / "white.png"
    Image.fromarray(np.full((30, 50, 3), 250, np.uint8)).save(file)
    with caplog.at_level(logging.WARNING):
        predict([file], tmp_path / "out")
    assert "no nucleus was found in any of 1 image" in caplog.text


@pytest.mark.parametrize("last, told", [(0.99, True), (0.4, False)])
def test_that_no_image_is_like_those_of_training_is_said(tmp_path, caplog, last, told):
    files = [save_picture(tmp_path / "in" / f"{name}.png") for name in "ab"]
    scores = {str(files[0]): 0.96, str(files[1]): last}

    def score(item):
        value = scores[item["image"].meta["filename_or_obj"]]
        return {**dark_is_nucleus(item), "domain_score": DomainScore(value, 3.0, "tnbc")}

    predict(files, tmp_path / "out", postprocessing=score)
    assert ("2 of 2 images are unlike those of training" in caplog.text) == told


def test_an_interruption_while_writing_begins_ends_the_process(bundle_root, tmp_path):
    """Ctrl-C just when the thread that writes is started: Python does not know of it yet, and would wait for it."""
    program = f"""
import threading
from scripts.ending import end_clearly
from scripts.inference.outputs import PredictionWriter
from scripts.owned import OwnFiles
end_clearly("Again.")
writer = PredictionWriter({str(tmp_path / "out")!r}, [{{"image": "a.png"}}])
writer._reset(None)
start = threading.Thread.start
def interrupted(thread):
    start(thread)
    raise KeyboardInterrupt
threading.Thread.start = interrupted
writer._thread.submit(print, "written", flush=True)
"""
    environment = {**os.environ, "PYTHONPATH": str(bundle_root)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode != 0 and done.stderr.strip().splitlines()[-1] == "Again."
