"""Names of outputs: each file its own, none within another one, and the same whenever the same files are given."""

from __future__ import annotations

import os
from itertools import combinations
from pathlib import PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts.errors import DataError
from scripts.inference.output_names import output_names


def names(*files: str, root: str | None = None, folders: bool = False) -> list[str]:
    return list(output_names([f"/data/{file}" for file in files], root, folders).values())


def test_names_never_clash():
    assert names("a.png", "b.png") == ["a", "b"]
    assert names("a.png", "a.tif") == ["a_png", "a_tif"]
    assert names("x/a.png", "y/a.png") == ["x/a", "y/a"]
    assert names("a.png", "a.tif", "a_png.jpg") == ["a_png_2", "a_tif", "a_png"]
    assert names("A.png", "a.png") == ["A_png", "a_png_2"], "one file where case does not count"
    assert names("a.png", "A.png") == ["a_png_2", "A_png"], "in any order"
    assert names("a.nii.gz", "a.b.png") == ["a", "a.b"]
    assert names("x/a.png", root="/data") == ["x/a"]
    assert names("x/a.png") == ["a"]
    assert names() == []
    with pytest.raises(DataError, match="not below the root folder"):
        names("a.png", root="/data/x")


def test_folders_never_lie_in_one_another():
    assert names("case7.tif", "case7/roi.tif") == ["case7", "case7/roi"], "files beside a folder do not clash with it"
    assert names("case7.tif", "case7/roi.tif", folders=True) == ["case7_tif", "case7/roi"]
    assert names("a.tif", "a/b.tif", "a/b/c.tif", folders=True) == ["a_tif", "a/b_tif", "a/b/c"]
    assert names("a.tif", "a/b.tif", "a_tif/c.tif", folders=True) == ["a_tif_2", "a/b", "a_tif/c"]
    assert names("A.tif", "a/b.tif", folders=True) == ["A_tif", "a/b"], "where case does not count"
    assert names(".a.unfinished.tif", "a.tif", folders=True) == ["a.unfinished", "a"], "no name is that of a helper"


parts = st.text("aA._x", min_size=1, max_size=3).filter(lambda part: part.strip("."))
paths = st.tuples(st.lists(parts, min_size=1, max_size=3), st.sampled_from([".tif", ".svs", ".TIF", ""]))


@given(st.lists(paths, max_size=8), st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_folders_of_any_files_are_distinct_never_nested_and_stable(drawn, random):
    files = sorted({"/data/" + "/".join(folders) + suffix for folders, suffix in drawn})
    found = output_names(files, "/data", folders=True)
    assert set(found) == {os.path.abspath(file) for file in files}
    folded = [PurePosixPath(name.casefold()) for name in found.values()]
    for one, two in combinations(folded, 2):
        assert one != two and one not in two.parents and two not in one.parents
    helpers = {path.with_name(f".{path.name}.{kind}") for path in folded for kind in ("unfinished", "old", "lock")}
    assert not any(path in helpers or helpers & set(path.parents) for path in folded)
    random.shuffle(files)
    assert output_names(files, "/data", folders=True) == found
