"""How well a linear classifier tells domains apart, by patients it has not seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

__all__ = ["Accuracy", "a_distance", "balanced_accuracy", "deal_groups", "probe"]

FOLDS, REPEATS, DRAWS = 5, 3, 2000


@dataclass(frozen=True)
class Accuracy:
    """
    A balanced accuracy and its interval.

    ``mean``, ``low`` and ``high`` are fractions; ``draws`` (DRAWS,) are those of the bootstrap, in the same order of
    resampled groups for all accuracies on the same samples and seed, so their differences are paired.
    """

    mean: float
    low: float
    high: float
    draws: np.ndarray


def probe(
    vectors: np.ndarray,
    domain: np.ndarray,
    group: np.ndarray,
    seed: int = 0,
    folds: int = FOLDS,
    repeats: int = REPEATS,
) -> tuple[np.ndarray, np.ndarray]:
    """
    How often a fresh linear probe recognises the domain of samples whose group it has never seen.

    Cross-validated logistic regression on standardised features, one for each region; all samples of a group (patient,
    field) are in the same fold. A sample is judged by the mean of its regions' probabilities, as the discriminator
    of the training does. Repeated with other folds, because few groups make the choice of folds matter.

    Args:
        vectors: (N, R, C) features of R regions.
        domain: (N,) domain indices, two or more.
        group: (N,) names of groups, none in more than one domain.
        seed: of the folds.
        folds: at most this many; never more than the domain with the fewest groups has groups.
        repeats: number of cross-validations.

    Returns:
        the share of the repeats in which each sample was judged right, (N,), and the same by each region alone (N, R).

    Raises:
        ValueError: when there is one domain, or a domain has one group.
    """
    present, domain = np.unique(domain, return_inverse=True)
    fewest = min(len(np.unique(group[domain == d])) for d in range(len(present)))
    if len(present) < 2 or fewest < 2:
        raise ValueError("a probe needs two domains or more, with two groups or more in each")
    rng = np.random.default_rng(seed)
    right = np.zeros(len(domain))
    right_by_region = np.zeros(vectors.shape[:2])
    for _ in range(repeats):
        fold = deal_groups(domain, group, min(folds, fewest), rng)
        probabilities = np.zeros((*vectors.shape[:2], len(present)))
        for held_out in range(fold.max() + 1):
            seen, unseen = fold != held_out, fold == held_out
            for region in range(vectors.shape[1]):
                # weighted, so that a domain with more windows is not the safe guess
                model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=500))
                model.fit(vectors[seen, region], domain[seen])
                probabilities[unseen, region] = model.predict_proba(vectors[unseen, region])
        right += probabilities.mean(axis=1).argmax(axis=-1) == domain
        right_by_region += probabilities.argmax(axis=-1) == domain[:, None]
    return right / repeats, right_by_region / repeats


def deal_groups(domain: np.ndarray, group: np.ndarray, folds: int, rng: np.random.Generator) -> np.ndarray:
    """
    Fold of each sample, (N,): the groups of each domain are shuffled and dealt out in turn.

    So every part to learn from and every part to judge has every domain, which scikit-learn's StratifiedGroupKFold
    does not promise where groups are few.
    """
    fold = np.zeros(len(domain), int)
    for d in np.unique(domain):
        for position, name in enumerate(rng.permutation(np.unique(group[domain == d]))):
            fold[(domain == d) & (group == name)] = position % folds
    return fold


def balanced_accuracy(
    right: np.ndarray, domain: np.ndarray, group: np.ndarray, seed: int = 0, draws: int = DRAWS
) -> Accuracy:
    """
    Mean over domains of the mean over their groups of the share of samples judged right, with a 95 % interval.

    The interval is the percentile bootstrap over groups, resampled within each domain (Efron & Tibshirani 1993),
    because samples of one group are not independent. It leaves out what other probes would judge, and with few groups
    it is too narrow.

    Args:
        right: (N,) in [0, 1], see :func:`probe`.
        domain, group: (N,).
        seed, draws: of the bootstrap.
    """
    rng = np.random.default_rng(seed)
    means, resampled = [], []
    for d in np.unique(domain):
        names = np.unique(group[domain == d])
        shares = np.array([right[(domain == d) & (group == name)].mean() for name in names])
        means.append(shares.mean())
        resampled.append(shares[rng.integers(len(shares), size=(draws, len(shares)))].mean(axis=1))
    drawn = np.mean(resampled, axis=0)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Accuracy(float(np.mean(means)), float(low), float(high), drawn)


def a_distance(accuracy: float) -> float:
    """
    Proxy A-distance of two domains, ``2 (1 - 2 error)``: 0 where they cannot be told apart, 2 where always.

    Ben-David et al., Analysis of representations for domain adaptation (NIPS 2006); A theory of learning from
    different domains (Machine Learning 79, 2010). The error is the balanced one; worse than guessing counts as 0.
    """
    return max(0.0, 2 * (1 - 2 * (1 - accuracy)))
