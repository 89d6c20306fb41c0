"""
Not speed: which score would rank images of domains that no training saw by how well they are segmented?

    python benchmarks/unseen.py --dataset_dir DATA --unseen DATA/monuseg:training,validation EXTERNAL [...]

Compares the scores of `inferring` with others that cost no encoding of their own. DATA has the model's training
domains, whose training images the others are fitted to; each further folder is an unseen domain, of which
`:split,split` takes a part. Prints Spearman's correlation with Dice over the images of each, their mean, weighted by
images, and by how much it is above that of `uncertainty`, with 95 % bootstrap intervals; a score that ranks well is
near -1.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from machine import BUNDLE, open_config
from scipy.stats import spearmanr

RESAMPLES = 1000
SHAPE = ("area", "perimeter", "eccentricity", "solidity", "circularity")
Score = Callable[[dict], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", required=True)
    parser.add_argument("--unseen", required=True, nargs="+")
    parser.add_argument("--ckpt_path", default=str(BUNDLE / "models" / "model.pt"))
    args = parser.parse_args()

    from scripts.networks.model_file import read_model_file
    from scripts.out_of_domain.reference import DomainReference

    reference = DomainReference.of_model(read_model_file(args.ckpt_path))
    look = Looker(args.ckpt_path, args.dataset_dir)
    known = [look(Path(args.dataset_dir, name), ["training"]) for name in reference.names]
    scores = {**given_scores(reference), **distances(known), **doubts(known, reference)}
    unseen = {}
    for each in args.unseen:
        folder, _, splits = each.partition(":")
        unseen[each] = look(Path(folder), splits.split(",") if splits else ["training", "validation", "testing"])
    dice = [np.array([image["dice"] for image in images]) for images in unseen.values()]
    for name, values in zip(unseen, dice):
        print(f"{name}: {len(values)} images, Dice {min(values):.2f} to {max(values):.2f}")
    for name, score in scores.items():
        values = [np.array([score(image) for image in images]) for images in unseen.values()]
        usual = [np.array([image["uncertainty"] for image in images]) for images in unseen.values()]
        each = "".join(f"{_rho(d, v):7.2f}" for d, v in zip(dice, values))
        mean, (low, high), (less, more) = _mean(dice, values, usual)
        print(f"{name:44}{each}   mean {mean:5.2f} [{low:5.2f}, {high:5.2f}]   above [{less:5.2f}, {more:5.2f}]")


class Looker:
    """What the network makes of images: once for all scores."""

    def __init__(self, ckpt_path: str, dataset_dir: str) -> None:
        options = {"dataset_dir": dataset_dir, "output_dir": "unused", "ckpt_path": ckpt_path}
        parser = open_config("inference", "inference", **options)
        self.network, self.inferer = (parser.get_parsed_content(name) for name in ("network", "inferer"))
        self.separate = parser.get_parsed_content("postprocessing").transforms[0]
        self.device = parser.get_parsed_content("device")
        self._seen: list[list[np.ndarray]] = []
        self.network.image_encoder.register_forward_hook(self._see)

    def __call__(self, root: Path, splits: list[str]) -> list[dict]:
        parts = json.loads((root / "split.json").read_text())
        return [self._look(root, entry) for split in splits for entry in parts.get(split, [])]

    def _see(self, encoder, inputs, features) -> None:
        from scripts.out_of_domain.reference import window_features

        strides = encoder.strides
        self._seen.append([
            window_features([feature, feature], [stride, stride]).flatten(0, 2).cpu().numpy()
            for feature, stride in zip(features, strides)
        ])  # fmt: skip

    def _look(self, root: Path, entry: dict) -> dict:
        import torch
        from scripts.data.readers import LoadNucleid
        from scripts.nuclei.measures import binary_entropy, describe_nuclei

        item = LoadNucleid()({name: str(root / entry[name]) for name in ("image", "label")})
        pixels, true = np.asarray(item["image"]), np.asarray(item["label"])[0] > 0
        self._seen.clear()
        with torch.inference_mode():
            image = torch.as_tensor(pixels).float()[None].to(self.device)
            logits = torch.as_tensor(self.inferer(image, self.network))[0].cpu()
        p = torch.sigmoid(logits[0]).numpy()
        instances = np.asarray(self.separate({"pred": logits, "mpp": None})["instances"])[0]
        found, count = instances > 0, max((instances > 0).sum(), 1)
        nuclei = describe_nuclei(instances, p, pixels)
        return {
            "dice": 2 * (found & true).sum() / max(found.sum() + true.sum(), 1),
            "layers": [np.concatenate(parts) for parts in zip(*self._seen)],
            "shapes": np.array([[getattr(nucleus, name) for name in SHAPE] for nucleus in nuclei]).reshape(-1, 5),
            "uncertainty": binary_entropy(p)[found].sum() / count,
            "expected": 2 * p[found].sum() / max(p.sum() + found.sum(), 1),
            "doubtful": ((p > 0.1) & (p < 0.9)).sum() / count,
        }


def given_scores(reference) -> dict[str, Score]:
    """What `inferring` tells."""
    import torch

    def score(image: dict):
        return reference.score(reference.distances(torch.as_tensor(image["layers"][-2])))

    return {
        "uncertainty": lambda image: image["uncertainty"],
        "out_of_domain": lambda image: score(image).out_of_domain,
        "domain_distance": lambda image: score(image).domain_distance,
    }


def distances(known: list[list[dict]]) -> dict[str, Score]:
    """Other distances from the training domains."""
    scores: dict[str, Score] = {}
    for layer, name in enumerate(("fine", "middle", "coarse")):
        windows = [np.concatenate([image["layers"][layer] for image in images]) for images in known]
        scores |= {f"{kind}, {name} features": score for kind, score in _of_layer(windows, layer).items()}
    del scores["Mahalanobis, middle features"]  # is domain_distance
    return {**scores, "shapes of nuclei, Mahalanobis": _shapes(known)}


def _of_layer(windows: list[np.ndarray], layer: int) -> dict[str, Score]:
    from sklearn.covariance import LedoitWolf
    from sklearn.decomposition import PCA

    every, means = np.concatenate(windows), np.stack([own.mean(0) for own in windows])
    mean, spread, parts = every.mean(0), every.std(0) + 1e-6, PCA(8).fit(every)
    centred = np.concatenate([own - own.mean(0) for own in windows])
    inner = LedoitWolf(assume_centered=True).fit(centred).precision_
    outer = LedoitWolf(assume_centered=True).fit(every - mean).precision_

    def squares(image: dict) -> np.ndarray:
        offset = image["layers"][layer][:, None] - means
        return np.einsum("nkc,cd,nkd->nk", offset, inner, offset)

    def ratio(image: dict) -> float:
        offset = image["layers"][layer] - mean
        whole = np.einsum("nc,cd,nd->n", offset, outer, offset)
        return (squares(image) - whole[:, None]).mean(0).min()

    def neighbours(image: dict) -> float:
        offset = (image["layers"][layer][:, None] - every) / spread
        return np.sort(np.sqrt((offset**2).sum(-1)), axis=1)[:, :5].mean()

    def components(image: dict) -> float:
        return (parts.transform(image["layers"][layer]) ** 2 / parts.explained_variance_).sum(1).mean()

    return {
        "Mahalanobis": lambda image: squares(image).mean(0).min(),
        "Mahalanobis in 8 components": components,
        "log-likelihood ratio": ratio,
        "five nearest windows": neighbours,
    }


def _shapes(known: list[list[dict]]) -> Score:
    def mean(image: dict) -> np.ndarray:
        shapes = image["shapes"].copy()
        shapes[:, :2] = np.log(shapes[:, :2])
        return shapes.mean(0)

    means = np.stack([mean(image) for images in known for image in images if len(image["shapes"])])
    precision = np.linalg.inv(np.cov(means.T))

    def score(image: dict) -> float:
        if not len(image["shapes"]):
            return np.inf
        offset = mean(image) - means.mean(0)
        return float(offset @ precision @ offset)

    return score


def doubts(known: list[list[dict]], reference) -> dict[str, Score]:
    """What the network says of itself, alone and with the distance, each counted in spreads over training images."""
    given = given_scores(reference)

    def in_spreads(score: Score) -> Score:
        values = np.array([score(image) for images in known for image in images])
        return lambda image: (score(image) - values.mean()) / values.std()

    uncertain = in_spreads(given["uncertainty"])
    far = in_spreads(lambda image: np.log(given["domain_distance"](image)))
    return {
        "uncertainty + distance / 4": lambda image: uncertain(image) + far(image) / 4,
        "uncertainty + distance": lambda image: uncertain(image) + far(image),
        "1 - expected Dice": lambda image: -image["expected"],
        "doubtful pixels / pixels found": lambda image: image["doubtful"],
    }


def _rho(dice: np.ndarray, values: np.ndarray) -> float:
    """0 where a score is the same for all: it ranks nothing."""
    if len(set(values)) < 2 or len(set(dice)) < 2:
        return 0.0
    return float(spearmanr(dice, values).statistic)


def _mean(
    dice: list[np.ndarray], values: list[np.ndarray], usual: list[np.ndarray]
) -> tuple[float, np.ndarray, np.ndarray]:
    """Mean correlation, its interval, and that of how much it is above the usual score's on the same images."""
    random, sizes = np.random.default_rng(0), [len(own) for own in dice]

    def mean(values: list[np.ndarray], chosen: list[np.ndarray]) -> float:
        return np.average([_rho(d[c], v[c]) for d, v, c in zip(dice, values, chosen)], weights=sizes)

    drawn = []
    for _ in range(RESAMPLES):
        chosen = [random.integers(0, size, size) for size in sizes]
        drawn.append((mean(values, chosen), mean(usual, chosen)))
    own, other = np.array(drawn).T
    return (
        mean(values, [np.arange(size) for size in sizes]),
        np.percentile(own, [2.5, 97.5]),
        np.percentile(own - other, [2.5, 97.5]),
    )


if __name__ == "__main__":
    main()
