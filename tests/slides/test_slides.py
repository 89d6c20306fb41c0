"""Whole slides: known nuclei in, the same nuclei out, whatever the tiles, the region or the kill in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from results import read_geojson, read_table
from scipy.spatial import cKDTree
from scripts.errors import DataError, root_cause
from scripts.slides.cohort import segment_slides
from scripts.slides.listing import name_folders
from scripts.slides.reading import open_slide
from slides import Drawing, make_drawing, save_slide, segment_slide

MPP = 0.2  # of the slides; the model's is 0.25
STEP = (512 - 2 * 64) * 0.25 / MPP  # level-0 pixels between the borders of cores, with the tests' tiles


@pytest.fixture(scope="module")
def drawing() -> Drawing:
    """A slide of 8k x 8k, most of it glass, with extra nuclei on the borders and corners of cores."""
    drawing = make_drawing(8192, 8192, seed=1)
    extra = []
    for x, y, _ in drawing.tissue:
        column, row = round(x / STEP) * STEP, round(y / STEP) * STEP
        extra += [(column, row, 18, 12, 0.5), (column, row + 200, 15, 15, 0), (column + 190, row, 19, 8, 2)]
    extra = np.array(extra)
    clear = cKDTree(extra[:, :2]).query(drawing.nuclei[:, :2])[0] > 45
    return Drawing(8192, 8192, drawing.tissue, np.concatenate([drawing.nuclei[clear], extra]))


@pytest.fixture(scope="module")
def slide(drawing, tmp_path_factory) -> Path:
    return save_slide(tmp_path_factory.mktemp("slide") / "known.tif", drawing, MPP)


@pytest.fixture(scope="module")
def result(bundle_root, slide, tmp_path_factory) -> Path:
    return segment_slide(bundle_root, slide, tmp_path_factory.mktemp("out"))


def centroids(folder: Path) -> np.ndarray:
    return np.array([f["properties"]["centroid"] for f in read_geojson(folder / "nuclei.geojson")]).reshape(-1, 2)


def assert_found(folder: Path, truth: np.ndarray) -> None:
    """Exactly the true nuclei, each once and whole, within a level-0 pixel."""
    found = centroids(folder)
    assert len(found) == len(truth)
    distance, match = cKDTree(found).query(truth[:, :2])
    assert len(set(match)) == len(truth), "a nucleus is missing and another one double"
    assert distance.max() < 1
    area = np.array([float(row["area_um2"]) for row in read_table(folder / "nuclei.csv")])[match] / MPP**2
    np.testing.assert_allclose(area, np.pi * truth[:, 2] * truth[:, 3], rtol=0.12, err_msg="a nucleus is cut")


def test_each_nucleus_is_found_once_and_whole(result, drawing):
    assert len(drawing.nuclei) > 500
    assert_found(result, drawing.nuclei)
    summary = json.loads((result / "summary.json").read_text())
    assert summary["nuclei"] == len(drawing.nuclei) and summary["cut"] == 0
    assert summary["tiles_without_tissue"] > summary["tiles"] > 50
    assert not list(result.parent.glob(".known.*")) and not (result / "journal.jsonl").exists()


def test_outlines_do_not_overlap_and_lie_on_their_nuclei(result, drawing):
    shapes = [shapely.geometry.shape(f["geometry"]) for f in read_geojson(result / "nuclei.geojson")]
    tree = shapely.STRtree(shapes)
    pairs = tree.query(shapes, predicate="intersects")
    assert (pairs[0] == pairs[1]).all()
    assert sum(shape.area for shape in shapes) == pytest.approx(
        (np.pi * drawing.nuclei[:, 2] * drawing.nuclei[:, 3]).sum(), rel=0.03
    )


def test_the_overview_is_a_picture_of_the_slide(result):
    picture = np.asarray(Image.open(result / "overview.jpg")).astype(int)
    assert min(picture.shape[:2]) > 300
    assert (picture[..., 0] - picture[..., 2] > 100).sum() > 500, "no heat on it"


def test_each_output_stands_alone_and_ids_join_them(bundle_root, small_drawing, result, tmp_path):
    both = geopandas.read_parquet(result / "nuclei.parquet").merge(pd.read_csv(result / "nuclei.csv"), on="id")
    assert len(both) == len(read_geojson(result / "nuclei.geojson"))
    assert (both.x_px_x == both.x_px_y).all()
    path = save_slide(tmp_path / "a.tif", small_drawing, MPP)
    folder = segment_slide(bundle_root, path, tmp_path / "out", outputs="parquet")
    names = {path.name for path in folder.iterdir()}
    assert {"nuclei.parquet", "overview.jpg", "tile_typical_1.jpg"} < names
    assert not names & {"nuclei.geojson", "nuclei.csv", "nuclei.arrows", "journal.jsonl"}
    found = geopandas.read_parquet(folder / "nuclei.parquet")
    distance = cKDTree(shapely.get_coordinates(found.centroid)).query(small_drawing.nuclei[:, :2])[0]
    assert len(found) == len(small_drawing.nuclei) and distance.max() < 1
    metadata = pq.read_metadata(folder / "nuclei.parquet").metadata
    assert json.loads(metadata[b"ama_sam"]) == {"image": "a.tif", "unit": "pixel", "mpp": MPP}


def test_a_region_has_the_nuclei_whose_centres_lie_in_it(bundle_root, slide, drawing, tmp_path):
    x, y = (int(value) for value in drawing.tissue[0, :2])
    folder = segment_slide(bundle_root, slide, tmp_path, region=f"{x - 700},{y - 400},1111,777")
    nuclei = drawing.nuclei
    inside = (abs(nuclei[:, 0] - (x - 700 + 555.5)) < 555.5) & (abs(nuclei[:, 1] - (y - 400 + 388.5)) < 388.5)
    assert inside.sum() > 50
    assert_found(folder, nuclei[inside])


def test_tiles_that_disagree_about_a_border_neither_lose_nor_double(bundle_root, slide, drawing, tmp_path):
    """A network answers differently in each tile; the truth is then known only roughly, but every nucleus once."""
    folder = segment_slide(bundle_root, slide, tmp_path, network="Moody")
    found = centroids(folder)
    assert len(found) == len(drawing.nuclei)
    assert len(set(cKDTree(found).query(drawing.nuclei[:, :2])[1])) == len(found)


@pytest.mark.parametrize("kind", ["svs", "ome"])
@pytest.mark.parametrize("mpp", [0.25, 0.13])
def test_formats_and_levels(bundle_root, tmp_path, kind, mpp):
    """Scanner format through OpenSlide, and OME-TIFF; at 0.13 um the region is resampled, sizes are odd."""
    drawing = make_drawing(2507, 1803, seed=2)
    path = save_slide(tmp_path / f"a.{kind if kind == 'svs' else 'ome.tif'}", drawing, mpp, kind, levels=(1, 2, 8))
    assert open_slide(path).mpp == pytest.approx(mpp)
    assert type(open_slide(path)).__name__ == ("_OpenSlide" if kind == "svs" else "TiffSlide")
    segment_slide(bundle_root, path, tmp_path / "out", target_mpp=0.25)
    (folder,) = (path for path in (tmp_path / "out").iterdir() if path.is_dir())
    found = centroids(folder)
    assert len(found) == len(drawing.nuclei) > 50
    assert cKDTree(found).query(drawing.nuclei[:, :2])[0].max() < 1


def test_regions_of_one_scale_show_the_same_pixels(slide):
    opened = open_slide(slide)
    for scale in (1.0, 1.25, 4.0, 5.3):
        left, top = (int(side / 2 / scale) for side in (opened.width, opened.height))
        large, _ = opened.read(left - 50, top - 40, 200, 160, scale)
        small, _ = opened.read(left, top, 100, 90, scale)
        assert abs(large[40:130, 50:150].astype(int) - small).max() <= 1


def test_nuclei_larger_than_the_margin_are_counted(bundle_root, small_drawing, tmp_path, caplog):
    path = save_slide(tmp_path / "a.tif", small_drawing, MPP)
    folder = segment_slide(bundle_root, path, tmp_path / "out", margin_um=1, tile_size=128)
    assert json.loads((folder / "summary.json").read_text())["cut"] > 0
    assert "raise --margin_um" in caplog.text


def test_a_slide_that_is_like_nothing_of_training_is_told(bundle_root, small_drawing, tmp_path, caplog, monkeypatch):
    path = save_slide(tmp_path / "a.tif", small_drawing, MPP)
    scores = iter([0.99] * 1000)
    monkeypatch.setattr(
        "scripts.slides.segmenter.tile_domain",
        lambda *_: {"out_of_domain": next(scores), "domain_distance": 9.0, "nearest_domain": "tnbc"},
    )
    segment_slide(bundle_root, path, tmp_path / "out")
    assert caplog.text.count("no tile is like the tissue of training") == 1
    scores = iter([0.5] + [0.99] * 1000)
    segment_slide(bundle_root, path, tmp_path / "out2")
    assert caplog.text.count("no tile is like the tissue of training") == 1


# --- bad input


def run_error(*args, **kwargs) -> str:
    with pytest.raises((SystemExit, RuntimeError)) as ended:  # the latter is MONAI's, around what setup_run refuses
        segment_slide(*args, **kwargs)
    return str(root_cause(ended.value))


@pytest.fixture(scope="module")
def small_drawing() -> Drawing:
    return make_drawing(1500, 1200, seed=3)


def test_a_slide_without_mpp_names_the_key(bundle_root, small_drawing, tmp_path):
    path = save_slide(tmp_path / "a.tif", small_drawing, None)
    assert "--mpp" in run_error(bundle_root, path, tmp_path / "out")
    folder = segment_slide(bundle_root, path, tmp_path / "out", mpp=MPP)
    assert_found(folder, small_drawing.nuclei)
    assert not (tmp_path / "out" / "errors.csv").exists(), "of the first try"


def test_a_slide_without_tissue_is_a_valid_empty_result(bundle_root, tmp_path, caplog):
    empty = Drawing(1500, 1200, np.zeros((0, 3)), np.zeros((0, 5)))
    path = save_slide(tmp_path / "a.tif", empty, MPP)
    folder = segment_slide(bundle_root, path, tmp_path / "out")
    assert "no tissue found" in caplog.text
    assert read_geojson(folder / "nuclei.geojson") == [] == read_table(folder / "nuclei.csv")
    assert json.loads((folder / "summary.json").read_text())["nuclei"] == 0
    assert (folder / "overview.jpg").is_file()
    assert "no nucleus was found" not in caplog.text, "that no tissue was found says it"
    folder = segment_slide(bundle_root, path, tmp_path / "out", tissue_threshold=0)
    assert "no nucleus was found in any of" in caplog.text
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["tiles"] > 0 == summary["nuclei"] == summary["tiles_without_tissue"]


@pytest.mark.parametrize("region", ["5000,0,100,100", "1,2,3", "0,0,0,10", "a,b,c,d"])
def test_a_region_outside_is_refused(bundle_root, small_drawing, tmp_path, region):
    path = save_slide(tmp_path / "a.tif", small_drawing, MPP)
    assert "region" in run_error(bundle_root, path, tmp_path / "out", region=region)


@pytest.mark.parametrize("kind", ["tiff", "svs"])
def test_damaged_tiles_are_left_out_and_listed(bundle_root, small_drawing, tmp_path, kind):
    import tifffile

    path = save_slide(tmp_path / f"a.{kind}", small_drawing, MPP, kind, levels=(1, 4))
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        across = -(-page.imagewidth // 256)
        x, y = (int(value // 256) for value in small_drawing.tissue[0, :2])
        offset, count = (values[y * across + x] for values in (page.dataoffsets, page.databytecounts))
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\x00" * count)
    hole = shapely.box(x * 256, y * 256, x * 256 + 256, y * 256 + 256)
    folder = segment_slide(bundle_root, path, tmp_path / "out")
    for row in read_table(folder / "unread.csv"):
        left, top, width, height = (int(row[key]) for key in ("x", "y", "width", "height"))
        assert shapely.box(left, top, left + width, top + height).intersects(hole) and row["problem"]
        assert max(width, height) <= 256 + 2 * 64
    outside = np.array([not hole.buffer(90).contains(shapely.Point(*nucleus[:2])) for nucleus in small_drawing.nuclei])
    found = centroids(folder)
    assert 0 < (~outside).sum() and cKDTree(found).query(small_drawing.nuclei[outside, :2])[0].max() < 1


def test_a_file_that_is_no_slide_stops_no_other(bundle_root, small_drawing, tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    save_slide(folder / "good.tif", small_drawing, MPP)
    (folder / "bad.svs").write_bytes(b"nothing")
    assert "1 of 2 slides failed" in run_error(bundle_root, folder, tmp_path / "out")
    assert len(read_table(tmp_path / "out" / "errors.csv")) == 1
    assert_found(tmp_path / "out" / "good", small_drawing.nuclei)


def test_a_strip_image_is_refused_with_the_way_out(tmp_path):
    import tifffile

    tifffile.imwrite(tmp_path / "a.tif", np.zeros((5000, 5000), np.uint8), rowsperstrip=5000)
    with pytest.raises(DataError, match="not tiled"):
        open_slide(tmp_path / "a.tif")


def test_a_full_disk_ends_the_run_and_the_next_one_goes_on(bundle_root, small_drawing, tmp_path, monkeypatch):
    path = save_slide(tmp_path / "a.tif", small_drawing, MPP)
    whole = segment_slide(bundle_root, path, tmp_path / "whole", tile_size=256)
    sync, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 20:
            raise OSError(28, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RuntimeError) as ended:
        segment_slide(bundle_root, path, tmp_path / "out", tile_size=256)
    assert "No space left" in str(root_cause(ended.value)), "what the verb prints last"
    assert not (tmp_path / "out" / "a").exists()
    monkeypatch.setattr(os, "fsync", sync)
    folder = segment_slide(bundle_root, path, tmp_path / "out", tile_size=256)
    assert json.loads((folder / "summary.json").read_text())["tiles_of_earlier_runs"] > 0
    for name in ("nuclei.geojson", "nuclei.csv"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


def test_threads_read_what_one_would(slide):
    opened = open_slide(slide)
    places = [(x, y) for x in range(2000, 6000, 400) for y in range(2000, 6000, 400)]
    alone = [opened.read_level(0, x, y, 300, 300) for x, y in places]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda place: opened.read_level(0, *place, 300, 300), places))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together))


# --- several slides, kills, sizes

RUN = "import sys; sys.path[:0] = [{tests!r}, {bundle!r}]; from slides import segment_slide; from pathlib import Path; "
RUN += ""


def start(bundle_root: Path, slide: Path, out: Path, code: str = "", **environment: str) -> subprocess.Popen:
    program = RUN.format(tests=str(Path(__file__).parents[1] / "helpers"), bundle=str(bundle_root))
    program += f"segment_slide(Path({str(bundle_root)!r}), Path({str(slide)!r}), Path({str(out)!r})); {code}"
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **environment}
    return subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)


def test_a_killed_run_goes_on_and_gives_the_same_files(bundle_root, slide, result, tmp_path):
    process = start(bundle_root, slide, tmp_path, AMA_SAM_TEST_PAUSE="0.1")
    journal = tmp_path / ".known.unfinished" / "journal.jsonl"
    end = time.monotonic() + 300
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 12):
        assert process.poll() is None and time.monotonic() < end, "it ended before it could be killed"
        time.sleep(0.05)
    with pytest.raises(SystemExit, match=f"process {process.pid} on .* is writing there. Wait until it has ended"):
        segment_slide(bundle_root, slide, tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with journal.open("ab") as file, (journal.parent / "nuclei.geojson").open("ab") as other:
        file.write(b'{"nuclei": 3, "bor')  # as if killed while writing
        other.write(b',\n{"type": "Fea')
    with (journal.parent / "nuclei.arrows").open("ab") as stream:
        stream.write(b"\xff\xff\xff")
    folder = segment_slide(bundle_root, slide, tmp_path)
    assert json.loads((folder / "summary.json").read_text())["tiles_of_earlier_runs"] >= 12
    for name in ("nuclei.geojson", "nuclei.csv", "nuclei.parquet", "tiles.csv"):
        assert (folder / name).read_bytes() == (result / name).read_bytes()
    assert not list(tmp_path.glob(".known.*")), "neither lock nor unfinished files stay"


@given(count=st.integers(1, 20), processes=st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_processes_of_torchrun_take_every_slide_once(tmp_path_factory, count, processes):
    taken = []
    out = tmp_path_factory.getbasetemp() / "none"
    folders = name_folders([f"/slides/{number}.svs" for number in range(count)], out)
    for rank in range(processes):
        segment_slides(
            folders,
            lambda slide, folder: taken.append(slide) or {"nuclei": 0},
            out,
            rank=rank,
            world_size=processes,
        )
    assert sorted(taken) == sorted(folders)


@pytest.mark.slow
def test_torchrun_shares_slides_among_its_processes(bundle_root, small_drawing, tmp_path):
    folder, out = tmp_path / "slides", tmp_path / "out"
    folder.mkdir()
    for name in "abc":
        save_slide(folder / f"{name}.tif", small_drawing, MPP)
    (folder / "d.svs").write_bytes(b"nothing")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    command += ["monai.bundle", "run", "segmenting_slide", "--config_file", "configs/wsi.json", "--tile_size", "512"]
    command += ["--network", "{'_target_': 'slides.Darkness'}", "--slide", str(folder), "--output_dir", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "helpers"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=bundle_root, env=environment, capture_output=True, text=True)
    assert done.returncode != 0, "one of the slides is none"
    assert [row["slide"] for row in read_table(out / "errors_1_of_2.csv")] == [str(folder / "d.svs")]
    for name in "abc":
        assert_found(out / name, small_drawing.nuclei)


def test_a_list_of_slides_has_one_table_and_finished_slides_are_left_alone(bundle_root, small_drawing, tmp_path):
    names = [save_slide(tmp_path / f"{i}.tif", small_drawing, MPP).name for i in range(3)]
    (tmp_path / "list.txt").write_text("\n".join(["# slides", *names]))
    out = tmp_path / "out"
    segment_slide(bundle_root, tmp_path / "1.tif", out)
    assert [path.name for path in out.iterdir() if path.is_dir()] == ["1"]
    first = (out / "1" / "summary.json").stat().st_mtime_ns
    segment_slide(bundle_root, tmp_path / "list.txt", out)
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["0", "1", "2"]
    assert (out / "1" / "summary.json").stat().st_mtime_ns == first
    table, parquet = pd.read_csv(out / "slides.csv", dtype={"folder": str}), pd.read_parquet(out / "slides.parquet")
    assert list(table.folder) == ["0", "1", "2"] == list(parquet.folder)
    assert list(table.nuclei) == [len(small_drawing.nuclei)] * 3 == list(parquet.nuclei)
    summary = json.loads((out / "2" / "summary.json").read_text())
    assert table.nuclei_per_mm2[2] == parquet.nuclei_per_mm2[2] == summary["nuclei_per_mm2"]
    segment_slide(bundle_root, tmp_path / "1.tif", out, threshold=0.6)
    assert (out / "1" / "summary.json").stat().st_mtime_ns != first, "other settings are another result"
    assert [row["folder"] for row in read_table(out / "slides.csv")] == ["0", "1", "2"], (
        "those of earlier runs stay in it"
    )
    with pytest.raises(Exception) as problem:  # noqa: PT011 - MONAI wraps it
        segment_slide(bundle_root, tmp_path / "list.txt", out, shard="1/2")
    assert "--cluster shares slides" in str(root_cause(problem.value))


@pytest.mark.slow
def test_processes_for_post_processing_give_the_same_files(bundle_root, small_drawing, tmp_path):
    path = save_slide(tmp_path / "a.tif", small_drawing, MPP)
    folders = [segment_slide(bundle_root, path, tmp_path / str(n), workers=n, tile_batch_size=2) for n in (0, 2)]
    files = [(folder / "nuclei.geojson").read_bytes() for folder in folders]
    assert files[0] == files[1]
    assert_found(folders[0], small_drawing.nuclei)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_slide(bundle_root, tmp_path):
    peak = {}
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of memory is read from Linux' /proc")
    # not getrusage: its peak counts that of the process which started this one
    report = "lines = Path('/proc/self/status').read_text().splitlines(); "
    report += "print(next(line.split()[1] for line in lines if line.startswith('VmHWM')))"
    for side in (4096, 8192):
        # the same tissue everywhere: as many tiles as the area asks for
        grid = make_drawing(side, side, spacing=160, blobs=1)
        drawing = Drawing(side, side, np.array([[side / 2, side / 2, side]]), grid.nuclei)
        path = save_slide(tmp_path / f"{side}.tif", drawing, MPP)
        process = start(bundle_root, path, tmp_path / "out", report)
        printed, _ = process.communicate()
        assert process.returncode == 0
        peak[side] = float(printed.split()[-1])
        summary = json.loads((tmp_path / "out" / str(side) / "summary.json").read_text())
        assert summary["nuclei"] == len(grid.nuclei)
        path.unlink()
    assert peak[8192] < 1.1 * peak[4096]
