from __future__ import annotations

import logging

import numpy as np
import pytest
from fakes import open_verb
from PIL import Image
from scipy import ndimage
from scripts.data.label_checks import check_labels, look_at_label
from scripts.data.readers import read_label
from scripts.errors import DataError, root_cause

LABEL = np.zeros((160, 160), np.int32)
for index in range(25):
    LABEL[index // 5 * 30 + 5 : index // 5 * 30 + 20, index % 5 * 30 + 5 : index % 5 * 30 + 17] = index + 1


def domain(tmp_path, *labels: np.ndarray) -> list[dict]:
    entries = []
    for number, label in enumerate(labels):
        Image.fromarray(np.zeros((160, 160, 3), np.uint8)).save(tmp_path / f"i{number}.png")
        Image.fromarray(label.astype(np.uint8)).save(tmp_path / f"l{number}.png")
        entries.append({"image": f"i{number}.png", "label": f"l{number}.png"})
    return [{"name": "a", "role": "primary", "root": str(tmp_path), "datalist": {"training": entries}}]


WRONG = {
    "inverted": (LABEL == 0) * 255,
    "classes": np.where(LABEL > 0, LABEL % 3 + 1, 0),
    "antialiased": ndimage.gaussian_filter((LABEL > 0) * 255.0, 1).astype(np.uint8),
    "with borders": (LABEL > 0) + (ndimage.binary_erosion(LABEL > 0)).astype(np.uint8),
    "too few bits": LABEL % 12 + (LABEL % 12 == 0) * (LABEL > 0),
    "region": np.full((160, 160), 7),
}


@pytest.mark.parametrize("kind", WRONG)
def test_training_refuses_what_is_no_map_of_nuclei(tmp_path, kind):
    with pytest.raises(DataError, match=r"l1\.png"):
        check_labels(domain(tmp_path, LABEL, WRONG[kind]))


def test_evaluating_refuses_them_too_before_it_works(bundle_root, tmp_path):
    domains = domain(tmp_path, LABEL, WRONG["classes"])
    domains[0]["datalist"] = {"testing": domains[0]["datalist"]["training"]}
    with pytest.raises(Exception) as error:  # noqa: B017 which class MONAI wraps it in does not matter
        open_verb(bundle_root, "evaluate", None, domains=domains, output_dir=str(tmp_path / "out")).run()
    assert str(root_cause(error.value)).startswith(f"{tmp_path / 'l1.png'}: 3 ids lie in 25 pieces")
    assert not (tmp_path / "out").exists()
    domains[0]["datalist"] = {"testing": domains[0]["datalist"]["testing"][:1]}
    Image.fromarray(np.zeros((160, 160), np.uint8)).save(tmp_path / "l0.png")
    check_labels(domains, ["testing"])


def test_maps_of_nuclei_pass_and_empty_ones_are_told(tmp_path, caplog):
    apart = LABEL.copy()
    apart[8:10] = 0  # the upper five nuclei are in two pieces
    with caplog.at_level(logging.WARNING):
        check_labels(domain(tmp_path, LABEL, apart, (LABEL > 0) * 255, LABEL * 0))
    assert "l3.png: 1 of 4 labels have no nucleus" in caplog.text
    with pytest.raises(DataError, match="none of 2 labels has a nucleus"):
        check_labels(domain(tmp_path, LABEL * 0, LABEL * 0))


def test_a_label_that_may_be_inverted_is_told(tmp_path, caplog):
    """A mask of the background, where nuclei cover so much that its largest part is not the whole image."""
    inverted = LABEL == 0
    inverted[::9] = 0
    check_labels(domain(tmp_path, LABEL, inverted))
    assert "l1.png: nuclei cover 73 % of it, and more than half of 1 of 2 labels" in caplog.text
    caplog.clear()
    check_labels(domain(tmp_path, LABEL, LABEL))
    assert not caplog.text


def test_real_labels_pass(real_data):
    for path in sorted(real_data.glob("*/labels/*.png")):
        assert not look_at_label(read_label(path)).wrong, path


def test_a_held_out_part_without_a_nucleus_judges_nothing(tmp_path, caplog):
    left = np.where(np.arange(160) < 110, LABEL, 0)
    check_labels(domain(tmp_path, left, LABEL), held_out=0.25)
    assert "l0.png: the part that is held out, at its right or lower end, has no nucleus, as in 1 of 2" in caplog.text
    check_labels(domain(tmp_path, left, left))
    with pytest.raises(DataError, match=r"l0\.png: the part that is held out, .* so nothing can be judged by it"):
        check_labels(domain(tmp_path, left, left), held_out=0.25)
