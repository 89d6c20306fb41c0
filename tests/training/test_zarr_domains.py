"""Images of a domain may be OME-Zarr stores, as those of the verb that segments."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from scripts.data.cache_key import content_of
from scripts.data.domain_folders import domain_list
from scripts.data.domains import load_items
from scripts.data.leakage import check_leakage
from scripts.errors import DataError
from scripts.tracking.data_inputs import data_fingerprint, data_inputs
from zarrs import RED_GREEN_BLUE, save_zarr


@pytest.fixture(scope="module")
def data(synthetic, tmp_path_factory):
    """The synthetic domains, the primary's images as stores of the same names."""
    folder = tmp_path_factory.mktemp("data") / "synthetic"
    shutil.copytree(synthetic, folder)
    (root,) = folder.glob("synthetic_pink")
    lists = json.loads((root / "split.json").read_text())
    for entry in (entry for part in lists.values() for entry in part):
        path = root / entry["image"]
        entry["image"] = entry["image"].replace(path.suffix, ".ome.zarr")
        save_zarr(root / entry["image"], np.asarray(Image.open(path)).transpose(2, 0, 1), 0.25, omero=RED_GREEN_BLUE)
        path.unlink()
    (root / "split.json").write_text(json.dumps(lists))
    return folder


def test_a_domain_of_stores_is_trained_on(open_training, data, tmp_path):
    arguments = {"dataset_dir": str(data), "max_epochs": 1, "domain_images": 2, "mode": "joint"}
    open_training(tmp_path, primary="synthetic_pink", **arguments).run()
    (run_dir,) = tmp_path.glob("*_seed0")
    assert (run_dir / "model.pt").is_file() and (run_dir / "overlay.png").is_file()


def test_stores_and_labels_of_one_name_in_plain_folders_belong_together(data, tmp_path):
    shutil.copytree(data / "synthetic_pink", tmp_path / "mine")
    (tmp_path / "mine" / "split.json").unlink()
    domains = domain_list(tmp_path, "mine")
    items = [item for split in ("training", "validation", "testing") for item in load_items(domains, split)]
    assert len(items) == len(list((data / "synthetic_pink" / "images").glob("*.ome.zarr")))
    assert all(item["image"].endswith(".ome.zarr") for item in items)
    check_leakage(domains)
    shutil.rmtree(items[0]["image"])
    with pytest.raises(DataError, match="no image belongs to it"):
        load_items(domains, "training")


def test_what_changes_within_a_store_is_another_image(data, tmp_path):
    store = next((data / "synthetic_pink" / "images").glob("*.ome.zarr"))
    copy = shutil.copytree(store, tmp_path / "images" / store.name)
    assert content_of(copy) == content_of(store)

    def fingerprint() -> str:
        domain = {"name": "mine", "role": "primary", "root": str(tmp_path)}
        return data_fingerprint(data_inputs([domain], {"training": [{"image": str(copy)}]}))

    before = fingerprint()
    chunk = max((path for path in copy.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    chunk.rename(chunk.with_name("7"))
    assert content_of(copy) != content_of(store), "a part of it lies elsewhere"
    chunk.with_name("7").unlink()
    assert fingerprint() != before
