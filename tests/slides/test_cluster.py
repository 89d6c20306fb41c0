"""A cohort on a Dask cluster: a worker that is killed in the middle costs nothing but time."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import pandas as pd
import pytest
from results import read_table
from scripts.errors import DataError, root_cause
from slides import make_drawing, save_slide, segment_slide

MPP = 0.25
SLIDES = 4
FILES = ("nuclei.geojson", "nuclei.csv", "nuclei.parquet", "tiles.csv")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    """Small slides, and a file that is none."""
    folder = tmp_path_factory.mktemp("cohort")
    for number in range(SLIDES):
        save_slide(folder / f"{number}.tif", make_drawing(900, 700, seed=number), MPP, levels=(1, 4))
    (folder / "bad.svs").write_bytes(b"nothing")
    return folder


@pytest.fixture(scope="module")
def alone(bundle_root, cohort, tmp_path_factory) -> Path:
    """What one process makes of them."""
    out = tmp_path_factory.mktemp("alone")
    with pytest.raises(SystemExit, match="1 of 5 slides failed"):
        segment_slide(bundle_root, cohort, out, tile_size=256)
    return out


def assert_same(out: Path, alone: Path) -> None:
    for number in range(SLIDES):
        for name in FILES:
            assert (out / str(number) / name).read_bytes() == (alone / str(number) / name).read_bytes()
    columns = ["folder", "nuclei", "nuclei_per_mm2", "tiles"]
    tables = [pd.read_parquet(folder / "slides.parquet")[columns] for folder in (out, alone)]
    pd.testing.assert_frame_equal(*tables)
    assert [row["slide"] for row in read_table(out / "errors.csv")] == [
        row["slide"] for row in read_table(alone / "errors.csv")
    ]
    assert not [path.name for path in out.iterdir() if path.name.endswith((".lock", ".unfinished"))]


def kill_a_worker(out: Path, killed: list[int], ended: threading.Event) -> None:
    """The first that has done some tiles of its slide."""
    while not killed and not ended.wait(0.02):
        for lock in out.glob(".*.lock"):
            journal = out / lock.name.replace(".lock", ".unfinished") / "journal.jsonl"
            try:
                if journal.read_bytes().count(b"\n") > 3:
                    killed.append(json.loads(lock.read_text())["pid"])
                    os.kill(killed[0], signal.SIGKILL)
                    break
            except (OSError, ValueError):  # not yet, or no longer
                continue


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_costs_no_slide(bundle_root, cohort, alone, tmp_path, monkeypatch):
    monkeypatch.setenv("AMA_SAM_TEST_PAUSE", "0.2")  # workers have it from here
    killed: list[int] = []
    ended = threading.Event()
    killer = threading.Thread(target=kill_a_worker, args=(tmp_path, killed, ended))
    killer.start()
    try:
        with pytest.raises(SystemExit, match="1 of 5 slides failed"):
            segment_slide(bundle_root, cohort, tmp_path, tile_size=256, cluster="local:2")
    finally:
        ended.set()
        killer.join()
    assert killed and killed[0] != os.getpid()
    assert_same(tmp_path, alone)
    resumed = [
        json.loads((tmp_path / str(n) / "summary.json").read_text())["tiles_of_earlier_runs"] for n in range(SLIDES)
    ]
    assert sum(count > 0 for count in resumed) == 1, "another worker went on where the killed one was"


@pytest.mark.slow
def test_a_slide_that_kills_every_worker_is_listed(bundle_root, cohort, tmp_path):
    with pytest.raises(SystemExit, match="every worker that tried it died"):
        segment_slide(bundle_root, cohort / "1.tif", tmp_path, network="Deadly", tile_size=256, cluster="local:1")
    (error,) = read_table(tmp_path / "errors.csv")
    assert error["slide"] == str(cohort / "1.tif")
    assert not (tmp_path / "1").exists(), "results are whole or absent"


def test_a_scheduler_that_is_not_there_is_told_in_one_sentence(bundle_root, cohort, tmp_path, monkeypatch):
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "1s")
    with pytest.raises(RuntimeError) as ended:
        segment_slide(bundle_root, cohort, tmp_path, cluster="tcp://127.0.0.1:9")
    cause = root_cause(ended.value)
    assert isinstance(cause, DataError) and "no scheduler answers at tcp://127.0.0.1:9" in str(cause)
