"""Labels of several data sets in one style: nuclei that face each other share a border."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from PIL import Image
from scripts.data.annotation_style import CloseGaps, close_gaps, set_gaps
from scripts.data.domain_folders import domain_list
from scripts.data.domains import load_items
from scripts.data.readers import read_label
from scripts.errors import DataError
from scripts.nuclei.fates import touching


def drawn_with_lines(ids: np.ndarray, size: int = 8) -> np.ndarray:
    """Blocks of the given ids with a background line, one pixel wide, around each."""
    label = np.kron(ids, np.ones((size, size), np.int32))
    label[::size], label[:, ::size] = 0, 0
    return label


def test_lines_are_closed_and_nothing_else():
    label = drawn_with_lines(np.array([[1, 2, 0], [3, 4, 0], [0, 0, 5]]))
    closed = close_gaps(label)
    assert touching(label, 1).sum() == 0 and touching(closed, 1)[:4].all()
    assert (closed[label > 0] == label[label > 0]).all(), "no nucleus loses a pixel"
    assert (closed[1:16, 8] > 0).all() and (closed[8, 1:16] > 0).all(), "the lines between nuclei are gone"
    assert (closed[1:7, 16] == 0).all() and (closed[0, :8] == 0).all(), "towards background nothing grows"
    two_wide = np.array([[1, 1, 0, 0, 2, 2]] * 4)
    assert (close_gaps(two_wide) == two_wide).all()


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_closing_makes_no_nucleus_and_can_be_repeated_only_where_lines_were_left(seed):
    rng = np.random.default_rng(seed)
    label = np.kron(rng.integers(0, 6, (5, 5)), np.ones((4, 4), np.uint16)).astype(np.uint16)
    label[rng.random(label.shape) < 0.3] = 0
    closed = close_gaps(label)
    assert closed.dtype == label.dtype and set(np.unique(closed)) == set(np.unique(label)) | {0} & set(closed.ravel())
    grown = closed != label
    assert (label[grown] == 0).all()
    assert (close_gaps(closed[::-1])[::-1] == close_gaps(closed)).mean() > 0.9, "directions are alike but for ties"


@pytest.fixture()
def folder(tmp_path):
    styles = {"lined": drawn_with_lines(np.arange(1, 10).reshape(3, 3))}
    styles["shared"] = close_gaps(styles["lined"])
    styles["sparse"] = np.kron(np.eye(3, dtype=np.int32) * [1, 2, 3], np.pad(np.ones((4, 4), np.int32), 4))
    for name, label in styles.items():
        for part in ("images", "labels"):
            (tmp_path / name / part).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(label.astype(np.uint16)).save(tmp_path / name / "labels" / f"{number}.png")
            Image.new("RGB", label.shape[::-1]).save(tmp_path / name / "images" / f"{number}.png")
    return tmp_path


def test_a_domain_drawn_with_lines_is_found(folder):
    domains = domain_list(folder, "lined")
    items = load_items(domains, "training")
    told = {item["domain_name"]: item["gaps"] for item in set_gaps(items, domains, "auto")}
    assert told == {"lined": "close", "shared": "keep", "sparse": "keep"}
    assert {item["gaps"] for item in set_gaps(items, domains, "keep")} == {"keep"}
    domains[0]["gaps"] = "keep"
    assert {item["gaps"] for item in set_gaps(items, domains, "auto")} == {"keep"}, "what the domain says goes first"
    with pytest.raises(DataError, match="'shut' is not known"):
        set_gaps(items, domains, "shut")


def test_only_labels_that_are_to_be_closed_are(folder):
    label = read_label(folder / "lined" / "labels" / "0.png")
    item = {"label": MetaTensor(label[None], meta={"filename_or_obj": "a.png"})}
    closed = CloseGaps()({**item, "gaps": "close"})["label"]
    assert closed.meta["filename_or_obj"] == "a.png" and (np.asarray(closed)[0] == close_gaps(label)).all()
    for kept in (CloseGaps()({**item, "gaps": "keep"}), CloseGaps()(item)):
        assert (np.asarray(kept["label"])[0] == label).all()
