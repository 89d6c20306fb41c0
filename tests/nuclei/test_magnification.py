from __future__ import annotations

import numpy as np
import pytest
from scripts.nuclei.magnification import ENOUGH_NUCLEI, enlarging_factor, fitting_factor


def squares(side: int, count: int = ENOUGH_NUCLEI) -> np.ndarray:
    """A map of so many square nuclei."""
    tile = np.pad(np.ones((side, side), np.int32), 2)
    row = np.concatenate([tile * (n + 1) for n in range(count)], axis=1)
    return row


@pytest.mark.parametrize("side, factor", [(20, None), (26, None), (16, None), (10, 2.0), (40, 0.5), (5, 4.0)])
def test_nuclei_of_another_size_tell_the_factor_that_would_fit(side, factor):
    found = fitting_factor(squares(side), {"a": 200.0, "b": 800.0})
    assert found == (factor if factor is None else pytest.approx(factor)), "known is the geometric mean, 20 x 20"


def test_nothing_is_said_of_few_nuclei_or_by_a_model_that_does_not_know():
    assert fitting_factor(squares(5, ENOUGH_NUCLEI - 1), {"a": 400.0}) is None
    assert fitting_factor(squares(5), None) is None and fitting_factor(squares(5), {}) is None
    assert fitting_factor(np.zeros((9, 9), np.int32), {"a": 400.0}) is None


@pytest.mark.parametrize("side, factor", [(20, None), (40, None), (18, None), (15, 4 / 3), (10, 2.0), (5, 2.0)])
def test_only_small_nuclei_are_enlarged_and_at_most_twofold(side, factor):
    found = enlarging_factor(squares(side), {"a": 400.0})
    assert found == (factor if factor is None else pytest.approx(factor))
    assert enlarging_factor(squares(side, ENOUGH_NUCLEI - 1), {"a": 400.0}) is None
