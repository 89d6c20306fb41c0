"""The kernel distance of domains, MMD²."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import pdist, squareform
from sklearn.preprocessing import StandardScaler

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

    observed = float(squared_mmd(between, labels[None])[0])
    ways = math.comb(len(labels), int(labels.sum()))
    if ways <= PERMUTATIONS:  # all of them, the observed one among them
        relabelled = np.zeros((ways, len(labels)), bool)
        for row, chosen in zip(relabelled, itertools.combinations(range(len(labels)), int(labels.sum()))):
            row[list(chosen)] = True
        extreme, tried = 0, ways
        smallest = (2 if 2 * labels.sum() == len(labels) else 1) / ways  # halves of equal size can be swapped
    else:  # a random part of them, and the observed one: Phipson & Smyth 2010, p-values should never be zero
        order = np.random.default_rng(seed).random((PERMUTATIONS, len(labels))).argsort(axis=1)
        relabelled = labels[order]
        extreme, tried = 1, PERMUTATIONS + 1
        smallest = 1 / tried
    extreme += int((squared_mmd(between, relabelled) >= observed - 1e-12).sum())
    return Discrepancy(observed, extreme / tried, smallest)


def squared_mmd(kernel: np.ndarray, second: np.ndarray) -> np.ndarray:
    """
    Unbiased estimate of the squared MMD: it is 0 on average for equal distributions, so it can be negative.

    Gretton et al., A kernel two-sample test (JMLR 13, 2012), equation 3.

    Args:
        kernel: (N, N) between all samples.
        second: (P, N) bool, P ways to part them in two, True in the second; at least two in each.

    Returns:
        (P,).
    """
    y = second.astype(float)
    x = 1 - y
    m, n = x.sum(axis=1), y.sum(axis=1)
    diagonal = np.diag(kernel)
    of_x, of_y, of_both = (((a @ kernel) * b).sum(axis=1) for a, b in ((x, x), (y, y), (x, y)))
    return (of_x - x @ diagonal) / (m * (m - 1)) + (of_y - y @ diagonal) / (n * (n - 1)) - 2 * of_both / (m * n)


def rbf_kernel(vectors: np.ndarray) -> np.ndarray:
    """
    ``exp(-|x - y|^2 / (2 s^2))``, (N, N), of standardised (N, C) features, s the median distance of two samples.

    The median heuristic of Gretton et al. 2012, section 8.
    """
    squared = squareform(pdist(StandardScaler().fit_transform(vectors), "sqeuclidean"))
    median = np.median(squared[np.triu_indices(len(squared), 1)])
    return np.exp(-squared / (2 * (median or 1.0)))
