"""The alignment report's figures and its verdict, on constructed features."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts.alignment.measure import WindowSamples, measure
from scripts.alignment.mmd import group_discrepancy, rbf_kernel, squared_mmd
from scripts.alignment.picture import principal_components
from scripts.alignment.probe import Accuracy, a_distance, balanced_accuracy, deal_groups, probe
from scripts.alignment.verdict import judge

NAMES = ["mine", "theirs", "others"]


def _windows(rng, domains=3, groups=10, each=4, channels=12):
    """Domain and group of windows, and features (N, 2, C) of one distribution for all."""
    domain = np.repeat(np.arange(domains), groups * each)
    group = np.array([f"{NAMES[d]}/{n // each % groups}" for n, d in enumerate(domain)])
    return domain, group, rng.normal(size=(len(domain), 2, channels))


def _of_patients(rng, group, shape, strength=4.0):
    """What all windows of a group share."""
    effects = {name: strength * rng.normal(size=shape) for name in np.unique(group)}
    return np.stack([effects[name] for name in group])


# --- probe


def test_a_probe_cannot_tell_equal_distributions_apart():
    means = []
    for seed in range(4):
        domain, group, vectors = _windows(np.random.default_rng(seed))
        right, by_region = probe(vectors, domain, group, seed)
        accuracy = balanced_accuracy(right, domain, group)
        assert accuracy.low < accuracy.mean < accuracy.high
        means += [accuracy.mean, balanced_accuracy(by_region[:, 1], domain, group).mean]
    assert np.mean(means) == pytest.approx(1 / 3, abs=0.06)


def test_a_probe_tells_separate_distributions_apart():
    domain, group, vectors = _windows(np.random.default_rng(0))
    vectors[:, 1, 0] += 30 * domain  # in one region, on one channel
    right, by_region = probe(vectors, domain, group)
    assert balanced_accuracy(right, domain, group).mean > 0.9
    assert by_region[:, 1].mean() == 1 and by_region[:, 0].mean() < 0.6


def test_recognising_patients_does_not_help_a_probe():
    """Features that tell patients apart perfectly and say nothing of domains, however many windows a patient has."""
    kept_apart, leaking = [], []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        domain, group, vectors = _windows(rng, groups=8, each=6, channels=40)
        vectors = 0.1 * vectors + _of_patients(rng, group, vectors.shape[1:])
        right, _ = probe(vectors, domain, group, seed)
        kept_apart.append(balanced_accuracy(right, domain, group).mean)
        right, _ = probe(vectors, domain, np.arange(len(group)).astype(str), seed)
        leaking.append(right.mean())
    assert min(leaking) > 0.95, "windows of a patient on both sides: what must not happen"
    assert np.mean(kept_apart) < 1 / 3 + 0.08


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(3, 9), min_size=2, max_size=4), st.integers(2, 3), st.integers(0, 99))
def test_folds_keep_groups_whole_and_hold_every_domain(counts, folds, seed):
    domain = np.concatenate([[d] * (2 * count) for d, count in enumerate(counts)])
    group = np.array([f"{d}/{n // 2}" for d, count in enumerate(counts) for n in range(2 * count)])
    fold = deal_groups(domain, group, folds, np.random.default_rng(seed))
    assert all(len(set(fold[group == name])) == 1 for name in group)
    assert all(set(fold[domain == d]) == set(range(folds)) for d in range(len(counts)))


def test_domains_and_patients_count_alike():
    domain = np.array([0] * 10 + [1] * 4)
    group = np.array(["a"] * 9 + ["b"] + ["c", "c", "d", "d"])
    right = np.array([1.0] * 9 + [0] + [1, 0, 1, 1])
    accuracy = balanced_accuracy(right, domain, group)
    assert accuracy.mean == pytest.approx(np.mean([np.mean([1, 0]), np.mean([0.5, 1])]))
    again = balanced_accuracy(1 - right, domain, group)
    assert accuracy.draws + again.draws == pytest.approx(np.ones(len(again.draws))), "draws are paired"


def test_the_interval_is_that_of_groups_not_of_windows():
    rng = np.random.default_rng(0)
    domain, group, _ = _windows(rng, domains=2, groups=8, each=50)
    right = np.array([float(name[-1] in "0246") for name in group])  # whole patients right or wrong
    by_group = balanced_accuracy(right, domain, group)
    by_window = balanced_accuracy(right, domain, np.arange(len(group)).astype(str))
    assert by_group.high - by_group.low > 5 * (by_window.high - by_window.low)


def test_a_probe_needs_two_groups_in_each_domain():
    domain, group = np.array([0, 0, 1, 1]), np.array(["a", "b", "c", "c"])
    with pytest.raises(ValueError, match="two groups"):
        probe(np.zeros((4, 1, 2)), domain, group)


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_a_distance_grows_with_accuracy_from_0_to_2(a, b):
    assert 0 <= a_distance(a) <= 2
    assert a > b or a_distance(a) <= a_distance(b)
    assert (a_distance(0.5), a_distance(0.75), a_distance(1.0)) == (0, 1, 2)


# --- MMD


def test_the_kernel_is_rbf_of_the_median_distance():
    x = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])  # standardised: the corners of [-1, 1]^2
    kernel = rbf_kernel(x)
    assert kernel[0, 1] == pytest.approx(np.exp(-4 / (2 * 4)))  # four sides of 2, two diagonals: the median is 2
    assert kernel[0, 3] == pytest.approx(np.exp(-8 / (2 * 4)))
    assert np.diag(kernel) == pytest.approx(np.ones(4))


def test_the_estimate_is_grettons():
    rng = np.random.default_rng(0)
    kernel = rbf_kernel(rng.normal(size=(7, 3)))
    second = np.array([0, 1, 0, 1, 1, 0, 1], bool)
    x, y = np.flatnonzero(~second), np.flatnonzero(second)
    expected = np.mean([kernel[i, j] for i in x for j in x if i != j])
    expected += np.mean([kernel[i, j] for i in y for j in y if i != j])
    expected -= 2 * np.mean([kernel[i, j] for i in x for j in y])
    assert squared_mmd(kernel, np.stack([second, ~second])) == pytest.approx([expected, expected])
    alone = group_discrepancy(rng.normal(size=(7, 1, 3)), second, np.arange(7).astype(str))
    assert alone.smallest_p == pytest.approx(1 / 35), "seven groups, four of them in the second domain"


@pytest.mark.parametrize("patients", [False, True])
def test_mmd_of_equal_distributions_is_zero_and_its_p_uniform(patients):
    """Also where windows of a patient resemble each other, which a test between windows takes for a difference."""
    found, of_windows = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        domain, group, vectors = _windows(rng, domains=2, groups=6, each=5)
        if patients:
            vectors += _of_patients(rng, group, vectors.shape[1:], strength=2.0)
        found.append(group_discrepancy(vectors, domain > 0, group))
        if seed < 5:
            of_windows.append(group_discrepancy(vectors, domain > 0, np.arange(len(group)).astype(str)).p)
    mmd2 = np.array([f.mmd2 for f in found])
    assert abs(mmd2.mean()) < 3 * mmd2.std() / np.sqrt(len(mmd2)), "unbiased"
    p = np.array([f.p for f in found])
    assert 0.35 < p.mean() < 0.65 and (p < 0.1).mean() < 0.25
    assert (max(of_windows) < 0.01) == patients


@pytest.mark.parametrize("groups, smallest", [(4, 2 / 70), (12, 1 / 2001)])
def test_mmd_of_separate_distributions_is_large(groups, smallest):
    domain, group, vectors = _windows(np.random.default_rng(0), domains=2, groups=groups)
    vectors[domain == 1] += 5
    found = group_discrepancy(vectors, domain > 0, group)
    assert found.mmd2 > 0.5 and found.p == found.smallest_p == pytest.approx(smallest)


# --- verdict


def _accuracy(mean, width, seed=0):
    draws = mean + width * np.random.default_rng(seed).normal(size=2000)
    low, high = np.percentile(draws, [2.5, 97.5])
    return Accuracy(mean, low, high, draws)


@pytest.mark.parametrize(
    "frozen, aligned, outcome, words",
    [
        ((0.97, 0.01), (0.95, 0.02), "not_aligned", "as easy to tell apart as the frozen ones.*.95.*.97.*chance .25"),
        ((0.80, 0.01), (0.95, 0.01), "not_aligned", "even easier"),
        ((0.97, 0.01), (0.27, 0.03), "aligned", "no longer"),
        ((0.97, 0.01), (0.32, 0.02), "aligned", "barely"),
        ((0.97, 0.01), (0.60, 0.03), "partly_aligned", "49 % .* is left.*in part"),
        ((0.97, 0.002), (0.94, 0.005), "hardly_aligned", "hardly aligned"),
        ((0.27, 0.02), (0.26, 0.02), "nothing_to_align", "nothing to align"),
        ((0.45, 0.25), (0.30, 0.25), "undetermined", "Too few patients or fields to tell whether"),
        ((0.90, 0.03), (0.70, 0.20), "undetermined", "Too few patients or fields to tell whether"),
        ((0.97, 0.01), (0.55, 0.19), "undetermined", "to tell by how much"),
    ],
)
def test_the_verdict_follows_the_intervals(frozen, aligned, outcome, words):
    verdict = judge(_accuracy(*frozen), _accuracy(*aligned, seed=1), chance=0.25)
    assert verdict.outcome == outcome, verdict.sentence
    assert re.search(words, verdict.sentence)


def test_what_random_layers_do_as_well_is_not_the_trainings_doing():
    frozen, aligned = _accuracy(0.97, 0.01), _accuracy(0.60, 0.03, seed=1)
    before = judge(frozen, aligned, 0.25, control=_accuracy(0.62, 0.03, seed=2))
    assert before.outcome == "no_better_than_control" and "control's (.62" in before.sentence
    apart = judge(frozen, aligned, 0.25, control=_accuracy(0.95, 0.01, seed=2))
    assert apart.outcome == "partly_aligned" and "so it is training that did it" in apart.sentence


def test_a_network_that_does_not_segment_gets_no_verdict():
    accuracies = _accuracy(0.97, 0.01), _accuracy(0.27, 0.03, seed=1)
    assert judge(*accuracies, 0.25, dice=0.6).outcome == "aligned"
    verdict = judge(*accuracies, 0.25, dice=0.49)
    assert verdict.outcome == "does_not_segment"
    assert verdict.sentence.startswith("No verdict on the alignment: the network does not segment (Dice .49 on ")


def _samples(rng, frozen_shift, aligned_shift, groups=10):
    domain, group, frozen = _windows(rng, groups=groups)
    aligned = rng.normal(size=frozen.shape)
    for vectors, shift in ((frozen, frozen_shift), (aligned, aligned_shift)):
        for d in range(3):
            vectors[domain == d, :, d] += shift
    return WindowSamples(frozen, aligned, rng.normal(size=(len(domain), 6)), domain, group)


def test_measured_features_give_the_verdict():
    rng = np.random.default_rng(3)
    not_aligned = measure(_samples(rng, 8, 8), NAMES)
    assert not_aligned["verdict"]["outcome"] == "not_aligned"
    assert not_aligned["overall"]["aligned"]["accuracy"] == 1 and not_aligned["chance"] == pytest.approx(1 / 3)
    assert not_aligned["overall"]["aligned"]["a_distance"] == 2
    aligned = measure(_samples(rng, 8, 0), NAMES)
    assert aligned["verdict"]["outcome"] == "aligned"
    pair = aligned["pairs"]["theirs"]
    assert pair["frozen"]["mmd_p"] == pair["frozen"]["mmd_smallest_p"] < 0.01 < pair["aligned"]["mmd_p"]
    assert pair["frozen"]["a_distance"] == 2 and pair["aligned"]["a_distance"] < 1
    shortcut = aligned["overall"]["image_statistics"]["all"]
    assert shortcut["low"] < 1 / 3 + 0.05 and shortcut["accuracy"] < 0.5


def test_a_shortcut_is_found_where_it_is():
    samples = _samples(np.random.default_rng(0), 0, 0)
    samples.statistics[:, 1] += 10 * samples.domain  # the size of nuclei
    found = measure(samples, NAMES)["overall"]["image_statistics"]
    assert found["scale_and_density"]["accuracy"] > 0.95 and found["all"]["accuracy"] > 0.9
    assert found["colour"]["accuracy"] < 0.5


def test_a_domain_of_too_few_patients_is_left_out_and_named():
    rng = np.random.default_rng(0)
    samples = _samples(rng, 8, 8)
    few = ~((samples.domain == 2) & (samples.group > "others/1"))
    fewer = WindowSamples(*(getattr(samples, f)[few] for f in ("frozen", "aligned", "statistics", "domain", "group")))
    found = measure(fewer, NAMES)
    assert list(found["pairs"]) == ["theirs"] and found["chance"] == 0.5
    assert "others: 2 patients or fields with nuclei, of 3 needed" in found["verdict"]["sentence"]
    assert "overall" not in measure(fewer.of([0, 2]), NAMES)
    without_primary = measure(samples.of([1, 2]), NAMES)
    assert without_primary["verdict"]["outcome"] == "undetermined"
    assert (
        without_primary["verdict"]["sentence"].startswith("Too little data") and "mine" in without_primary["left_out"]
    )


def test_principal_components_are_those_of_the_standardised_features():
    vectors = np.random.default_rng(0).normal(size=(30, 2, 4))
    vectors[:, 0, 0] = 1000 * vectors[:, 1, 3]  # two channels of very different scale say the same
    points, shares = principal_components(vectors)
    assert abs(np.corrcoef(points[:, 0], vectors[:, 1, 3])[0, 1]) > 0.75
    flat = vectors.reshape(30, -1)
    values = np.linalg.eigvalsh(np.corrcoef(flat.T))[::-1]
    assert shares == pytest.approx(values[:2] / values.sum())
