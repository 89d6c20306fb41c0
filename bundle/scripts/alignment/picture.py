from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from scripts.alignment.measure import WindowSamples
from sklearn.preprocessing import StandardScaler

__all__ = ["draw", "principal_components"]

# Okabe & Ito's colours that colour-blind readers can tell apart, without the yellow, too pale on white; shapes besides
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
SHAPES = ("*", "o", "s", "^", "D", "v", "P", "X")


def draw(samples: WindowSamples, names: Sequence[str], titles: dict[str, str], sentence: str) -> Figure:
    """
    Windows in the plane of the first two principal components, a panel for each kind of features.

    Args:
        samples: two or more windows.
        names: of the domains by index; the primary is drawn large, outlined and last.
        titles: of the panels, by field of the samples.
        sentence: below the title.
    """
    figure = Figure(figsize=(5.2 * len(titles), 5.4), layout="constrained")
    for axis, (kind, title) in zip(figure.subplots(1, len(titles), squeeze=False)[0], titles.items()):
        points, shares = principal_components(getattr(samples, kind))
        for index in reversed(range(len(names))):
            x, y = points[samples.domain == index].T
            style = {"s": 130, "edgecolors": "black", "linewidths": 0.8} if index == 0 else {"s": 26, "alpha": 0.75}
            colour, shape = COLOURS[index % len(COLOURS)], SHAPES[index % len(SHAPES)]
            label = f"{names[index]} (primary)" if index == 0 else names[index]
            axis.scatter(x, y, color=colour, marker=shape, label=label, zorder=3 if index == 0 else 2, **style)
        axis.set(title=title, xticks=[], yticks=[])
        axis.set_xlabel(f"first principal component ({100 * shares[0]:.0f} % of variance)")
        axis.set_ylabel(f"second ({100 * shares[1]:.0f} %)")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(textwrap.fill(sentence, 52 * len(titles)), fontsize=10)
    return figure


def principal_components(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Standardised features of all regions on their first two principal components, (N, 2), and the variance each has.

    Args:
        vectors: (N, R, C), N at least 2.
    """
    standard = StandardScaler().fit_transform(vectors.reshape(len(vectors), -1))
    u, s, _ = np.linalg.svd(standard, full_matrices=False)
    shares = s**2 / max(float((s**2).sum()), 1e-12)
    return u[:, :2] * s[:2], shares[:2]
