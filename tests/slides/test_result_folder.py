"""Folders of results: whole whenever they exist, never in another one, and never in the place of what is not ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scripts.errors import DataError, root_cause
from scripts.owned import LIST
from scripts.slides.listing import name_folders
from scripts.slides.result_folder import ResultFolder
from slides import make_drawing, save_slide, segment_slide

MPP = 0.2


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> bytes:
    """A small slide, to be copied."""
    path = tmp_path_factory.mktemp("slide") / "a.tif"
    return save_slide(path, make_drawing(700, 600, seed=3), MPP, levels=(1, 4)).read_bytes()


def place(path: Path, picture: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(bundle_root, slide, output_dir, **options) -> str:
    """Why it was refused, before anything was written."""
    root = Path(output_dir).parent
    before = contents(root)
    with pytest.raises(RuntimeError) as ended:
        segment_slide(bundle_root, slide, output_dir, **options)
    assert contents(root) == before
    cause = root_cause(ended.value)
    assert isinstance(cause, DataError)
    return str(cause)


# --- what is not ours


def mirax(folder: Path, picture: bytes) -> Path:
    """The layout of a MIRAX slide; the pixels of this one are in the wrong file, for nothing here writes the format."""
    for name in ("Slidat.ini", "Data0000.dat", "Index.dat"):
        place(folder / "case7" / name, b"precious")
    return place(folder / "case7.mrxs", picture)


def test_the_data_beside_a_mirax_slide_survive(bundle_root, picture, tmp_path):
    slide = mirax(tmp_path / "in", picture)
    for output_dir in (tmp_path / "in", tmp_path / "in" / "case7"):
        for given in (slide, tmp_path / "in"):
            assert "data of" in refused(bundle_root, given, output_dir)
    folder = segment_slide(bundle_root, slide, tmp_path / "in" / "results")
    assert (folder / "summary.json").exists()


def test_a_users_folder_of_the_slides_name_survives(bundle_root, picture, tmp_path):
    slide = place(tmp_path / "in" / "case7.tif", picture)
    for name in ("case7", ".case7.unfinished", ".case7.old"):
        place(tmp_path / "out" / name / "nuclei.csv", b"precious")
        told = refused(bundle_root, slide, tmp_path / "out")
        assert "'nuclei.csv'" in told and "Choose another output_dir" in told
        (tmp_path / "out" / name).rename(tmp_path / f"away{name}")
    place(tmp_path / "out" / ".case7.lock", b"precious")
    with pytest.raises(SystemExit, match=".case7.lock: it was not written by this bundle"):
        segment_slide(bundle_root, slide, tmp_path / "out")
    assert (tmp_path / "out" / ".case7.lock").read_bytes() == b"precious"


def test_a_users_file_among_results_survives(bundle_root, picture, tmp_path):
    slide = place(tmp_path / "in" / "a.tif", picture)
    folder = segment_slide(bundle_root, slide, tmp_path / "out")
    place(folder / "corrected.geojson", b"precious")
    assert segment_slide(bundle_root, slide, tmp_path / "out") == folder, "there is nothing to do"
    before = contents(folder)
    with pytest.raises(SystemExit, match="corrected.geojson: it was not written by this bundle and would be removed"):
        segment_slide(bundle_root, slide, tmp_path / "out", threshold=0.6, resume=False)
    assert contents(folder) == before
    (folder / "corrected.geojson").rename(tmp_path / "corrected.geojson")
    segment_slide(bundle_root, slide, tmp_path / "out", threshold=0.6)
    assert json.loads((folder / "summary.json").read_text())["settings"]["threshold"] == 0.6


@pytest.mark.parametrize("name", ["wsi.json", "errors.csv"])
def test_a_users_file_beside_results_survives(bundle_root, picture, tmp_path, name):
    slide = place(tmp_path / "in" / "a.tif", picture)
    place(tmp_path / "out" / name, b"precious")
    with pytest.raises(RuntimeError) as ended:
        segment_slide(bundle_root, slide, tmp_path / "out")
    assert f"{name}: it was not written by this bundle" in str(root_cause(ended.value))
    assert (tmp_path / "out" / name).read_bytes() == b"precious"


# --- slides beside each other


def test_a_slide_beside_a_folder_of_its_name_leaves_the_others_results_alone(bundle_root, picture, tmp_path):
    for name in ("case7.tif", "case7/roi.tif"):
        place(tmp_path / "in" / name, picture)
    for _ in range(2):  # the second time with other settings, so that all is made anew
        segment_slide(bundle_root, tmp_path / "in", tmp_path / "out", threshold=0.5 + 0.1 * _)
        for folder in ("case7_tif", "case7/roi"):
            assert (tmp_path / "out" / folder / "summary.json").exists()


def test_results_never_go_into_those_of_another_slide(bundle_root, picture, tmp_path):
    slide = place(tmp_path / "in" / "case7.tif", picture)
    place(tmp_path / "in" / "case7" / "roi.tif", picture)
    segment_slide(bundle_root, slide, tmp_path / "out")
    assert "holds the results of a slide" in refused(bundle_root, tmp_path / "in", tmp_path / "out")
    assert "holds the results of a slide" in refused(bundle_root, slide, tmp_path / "out" / "case7")
    # the other way round
    segment_slide(bundle_root, tmp_path / "in", tmp_path / "out2")
    assert "'roi'" in refused(bundle_root, slide, tmp_path / "out2")


def test_another_slide_of_the_same_name_does_not_take_the_place(bundle_root, picture, tmp_path):
    for name in "xy":
        place(tmp_path / name / "a.tif", picture)
    segment_slide(bundle_root, tmp_path / "x" / "a.tif", tmp_path / "out")
    told = refused(bundle_root, tmp_path / "y" / "a.tif", tmp_path / "out")
    assert f"results of another slide, {tmp_path / 'x' / 'a.tif'}" in told
    (tmp_path / "x").rename(tmp_path / "z")  # the same slide, moved
    segment_slide(bundle_root, tmp_path / "z" / "a.tif", tmp_path / "out", threshold=0.6)


# --- kills, and what earlier versions left


class Killed(BaseException):
    pass


@pytest.mark.parametrize("survivor", [0, 1, 2])
def test_a_kill_between_the_renames_loses_no_result(bundle_root, picture, tmp_path, monkeypatch, survivor):
    """Killed before the first rename, between the two, and after them."""
    slide = place(tmp_path / "in" / "a.tif", picture)
    folder = segment_slide(bundle_root, slide, tmp_path / "out")
    first = contents(folder)
    rename, calls = Path.rename, []

    def kill(path, target):
        if path.parent == tmp_path / "out":
            calls.append(path)
            if len(calls) > survivor:
                raise Killed
        return rename(path, target)

    def kill_before_removal(files):
        if files.folder.exists():
            raise Killed

    monkeypatch.setattr(Path, "rename", kill)
    if survivor == 2:
        monkeypatch.setattr("scripts.slides.result_folder.remove_own_folder", kill_before_removal)
    with pytest.raises(Killed):
        segment_slide(bundle_root, slide, tmp_path / "out", threshold=0.6)
    monkeypatch.undo()
    threshold = 0.6 if survivor == 2 else 0.4
    segment_slide(bundle_root, slide, tmp_path / "out", threshold=threshold)
    if survivor < 2:
        assert contents(folder) == first, "the earlier result is there again, and was not made anew"
    assert json.loads((folder / "summary.json").read_text())["settings"]["threshold"] == threshold
    assert not (tmp_path / "out" / ".a.old").exists()
    segment_slide(bundle_root, slide, tmp_path / "out", threshold=0.6)
    assert {path.name for path in (tmp_path / "out").glob(".*")} == {LIST}


def test_results_of_the_version_before_are_known(bundle_root, picture, tmp_path):
    slide = place(tmp_path / "in" / "a.tif", picture)
    folder = segment_slide(bundle_root, slide, tmp_path / "out")
    for name in (LIST, "tile_*.jpg", "slides.*", "nuclei.parquet"):  # it wrote none of these
        for path in tmp_path.rglob(name):
            path.unlink()
    first = contents(folder)
    segment_slide(bundle_root, slide, tmp_path / "out")
    assert contents(folder) == first, "finished"
    segment_slide(bundle_root, slide, tmp_path / "out", threshold=0.6)
    assert (folder / LIST).exists()


def test_an_unfinished_run_of_the_version_before_goes_on(bundle_root, picture, tmp_path):
    slide = place(tmp_path / "in" / "a.tif", picture)
    folder = segment_slide(bundle_root, slide, tmp_path / "out")
    summary = json.loads((folder / "summary.json").read_text())
    place(tmp_path / "out2" / ".a.unfinished" / "journal.jsonl", json.dumps({"settings": summary["settings"]}).encode())
    segment_slide(bundle_root, slide, tmp_path / "out2")
    assert (tmp_path / "out2" / "a" / "nuclei.csv").read_bytes() == (folder / "nuclei.csv").read_bytes()


def test_looking_changes_nothing(tmp_path):
    (tmp_path / "a.tif").touch()
    name_folders([str(tmp_path / "a.tif")], tmp_path / "out")
    ResultFolder(tmp_path / "out" / "a").check(tmp_path / "a.tif")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]
