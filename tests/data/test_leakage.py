from __future__ import annotations

import json
import logging
import os
import time
import zlib

import numpy as np
import pytest
from archives import save
from PIL import Image
from scripts.data.domain_folders import domain_list
from scripts.data.leakage import check_leakage, find_leaks, from_text, hash_images, to_text
from scripts.data.similarity import near_duplicates, perceptual_hash
from scripts.errors import DataError


def domain(root, name, training, testing, patients=None):
    """A domain of pictures of noise, by seed; ``patients`` by seed."""
    listed = {"training": training, "validation": [], "testing": testing}
    for part, seeds in listed.items():
        for number, seed in enumerate(seeds):
            file = f"{part}_{number}_{seed}.png" if not isinstance(seed, str) else f"{seed}.png"
            image = picture(zlib.crc32(seed.encode()) if isinstance(seed, str) else seed)
            save(root / name / "images" / file, image)
            save(root / name / "labels" / file, np.zeros(image.shape[:2], np.uint8))
            entry = {"image": f"images/{file}", "label": f"labels/{file}"}
            seeds[number] = entry | ({"patient": patients[seed]} if patients else {})
    (root / name / "split.json").write_text(json.dumps(listed))


def picture(seed):
    from scipy import ndimage

    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(128, 128)), 4)
    return np.repeat((128 + noise * 400).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def test_domains_that_share_nothing_are_trained_on(tmp_path):
    domain(tmp_path, "a", [1, 2, 3], [4, 5])
    domain(tmp_path, "b", [6, 7, 8], [9])
    assert check_leakage(domain_list(tmp_path, "a")) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image,
        lambda image: image.transpose(Image.Transpose.ROTATE_90),
        lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        lambda image: image.resize((96, 96)),
        lambda image: image.point(lambda value: value * 0.8 + 20),
    ],
)
def test_near_duplicates_are_refused(tmp_path, change, caplog):
    domain(tmp_path, "a", [1, 2, 3], [4, 5])
    domain(tmp_path, "b", [6, 7], [])
    path = tmp_path / "b" / "images" / "training_1_7.png"
    change(Image.fromarray(picture(4))).save(path)
    with pytest.raises(DataError, match="testing_0_4.png.*training_1_7.*leakage to 'allow'"):
        check_leakage(domain_list(tmp_path, "a"))
    with caplog.at_level(logging.WARNING):
        (leak,) = check_leakage(domain_list(tmp_path, "a"), "allow")
    assert leak["training"] == str(path) and "bits differ" in leak["why"] and "too good" in caplog.text
    assert check_leakage(domain_list(tmp_path, "a", "none")) == [], "the domain is not trained on"


def test_a_test_image_that_is_learned_from_without_its_label_is_told_as_transductive(tmp_path, caplog):
    """As a teacher does with the training images of an unlabelled primary."""
    domain(tmp_path, "mine", [1, 2, 3], [3, 4])
    domain(tmp_path, "theirs", [5, 6], [])
    domains = domain_list(tmp_path, "mine", "theirs", "mine")
    told = "1 test image of the primary is among the training images without labels.*testing_0_3.*fitted to the"
    with pytest.raises(DataError, match=f"{told}.*transductive.*set leakage to 'allow'") as error:
        check_leakage(domains)
    assert "too good" not in str(error.value)
    assert len(check_leakage(domains, "allow")) == 1 and "transductive" in caplog.text
    save(tmp_path / "theirs" / "images" / "training_0_5.png", picture(4))
    with pytest.raises(DataError, match="known to the training: testing_1_4.*too good"):
        check_leakage(domains)


def test_the_same_patient_is_refused(tmp_path):
    domain(tmp_path, "a", [1, 2], ["TCGA-A7-A13E-01Z-00-DX1"])
    domain(tmp_path, "b", ["TCGA-A7-A13E-01A-01-TS1"], [])
    domain(tmp_path, "c", [11, 12], [13], {11: "01", 12: "02", 13: "02"})
    domain(tmp_path, "d", [21, 22], [23], {21: "01", 22: "02", 23: "03"})
    with pytest.raises(DataError, match="TCGA-A7-A13E"):
        check_leakage(domain_list(tmp_path, "a", "b"))
    assert check_leakage(domain_list(tmp_path, "a", "d")) == []
    with pytest.raises(DataError, match="c/02"):
        check_leakage(domain_list(tmp_path, "c", "none"))
    assert check_leakage(domain_list(tmp_path, "d", "c")) == [], "patient 03 of one set is not that of another"


def test_hashes_are_kept_and_made_anew_when_a_file_changes(tmp_path):
    paths = [str(save(tmp_path / f"{seed}.png", picture(seed))) for seed in range(3)]
    first, _ = hash_images(paths, tmp_path / "cache.json")
    again, _ = hash_images(paths, tmp_path / "cache.json")
    assert all((first[path] == again[path]).all() for path in paths)
    save(tmp_path / "0.png", picture(50))
    assert (hash_images(paths, tmp_path / "cache.json")[0][paths[0]] != first[paths[0]]).any()
    (tmp_path / "cache.json").write_text("{broken")
    assert (hash_images(paths, tmp_path / "cache.json")[0][paths[1]] == first[paths[1]]).all()
    assert (tmp_path / "cache.json").read_text() == "{broken", "what is no cache of ours is left alone"
    assert (from_text(to_text(first[paths[2]])) == first[paths[2]]).all() and from_text(to_text(None)) is None


def test_a_file_that_could_not_be_read_is_read_again(tmp_path):
    path, cache = tmp_path / "a.png", tmp_path / "cache.json"
    save(path, picture(1))
    whole, about = path.read_bytes(), path.stat()
    for broken in (whole[:100], b""):
        path.write_bytes(broken)
        hashes, unread = hash_images([str(path)], cache)
        assert hashes == {} and list(unread) == [str(path)]
    # as if the disk had been away: the same file, of the same size and time
    cache.write_text(json.dumps({f"{path} {about.st_size} {about.st_mtime_ns}": None}))
    path.write_bytes(whole)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    hashes, unread = hash_images([str(path)], cache)
    assert not unread and (hashes[str(path)] == perceptual_hash(picture(1))).all()


@pytest.mark.parametrize("file", ["a/images/testing_0_4.png", "b/images/training_1_7.png"])
def test_what_cannot_be_compared_is_no_pass(tmp_path, caplog, file):
    domain(tmp_path, "a", [1, 2, 3], [4, 5])
    domain(tmp_path, "b", [6, 7], [])
    (tmp_path / file).write_bytes(b"damaged")
    for _ in range(2):  # not only the first time
        with pytest.raises(DataError, match=f"1 images cannot be compared .*{file}: .*set leakage to 'allow'"):
            check_leakage(domain_list(tmp_path, "a"), cache=tmp_path / "cache.json")
    assert check_leakage(domain_list(tmp_path, "a"), "allow", tmp_path / "cache.json") == []
    assert "cannot be compared" in caplog.text


def test_pictures_of_one_colour_are_like_nothing():
    blank = perceptual_hash(np.full((50, 50, 3), 200, np.uint8))
    assert blank is None and near_duplicates([blank], [blank]) == []


def test_a_primary_without_tests_or_with_missing_ones(tmp_path, caplog):
    domain(tmp_path, "a", [1, 2], [])
    assert check_leakage(domain_list(tmp_path, "a")) == []
    domain(tmp_path, "b", [3], [4])
    (tmp_path / "b" / "images" / "testing_0_4.png").unlink()
    with pytest.raises(DataError, match="testing_0_4.png: test images cannot be compared.*leakage to 'allow'"):
        check_leakage(domain_list(tmp_path, "b"))
    with caplog.at_level(logging.WARNING):
        assert check_leakage(domain_list(tmp_path, "b"), "allow") == []
    assert "cannot be compared" in caplog.text
    with pytest.raises(ValueError, match="'refuse' or 'allow'"):
        check_leakage(domain_list(tmp_path, "a"), "maybe")


def test_the_synthetic_domains_pass(synthetic):
    for primary in ("synthetic_pink", "synthetic_dark", "synthetic_blurred"):
        assert check_leakage(domain_list(synthetic, primary)) == []


@pytest.mark.slow
def test_real_domains_pass_and_quickly(real_data, tmp_path):
    for primary in ("tnbc", "monuseg", "dsb2018_purple"):
        start = time.process_time()
        assert check_leakage(domain_list(real_data, primary), cache=tmp_path / "cache.json") == []
        print(primary, f"{time.process_time() - start:.1f} s of CPU")
    # training on MoNuSeg's test slides and testing on them
    items = [
        {"image": str(p), "group": f"x/{p.stem}"} for p in sorted((real_data / "monuseg" / "images").iterdir())[:3]
    ]
    hashes, _ = hash_images([item["image"] for item in items])
    assert len(find_leaks(items, items, hashes)) == 3


def test_known_samples_differ():
    hashes = [perceptual_hash(picture(seed)) for seed in range(30)]
    assert near_duplicates(hashes[:15], hashes[15:]) == []
