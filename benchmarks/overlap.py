"""
How large tiles must be, and how much they must have in common: nuclei and time of an image in tiles and in one window.

    python benchmarks/overlap.py --dataset_dir DATA --domain monuseg [--sides 2000] [--tiles 1024:0.25 1536:0.125]

Images of a part are put side by side to squares of the given sides. Prints, for each tile size and overlap, the pixels
that the network sees for each of the image, its CPU time against the first one's in the same turn, F1 and AJI of the
label map against the one of a single window, and Dice and AJI against the labels.
"""

from __future__ import annotations

import argparse
import itertools
import time

import numpy as np
from machine import describe_machine, open_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", required=True)
    parser.add_argument("--domain", default="monuseg")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--sides", type=int, nargs="+", default=[2000])
    parser.add_argument("--tiles", nargs="+", default=["1024:0.25", "1024:0.125", "1536:0.125"], help="size:overlap")
    parser.add_argument("--limit", type=int, help="squares of each side")
    args = parser.parse_args()

    import torch
    from scripts.inference.tiling import TileInferer

    config = open_config(
        "evaluate", "inference", dataset_dir=args.dataset_dir, primary=args.domain, auxiliary="none", split=args.split
    )
    network, after, dataset = (config.get_parsed_content(key) for key in ("network", "postprocessing", "dataset"))
    network.eval()
    seen = []
    network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[-1] * inputs[0].shape[-2]))
    print(describe_machine())
    print(f"{'side':>6}{'tiles':>13}{'pixels':>8}{'time':>7}{'F1':>8}{'AJI':>8}{'Dice':>9}{'AJI':>8}{'nuclei':>8}")
    for side in args.sides:
        rows = {tiles: [] for tiles in (f"{-(-side // 32) * 32}:0", *args.tiles)}
        for item in itertools.islice(_squares(dataset, side), args.limit):
            maps = {}
            for tiles in rows:
                size, overlap = tiles.split(":")
                inferer = TileInferer(int(size), float(overlap), sw_batch_size=1)
                seen.clear()
                start = time.process_time()
                with torch.inference_mode():
                    logits = inferer(item["image"][None], network)[0]
                seconds = time.process_time() - start
                maps[tiles] = np.asarray(after.transforms[0]({**item, "pred": logits})["instances"])
                label = np.asarray(item["label"])[0]
                rows[tiles].append(
                    [sum(seen) / side**2, seconds, *_scores(maps[tiles][0], next(iter(maps.values()))[0], label)]
                )
        for tiles, values in rows.items():
            mean = np.mean(values, axis=0)
            against = np.median([own[1] / first[1] for own, first in zip(values, rows[args.tiles[0]])])
            print(f"{side:6}{tiles:>13}{mean[0]:8.2f}{against:7.2f}{mean[2]:8.4f}{mean[3]:8.4f}", end="")
            print(f"{mean[4]:9.4f}{mean[5]:8.4f}{int(sum(v[6] for v in values)):8}", flush=True)


def _squares(dataset, side: int):
    """Images of the part side by side, (3, side, side), with labels; as many as there are images for."""
    import torch

    items = [dataset[index] for index in range(len(dataset))]
    per_row = -(-side // min(min(item["image"].shape[1:]) for item in items))
    for first in range(0, len(items) - per_row**2 + 1, per_row**2):
        parts = items[first : first + per_row**2]
        small = min(min(part["image"].shape[1:]) for part in parts)
        image = torch.zeros(3, per_row * small, per_row * small)
        label = torch.zeros(1, per_row * small, per_row * small, dtype=torch.int32)
        for number, part in enumerate(parts):
            y, x = (small * place for place in divmod(number, per_row))
            ids = torch.as_tensor(np.asarray(part["label"][:, :small, :small]).astype(np.int32))
            image[:, y : y + small, x : x + small] = torch.as_tensor(np.asarray(part["image"][:, :small, :small]))
            label[:, y : y + small, x : x + small] = torch.where(ids > 0, ids + 100_000 * number, 0)
        yield {"image": image[:, :side, :side], "label": label[:, :side, :side]}


def _scores(own: np.ndarray, whole: np.ndarray, label: np.ndarray) -> list[float]:
    from scripts.nuclei.metrics import instance_scores, mask_scores

    same, true = instance_scores(own, whole), instance_scores(own, label)
    return [same["f1_50"], same["aji"], mask_scores(own > 0, label > 0)["dice"], true["aji"], true["n_pred"]]


if __name__ == "__main__":
    main()
