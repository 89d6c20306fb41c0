"""What a run of `inferring` says of its images at the end."""

from __future__ import annotations

import logging

import pytest
from scripts.inference.remarks import remarks

WARNING, INFO = logging.WARNING, logging.INFO


def row(**about) -> dict:
    return {"nuclei": 9, "mpp_from": "given", "scale_to_try": None, **about}


def test_nothing_is_said_where_there_is_nothing_to_say():
    assert remarks([], 0.25) == [] == remarks([row(), row(out_of_domain=0.95), row(nuclei=0)], 0.25)
    assert remarks([row(mpp_from="unknown")], None) == [], "a model that knows no pixel size takes all as they are"


@pytest.mark.parametrize(
    "rows, level, told",
    [
        ([row(nuclei=0)], WARNING, "no nucleus was found in any of 1 image"),
        ([row(), row(out_of_domain=0.96)], INFO,
         "1 of 2 images is unlike those of training (out_of_domain above 0.95): nuclei may be wrong there"),
        ([row(out_of_domain=1.0)] * 2, WARNING,
         "2 of 2 images are unlike those of training (out_of_domain above 0.95): nuclei may be wrong there"),
        ([row(), row(scale_to_try=2.0)], INFO,
         "in 1 of 2 images nuclei are of another size than the model knows (see scale_to_try)"),
        ([row(scale_to_try=2.0)], WARNING,
         "in 1 of 1 image nuclei are of another size than the model knows (see scale_to_try)"),
        ([row(), row(mpp_from="unknown")], INFO,
         "1 of 2 images does not state its pixel size and was taken as it is, as if of 0.25 um a pixel "
         "(--mpp tells it)"),
    ],
)  # fmt: skip
def test_one_sentence_for_each_thing_and_a_warning_where_most_are_concerned(rows, level, told):
    assert remarks(rows, 0.25) == [(level, told)]


def test_another_magnification_is_proposed_where_none_is_known():
    said = remarks([row(mpp_from="unknown", scale_to_try=2.0)] * 2, 0.25)
    assert said[1] == (WARNING, (
        "in 2 of 2 images nuclei are of another size than the model knows "
        "(see scale_to_try; is it another magnification? --mpp 0.5 would fit them)"
    ))  # fmt: skip


@pytest.mark.parametrize(
    "guesses, told",
    [
        ([0.27], "By the nuclei it is 0.27 um"),
        ([None], "In 1 image nuclei are too few to tell"),
        (
            [0.24, None, 0.26, None],
            "By the nuclei it is 0.25 um (median of 2 images); in 2 images nuclei are too few to",
        ),
    ],
)
def test_an_estimate_that_changed_nothing_says_what_it_found(guesses, told):
    ((level, said),) = remarks([row(mpp_from="unknown", mpp_estimate=guess) for guess in guesses], 0.25)
    assert level == INFO and told in said
    assert "--mpp estimate changed nothing there, for it enlarges only where nuclei are clearly smaller" in said
    assert not remarks([row(mpp_from="estimated", mpp_estimate=0.5)], 0.25), "there it changed something"
