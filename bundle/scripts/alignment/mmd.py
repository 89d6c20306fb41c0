from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import pdist, squareform

__all__ = ["Discrepancy", "group_discrepancy", "rbf_kernel", "squared_mmd"]

PERMUTATIONS = 2000


@dataclass(frozen=True)
class Discrepancy:
    """Squared maximum mean discrepancy, its permutation p-value, and the smallest p-value so few groups can give."""

    mmd2: float
    p: float
    smallest_p: float


def group_discrepancy(vectors: np.ndarray, second: np.ndarray, group: np.ndarray, seed: int = 0) -> Discrepancy:
    """
    Maximum mean discrepancy of two domains whose samples come in groups.

    The RBF kernel is averaged over regions, then over each pair of groups (a kernel between the groups' mean
    embeddings), and Gretton et al.'s unbiased estimate and permutation test run on groups, every group counting alike.
    Taking samples instead would count patients as differences of domains: two windows of a patient resemble each
    other. With one sample in each group and one region it is the published estimate.

    Args:
        vectors: (N, R, C) features.
        second: (N,) bool, True in the second domain.
        group: (N,) names of groups, none in both domains; two or more in each.
        seed: of the permutations, where there are too many to try all.
    """
    names, member = np.unique(group, return_inverse=True)
    kernel = np.mean([rbf_kernel(vectors[:, region]) for region in range(vectors.shape[1])], axis=0)
    weights = np.eye(len(names))[:, member]
    weights /= weights.sum(axis=1, keepdims=True)
    between = weights @ kernel @ weights.T
    labels = np.array([second[member == n][0] for n in range(len(names))], bool)

    observed = squared_mmd(between, labels)
    ways = math.comb(len(labels), int(labels.sum()))
    if ways <= PERMUTATIONS:  # all of them, the observed one among them
        relabelled = np.zeros((ways, len(labels)), bool)
        for row, chosen in zip(relabelled, itertools.combinations(range(len(labels)), int(labels.sum()))):
            row[list(chosen)] = True
        extreme, tried = 0, ways
        smallest = (2 if 2 * labels.sum() == len(labels) else 1) / ways  # halves of equal size can be swapped
    else:  # a random part of them, and the observed one: Phipson & Smyth 2010, p-values should never be zero
        relabelled = np.random.default_rng(seed).permuted(np.tile(labels, (PERMUTATIONS, 1)), axis=1)
        extreme, tried = 1, PERMUTATIONS + 1
        smallest = 1 / tried
    extreme += sum(squared_mmd(between, row) >= observed - 1e-12 for row in relabelled)
    return Discrepancy(observed, extreme / tried, smallest)


def squared_mmd(kernel: np.ndarray, second: np.ndarray) -> float:
    """
    Unbiased estimate of the squared MMD: it is 0 on average for equal distributions, so it can be negative.

    Gretton et al., A kernel two-sample test (JMLR 13, 2012), equation 3.

    Args:
        kernel: (N, N) between all samples.
        second: (N,) bool, True in the second sample; at least two in each.
    """
    first = ~second
    m, n = first.sum(), second.sum()
    within = [
        (kernel[np.ix_(part, part)].sum() - np.diag(kernel)[part].sum()) / (size * (size - 1))
        for part, size in ((first, m), (second, n))
    ]
    return float(sum(within) - 2 * kernel[np.ix_(first, second)].mean())


def rbf_kernel(vectors: np.ndarray) -> np.ndarray:
    """
    ``exp(-|x - y|^2 / (2 s^2))``, (N, N), of standardised (N, C) features, s the median distance of two samples.

    The median heuristic of Gretton et al. 2012, section 8.
    """
    spread = vectors.std(axis=0)
    standard = (vectors - vectors.mean(axis=0)) / np.where(spread > 0, spread, 1)
    squared = squareform(pdist(standard, "sqeuclidean"))
    median = np.median(squared[np.triu_indices(len(squared), 1)])
    return np.exp(-squared / (2 * (median or 1.0)))
