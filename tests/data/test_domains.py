from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
from PIL import Image
from scripts.data.domain_folders import auxiliary_domains, domain_list
from scripts.data.domains import check_domains, domain_names, load_items, training_domains
from scripts.errors import DataError
from torch.utils.data import default_collate


def add_pairs(folder, names):
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for name in names:
            Image.fromarray(np.zeros((4, 5), np.uint8)).save(folder / part / f"{name}.png")


def add_listed(root, counts=(4, 1, 2), keys=("training", "validation", "testing"), file="split.json", **extra):
    """A domain with a datalist; two images a patient."""
    split, number = dict(extra), 0
    for key, count in zip(keys, counts, strict=True):
        split[key] = []
        for _ in range(count):
            name = f"img{number:02d}"
            add_pairs(root, [name])
            entry = {"image": f"images/{name}.png", "label": f"./labels/{name}.png", "patient": f"{number // 2:02d}"}
            split[key].append(entry)
            number += 1
    (root / file).write_text(json.dumps(split))


@pytest.fixture
def folder(tmp_path):
    add_listed(tmp_path / "beta")
    add_listed(tmp_path / "alpha", keys=("training", "validation", "test"), file="dataset.json", mpp=0.5)
    add_pairs(tmp_path / "gamma", [f"g{number}" for number in range(20)])
    add_listed(tmp_path / "only_tests", counts=(0, 0, 3))
    (tmp_path / "notes").mkdir()
    (tmp_path / "readme.txt").write_text("not a domain")
    return tmp_path


def names_in(domains):
    return [domain["name"] for domain in domains]


def test_all_other_domains_with_training_items_are_auxiliary(folder):
    domains = domain_list(folder, "beta")
    assert names_in(domains) == ["beta", "alpha", "gamma"]
    assert [domain["role"] for domain in domains] == ["primary", "auxiliary", "auxiliary"]
    assert [domain["datalist"] for domain in domains] == ["split.json", "dataset.json", None]
    assert [domain["mpp"] for domain in domains] == [None, 0.5, None]
    assert domains[0]["root"] == str(folder / "beta")


@pytest.mark.parametrize(
    "auxiliary, expected",
    [
        (["gamma", "alpha"], ["gamma", "alpha"]),
        ("gamma, alpha", ["gamma", "alpha"]),
        ("alpha", ["alpha"]),
        ([], []),
        (None, []),
        ("none", []),
        ("", []),
    ],
)
def test_auxiliary_domains_by_choice(folder, auxiliary, expected):
    assert names_in(domain_list(folder, "beta", auxiliary)) == ["beta", *expected]


def test_an_unlabelled_domain_gives_images_alone(folder):
    for label in [*(folder / "beta" / "labels").iterdir(), *(folder / "gamma" / "labels").iterdir()]:
        label.unlink()
    (folder / "gamma" / "labels").rmdir()
    domains = domain_list(folder, "alpha", "all", "beta,gamma")
    assert names_in(domains) == ["alpha", "beta", "gamma"]
    assert [domain.get("labels", True) for domain in domains] == [True, False, False]
    for split in ("training", "validation", "testing"):
        for item in load_items(domains, split):
            assert ("label" in item) == ("unlabelled" not in item) == (item["domain_name"] == "alpha")
    assert len(load_items(domains, "training")) == 4 + 4 + 20, "without labels nothing could be measured on the rest"
    assert names_in(domain_list(folder, "beta", "alpha", ["beta"])) == ["beta", "alpha"], "the primary may be one"


def test_unlabelled_domains_must_be_there_and_leave_something_to_learn_from(folder):
    with pytest.raises(DataError, match="no domain 'delta'"):
        domain_list(folder, "alpha", "beta", "delta")
    with pytest.raises(DataError, match="'gamma' has no role.*primary or auxiliary"):
        domain_list(folder, "alpha", "beta", "gamma")
    domains = domain_list(folder, "beta", "alpha", "beta")
    assert names_in(training_domains(domains, "ama")) == ["beta", "alpha"]
    for mode, unlabelled in (("single", "beta"), ("ama", "beta,alpha")):
        with pytest.raises(DataError, match="no labels to learn from in beta"):
            training_domains(domain_list(folder, "beta", "alpha", unlabelled), mode)


def test_unknown_names_show_what_is_there(folder):
    for arguments in (("delta",), ("beta", ["delta"]), ("beta", "alpha,delta")):
        with pytest.raises(DataError, match="no domain 'delta'.*alpha, beta, gamma, only_tests"):
            domain_list(folder, *arguments)
    with pytest.raises(DataError, match="'beta' is listed more than once"):
        domain_list(folder, "beta", ["beta"])


def test_folders_of_images_alone_are_told_as_what_unlabelled_takes(folder):
    shutil.rmtree(folder / "gamma" / "labels")
    told = "alpha, beta, only_tests. Images alone, which training takes with --unlabelled: gamma"
    for primary, problem in ((None, "primary is not said"), ("gamma", "no domain 'gamma'")):
        with pytest.raises(DataError, match=f"{problem}.*Domains found: {told}"):
            domain_list(folder, primary)
    for name in ("alpha", "beta", "only_tests"):
        shutil.rmtree(folder / name)
    with pytest.raises(DataError, match="no domain folder found.* --unlabelled: gamma"):
        domain_list(folder)


def test_primary_may_be_left_out_only_if_it_is_clear(folder, tmp_path_factory):
    with pytest.raises(DataError, match="primary.*alpha, beta, gamma"):
        domain_list(folder)
    (folder / "domains.json").write_text('{"primary": "gamma"}')
    assert names_in(domain_list(folder, None))[0] == "gamma"
    assert names_in(domain_list(folder, "alpha"))[0] == "alpha", "a primary that is given wins"
    single = tmp_path_factory.mktemp("single")
    add_listed(single / "mine")
    assert names_in(domain_list(single)) == ["mine"]


def test_folders_without_domains(folder):
    with pytest.raises(DataError, match="no such folder"):
        domain_list(folder / "nowhere", "beta")
    with pytest.raises(DataError, match="no domain folder"):
        domain_list(folder / "notes", "beta")
    with pytest.raises(DataError, match="primary to 'beta'"):
        domain_list(folder / "beta")


PRIMARY = {"name": "a", "role": "primary", "root": "/a"}
AUXILIARY = {"name": "b", "role": "auxiliary", "root": "/b"}


def test_check_domains_puts_the_primary_first():
    assert names_in(check_domains([AUXILIARY, PRIMARY])) == ["a", "b"]
    assert domain_names([AUXILIARY, {**AUXILIARY, "name": "c"}, PRIMARY]) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "domains, message",
    [
        ([], "0 domains are primary"),
        ([AUXILIARY], "0 domains are primary"),
        ([PRIMARY, {**PRIMARY, "name": "c"}], "2 domains are primary: a, c"),
        ([PRIMARY, AUXILIARY, AUXILIARY], "'b' is listed more than once"),
        ([PRIMARY, {**AUXILIARY, "role": "helper"}], r"domains\[1\].*'helper'.*auxiliary"),
        ([{**PRIMARY, "data_list": "x"}], "unknown key 'data_list'.*datalist"),
        ([{**PRIMARY, "labels": "no"}], "labels 'no' is not true or false"),
        ([{"name": "a", "role": "primary"}], "key 'root' is missing"),
        ([{**PRIMARY, "mpp": -1}], "mpp -1"),
        ([{**PRIMARY, "mpp": "40x"}], "mpp '40x'"),
    ],
)
def test_check_domains_says_what_is_wrong(domains, message):
    with pytest.raises(DataError, match=message):
        check_domains(domains)


def test_items_of_all_domains(folder):
    domains = domain_list(folder, "beta")
    items = load_items(domains, "training")
    assert [item["domain"] for item in items] == [0] * 4 + [1] * 4 + [2] * 14
    assert {item["domain_name"] for item in items} == {"beta", "alpha", "gamma"}
    assert items[0]["image"] == str(folder / "beta" / "images" / "img00.png")
    assert items[0]["label"] == str(folder / "beta" / "labels" / "img00.png")
    assert math.isnan(items[0]["mpp"]) and items[4]["mpp"] == 0.5
    assert [item["group"] for item in items[:4]] == ["beta/00", "beta/00", "beta/01", "beta/01"]
    assert len({item["group"] for item in items if item["domain"] == 2}) == 14, "without patients each image is a group"
    assert len(load_items(domains, "testing")) == 2 + 2 + 3, "Decathlon's 'test' is testing"
    default_collate([items[0], items[-1]])  # items of different domains share a batch


def test_mpp_of_the_domain_list_wins(folder):
    domains = [{"name": "alpha", "role": "primary", "root": str(folder / "alpha"), "mpp": 0.25}]
    assert {item["mpp"] for item in load_items(domains, "training")} == {0.25}


def test_plain_folders_with_parts(tmp_path):
    add_pairs(tmp_path / "d" / "training", ["a", "b"])
    add_pairs(tmp_path / "d" / "testing", ["c"])
    domains = domain_list(tmp_path)
    found = {part: [item["image"][-5:] for item in load_items(domains, part)] for part in ("training", "testing")}
    assert found == {"training": ["a.png", "b.png"], "testing": ["c.png"]}
    assert load_items(domains, "validation") == [], "training without a validation part is allowed"


@pytest.mark.parametrize("count, expected", [(1, (1, 0, 0)), (2, (1, 1, 0)), (4, (2, 1, 1)), (20, (14, 3, 3))])
def test_split_of_unsplit_folders(tmp_path, count, expected):
    names = [f"n{number:02d}" for number in range(count)]
    add_pairs(tmp_path / "here" / "d", names)
    add_pairs(tmp_path / "there" / "d", names)
    parts = {}
    for place in ("here", "there"):
        domains = domain_list(tmp_path / place)
        parts[place] = [
            [item["image"][-7:] for item in load_items(domains, part)] for part in ("training", "validation", "testing")
        ]
    assert tuple(map(len, parts["here"])) == expected
    assert sorted(sum(parts["here"], [])) == [f"{name}.png" for name in names], "every image is in exactly one part"
    assert parts["here"] == parts["there"], "the split depends on the file names alone"


def test_images_and_labels_without_partner(tmp_path):
    add_pairs(tmp_path / "d", ["a", "b", "c"])
    (tmp_path / "d" / "labels" / "b.png").unlink()
    with pytest.raises(DataError, match="images/b.png: no label"):
        domain_list(tmp_path) and load_items(domain_list(tmp_path), "training")
    add_pairs(tmp_path / "d", ["b"])
    (tmp_path / "d" / "images" / "c.png").unlink()
    with pytest.raises(DataError, match="labels/c.png: no image"):
        load_items(domain_list(tmp_path), "training")
    add_pairs(tmp_path / "d", ["c"])
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "d" / "images" / "a.bmp")
    with pytest.raises(DataError, match="same name"):
        load_items(domain_list(tmp_path), "training")


def test_other_files_in_plain_folders_are_passed_over(tmp_path):
    add_pairs(tmp_path / "d", ["a"])
    (tmp_path / "d" / "images" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "d" / "images" / "._a.png").write_bytes(b"x")
    assert len(load_items(domain_list(tmp_path), "training")) == 1


def test_listed_files_that_are_missing_are_named(folder):
    (folder / "beta" / "labels" / "img01.png").unlink()
    with pytest.raises(DataError, match="beta/labels/img01.png: the file is listed but missing"):
        load_items(domain_list(folder, "beta"), "training")


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "cannot be read as JSON"),
        ("[]", "JSON object"),
        ('{"train": []}', "no part of the data is listed"),
        ('{"training": {}}', "'training' is not a list"),
        ('{"training": [{"image": "images/img00.png"}]}', "lacks an image or a label"),
        ('{"training": ["images/img00.png"]}', "lacks an image or a label"),
    ],
)
def test_broken_datalists(folder, content, message):
    (folder / "beta" / "split.json").write_text(content)
    with pytest.raises(DataError, match=f"split.json.*{message}"):
        load_items([{"name": "b", "role": "primary", "root": str(folder / "beta")}], "training")


def test_an_image_in_two_parts_is_a_leak(folder):
    path = folder / "beta" / "split.json"
    split = json.loads(path.read_text())
    split["testing"].append(split["training"][0])
    path.write_text(json.dumps(split))
    with pytest.raises(DataError, match="img00.png is in training and testing"):
        load_items(domain_list(folder, "beta", []), "training")


def test_domain_without_training_items_is_named(folder):
    with pytest.raises(DataError, match="'only_tests' has no training item"):
        load_items(domain_list(folder, "beta", ["only_tests"]), "training")
    assert len(load_items(domain_list(folder, "beta", ["only_tests"]), "testing")) == 2 + 3


def test_missing_root(folder):
    domains = [{**PRIMARY, "root": str(folder / "gone")}]
    with pytest.raises(DataError, match="gone: the folder of domain 'a'"):
        load_items(domains, "training")


def test_limit_groups_keeps_whole_patients_of_the_primary(folder):
    domains = domain_list(folder, "beta", ["alpha"])
    items = load_items(domains, "training", limit_groups=1)
    assert [item["group"] for item in items if item["domain"] == 0] == ["beta/00", "beta/00"]
    assert sum(item["domain"] == 1 for item in items) == 4, "auxiliary domains are not limited"
    assert load_items(domains, "testing", limit_groups=1) == load_items(domains, "testing")
    with pytest.raises(ValueError, match="limit_groups"):
        load_items(domains, "training", limit_groups=0)


def test_unknown_split(folder):
    with pytest.raises(ValueError, match="'test'"):
        load_items(domain_list(folder, "beta"), "test")


def test_real_counts_and_patients(real_data):
    sets = {entry["name"]: entry for entry in json.loads((real_data / "datasets.json").read_text())["datasets"]}
    domains = domain_list(real_data, "tnbc")
    assert set(domain_names(domains)) == set(sets)
    for part in ("training", "validation", "testing"):
        items = load_items(domains, part)
        for name, entry in sets.items():
            assert sum(item["domain_name"] == name for item in items) == entry["splits"][part]["images"]
    groups = {
        part: {item["group"] for item in load_items(domains, part) if item["domain_name"] != "dsb2018_fluo"}
        for part in ("training", "testing")
    }
    assert not groups["training"] & groups["testing"], "no patient or field in both parts"
    limited = load_items(domains, "training", limit_groups=2)
    assert {item["group"] for item in limited if item["domain"] == 0} == {"tnbc/01", "tnbc/02"}

    def drawn(draw: int, count: int) -> set:
        items = load_items(domains, "training", limit_groups=count, limit_draw=draw)
        return {item["group"] for item in items if item["domain"] == 0}

    assert all(drawn(draw, 1) < drawn(draw, 3) for draw in range(6)), "more are the same ones and others"
    assert len({frozenset(drawn(draw, 2)) for draw in range(6)}) > 2


def test_a_datalist_may_be_given_in_place_of_its_file(folder):
    entries = json.loads((folder / "beta" / "split.json").read_text())
    written = {"name": "b", "role": "primary", "root": str(folder / "beta")}
    given = {**written, "datalist": {key: value for key, value in entries.items() if key != "testing"}}
    for split in ("training", "validation"):
        assert load_items([given], split) == load_items([{**written, "datalist": "split.json"}], split)
    assert load_items([given], "testing") == []
    given["datalist"]["training"][0]["mpp"] = 0.2
    mpps = [item["mpp"] for item in load_items([{**given, "mpp": 0.5}], "training")]
    assert mpps[0] == 0.2 and set(mpps[1:]) == {0.5}, "an entry's own mpp goes first"


def test_two_tiles_in_plain_folders_are_both_learned_from_where_a_part_of_each_is_held_out(tmp_path, caplog):
    def tiles(count: int, **held_out: float) -> list[int]:
        for name in ("images", "labels"):
            (tmp_path / "mine" / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                (tmp_path / "mine" / name / f"{number}.png").touch()
        domains = training_domains(domain_list(tmp_path, "mine"), "single", **held_out)
        return [len(load_items(domains, split)) for split in ("training", "validation", "testing")]

    assert tiles(2) == [1, 1, 0] and tiles(2, held_out=0.25) == [2, 0, 0] and not caplog.text
    assert tiles(4) == [2, 1, 1] and tiles(4, held_out=0.25) == [3, 0, 1], "what is for testing is never trained on"
    assert "1 of 4 images are left for testing; list them in split.json" in caplog.text


@pytest.mark.parametrize("listed", ["split.json", "folders of parts", "plain folders"])
def test_validation_parts_are_learned_from_on_request_and_testing_parts_never(tmp_path, listed):
    for name in ("images", "labels"):
        for part in ("training", "validation", "testing"):
            for number in range(2):
                path = {
                    "split.json": f"{name}/{part}{number}.png",
                    "folders of parts": f"{part}/{name}/{number}.png",
                    "plain folders": f"{name}/{part}{number}.png",
                }[listed]
                (tmp_path / "mine" / path).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / "mine" / path).touch()
    if listed == "split.json":
        parts = {
            part: [{key: f"{key}s/{part}{number}.png" for key in ("image", "label")} for number in range(2)]
            for part in ("training", "validation", "testing")
        }
        (tmp_path / "mine" / "split.json").write_text(json.dumps(parts))
    given = domain_list(tmp_path, "mine")
    before, after = (
        {
            split: {item["image"] for item in load_items(training_domains(given, "single", **more), split)}
            for split in ("training", "validation", "testing")
        }
        for more in ({}, {"train_on_validation": True})
    )
    assert before["validation"] and not after["validation"]
    assert after["training"] == before["training"] | before["validation"]
    assert after["testing"] == before["testing"]


def test_labelled_images_take_the_place_of_the_primary(folder):
    labelled = [{"image": str(folder / f"gamma/images/g{n}.png"), "label": str(folder / f"gamma/labels/g{n}.png")}
                for n in (1, 2)]  # fmt: skip
    domains = training_domains(domain_list(folder, "beta", "alpha"), "ama", labelled)
    assert names_in(domains) == ["labelled", "alpha"]
    items = load_items(domains, "training")
    assert [item["image"] for item in items if item["domain"] == 0] == [item["image"] for item in labelled]
    assert names_in(training_domains(None, "ama", labelled)) == ["labelled"]
    assert names_in(training_domains(domain_list(folder, "beta", "alpha"), "single")) == ["beta"]
    with pytest.raises(DataError, match="no image has a label yet"):
        training_domains(None, "ama", [])


def test_auxiliary_domains_alone(folder):
    assert [(d["name"], d["role"]) for d in auxiliary_domains(folder)] == [
        (name, "auxiliary") for name in ("alpha", "beta", "gamma")
    ]
    (alpha,) = auxiliary_domains(folder, "alpha")
    assert alpha["mpp"] == 0.5 and alpha["datalist"] == "dataset.json"
    with pytest.raises(DataError, match="no domain 'delta'.*alpha"):
        auxiliary_domains(folder, "alpha,delta")


def test_a_primary_without_an_image_in_the_split_is_an_error_where_images_are_required(folder):
    beta, alpha = domain_list(folder, "beta", "alpha")
    listed = json.loads((folder / "beta" / "split.json").read_text())
    (folder / "beta" / "split.json").write_text(json.dumps({"training": listed["training"]}))
    told = "beta: the primary has no image in the split 'testing'.*: training has 4, validation has 0, testing has 0"
    for domains in ([beta], [beta, alpha]):
        with pytest.raises(DataError, match=told):
            load_items(domains, "testing", required=True)
    assert {item["domain_name"] for item in load_items([beta, alpha], "testing")} == {"alpha"}


def test_a_domain_without_an_image_in_the_split_is_said(folder, caplog):
    beta, alpha = domain_list(folder, "beta", "alpha")
    items = load_items([beta, {**alpha, "datalist": {"training": []}}], "testing", required=True)
    assert {item["domain_name"] for item in items} == {"beta"}
    assert f"{folder / 'alpha'}: it has no image in the split 'testing' and is left out" in caplog.text
