"""
Not speed: which score of a patch tells within an image where the network is wrong, so that labelling it teaches most?

    python benchmarks/patches.py --dataset_dir DATA [--domains monuseg,tnbc] [--split validation] [--side 256]

Images are cut into squares. For each score it prints, as means over images: Spearman's correlation with 1 - Dice within
an image, and the Dice of the patch with the highest score beside that of all patches (a random choice) and of the
worst; and Spearman's correlation over images, of the means of their patches.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from machine import open_config
from scipy.special import expit
from scipy.stats import spearmanr

LEAST = 0.02  # share of a patch that must be nuclei, annotated or found: of less, Dice says nothing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", required=True)
    parser.add_argument("--domains", default="monuseg,tnbc")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--ckpt_path", help="weights other than the bundle's")
    args = parser.parse_args()

    from scripts.data.readers import LoadNucleid
    from scripts.data.transforms import ToTargetMppd

    options = {"ckpt_path": args.ckpt_path} if args.ckpt_path else {}
    config = open_config("inference", "inference", **options)
    network, tiles = (config.get_parsed_content(name) for name in ("network", "inferer"))
    # logits, and with several views the spread of the probability as the last channel
    inferers = {"": tiles, **{f"{views} views": open_inferer(views) for views in (2, 4)}}
    resize = ToTargetMppd(config.get_parsed_content("network_mpp"), keys=["image", "label"])
    for domain in args.domains.split(","):
        root = Path(args.dataset_dir, domain)
        about = root / "dataset.json"
        mpp = json.loads(about.read_text()).get("mpp") if about.is_file() else None
        images = []
        for entry in json.loads((root / "split.json").read_text())[args.split]:
            item = {name: str(root / entry[name]) for name in ("image", "label")}
            item = resize(LoadNucleid()({**item, "mpp": entry.get("mpp", mpp)}))
            image = torch.as_tensor(item["image"])[None]
            with torch.inference_mode():
                answers = {views: inferer(image, network)[0].numpy() for views, inferer in inferers.items()}
            patches = patches_of(answers, np.asarray(item["label"])[0], args.side)
            if len(patches) > 2:
                images.append(patches)
        report(f"{domain}, {args.split}, {args.side} pixels", images)


def open_inferer(views: int):
    return open_config("inference", "inference", views=views).get_parsed_content("inferer")


def patches_of(answers: dict[str, np.ndarray], label: np.ndarray, side: int) -> list[dict[str, float]]:
    """Dice and scores of each square."""
    from scripts.nuclei.measures import binary_entropy

    patches = []
    for top in range(0, label.shape[0] - side + 1, side):
        for left in range(0, label.shape[1] - side + 1, side):
            box = slice(top, top + side), slice(left, left + side)
            p, true = expit(answers[""][0][box].astype(np.float64)), label[box] > 0
            found, entropy = p > 0.5, binary_entropy(p)
            if max(found.mean(), true.mean()) < LEAST:
                continue
            patch = {"dice": 2 * (found & true).sum() / (found.sum() + true.sum()), "entropy": entropy.mean()}
            patch["entropy of nuclei"] = entropy[found].mean() if found.any() else 1.0
            patch["entropy / nuclei"] = entropy.mean() / max(p.mean(), LEAST)
            for views in ("2 views", "4 views"):
                spread, mean = answers[views][-1][box], expit(answers[views][0][box]).mean()
                patch[f"spread, {views}"] = spread.mean()
                patch[f"spread / nuclei, {views}"] = spread.mean() / max(mean, LEAST)
            patches.append(patch)
    return patches


def report(title: str, images: list[list[dict[str, float]]]) -> None:
    if not images:
        print(f"{title}: no image has three patches with nuclei; lower --side")
        return
    dice = [[patch["dice"] for patch in patches] for patches in images]
    count, mean, worst = sum(map(len, dice)), np.mean([np.mean(d) for d in dice]), np.mean([min(d) for d in dice])
    print(f"{title}: {len(images)} images, {count} patches, Dice of any {mean:.3f}, of the worst {worst:.3f}")
    for score in list(images[0][0])[1:]:
        values = [[patch[score] for patch in patches] for patches in images]
        rank = np.nanmean([spearmanr(v, 1 - np.array(d)).statistic for v, d in zip(values, dice)])
        chosen = np.mean([d[int(np.argmax(v))] for v, d in zip(values, dice)])
        over = spearmanr([np.mean(v) for v in values], [1 - np.mean(d) for d in dice]).statistic
        print(f"  {score:26} Spearman {rank:5.2f}   Dice of the chosen {chosen:.3f}   over images {over:5.2f}")


if __name__ == "__main__":
    main()
