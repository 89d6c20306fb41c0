"""The sample of real tissue that the bundle ships: small, licensed, split by patient, and what training takes."""

from __future__ import annotations

import json

import numpy as np
from monai.bundle import ConfigParser
from scripts.data.domain_folders import domain_list
from scripts.data.domains import SPLITS, load_items
from scripts.data.leakage import check_leakage
from scripts.data.readers import read_image, read_label

LICENCES = {"sample_tnbc": "CC BY 4.0", "sample_dsb2018_purple": "CC0 1.0", "sample_dsb2018_white": "CC0 1.0"}


def test_it_is_small_and_says_whose_it_is(bundle_root):
    sample = bundle_root / "sample"
    assert sum(path.stat().st_size for path in sample.rglob("*") if path.is_file()) <= 4e6
    licence, readme = ((sample / name).read_text(encoding="utf-8") for name in ("LICENSE.txt", "README.md"))
    for name, expected in LICENCES.items():
        about = json.loads((sample / name / "dataset.json").read_text(encoding="utf-8"))
        assert about["license"] == expected and about["citation"] and name in licence and name in readme
    assert {path.name for path in sample.iterdir() if path.is_dir()} == set(LICENCES), "no other set is shipped"


def test_every_domain_has_all_parts_and_no_patient_is_on_two_sides(bundle_root):
    domains = domain_list(bundle_root / "sample")
    assert [domain["name"] for domain in domains][0] == "sample_tnbc" and len(domains) == 3
    parts = {split: load_items(domains, split) for split in SPLITS}
    for split, items in parts.items():
        assert {item["domain_name"] for item in items} == set(LICENCES), split
    groups = [{item["group"] for item in items} for items in parts.values()]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
    assert check_leakage(domains) == []
    for item in [item for items in parts.values() for item in items]:
        image, label = np.asarray(read_image(item["image"])), np.asarray(read_label(item["label"]))
        assert {*label.shape} <= {256, 320} and {*label.shape} <= {*image.shape} and label.max() > 5


def test_it_is_the_default_of_the_verbs_that_take_domains(bundle_root):
    for name in ("train", "evaluate", "align", "experiment"):
        parser = ConfigParser(ConfigParser.load_config_file(bundle_root / "configs" / f"{name}.json"))
        parser["bundle_root"] = str(bundle_root)
        assert parser.get_parsed_content("dataset_dir") == str(bundle_root / "sample"), name
