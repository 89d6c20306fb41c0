"""
What bfloat16 costs and saves: time, Dice, AJI and number of nuclei against float32, with evaluate.json as it is.

    python benchmarks/precision.py --dataset_dir DATA --domains tnbc monuseg [--split validation] [--limit 5]

Each image is segmented with each precision in turn. Prints, for each domain, the mean of the scores, the difference to
float32, of the mean and of the image that lost most, and the ratio of the CPU time of the network alone.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict

import numpy as np
from machine import describe_machine, open_config

PRECISIONS = {
    "float32": {"amp": False},
    "encoder bfloat16": {"amp": False, "encoder_precision": "bfloat16"},
    "bfloat16": {"amp": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", required=True, help="folder of the domains' folders")
    parser.add_argument("--domains", nargs="+", required=True, help="names of domains")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--ckpt_path", help="weights other than the bundle's")
    parser.add_argument("--limit", type=int, help="images of a domain")
    args = parser.parse_args()

    print(describe_machine())
    weights = {"ckpt_path": args.ckpt_path} if args.ckpt_path else {}
    print(
        f"{'':14}{'':18}{'Dice':>8}{'AJI':>8}{'nuclei':>8}{'Dice -':>9}{'worst':>8}{'AJI -':>9}{'worst':>8}{'time':>7}"
    )
    for domain in args.domains:
        configs = {
            name: open_config(
                "evaluate", "inference", dataset_dir=args.dataset_dir, primary=domain, auxiliary="none",
                split=args.split, **weights, **given,
            )
            for name, given in PRECISIONS.items()
        }  # fmt: skip
        scores = _scores(configs, args.limit)
        first = scores["float32"]
        for name, own in scores.items():
            dice, aji = (own[:, i] - first[:, i] for i in range(2))
            print(
                f"{domain:14}{name:18}{own[:, 0].mean():8.4f}{own[:, 1].mean():8.4f}{int(own[:, 2].sum()):8}"
                f"{dice.mean():+9.4f}{dice.min():+8.4f}{aji.mean():+9.4f}{aji.min():+8.4f}"
                f"{np.median(own[:, 3] / first[:, 3]):7.2f}",
                flush=True,
            )


def _scores(configs: dict, limit: int | None) -> dict[str, np.ndarray]:
    """Dice, AJI, nuclei and the network's CPU seconds (images, 4) of each precision."""
    import torch
    from scripts.nuclei.metrics import image_metrics

    names = ("network", "inferer", "postprocessing", "device")
    parts = {name: [config.get_parsed_content(key) for key in names] for name, config in configs.items()}
    dataset = next(iter(configs.values())).get_parsed_content("dataset")
    rows = defaultdict(list)
    for index in range(len(dataset) if limit is None else min(limit, len(dataset))):
        item = dataset[index]
        for turn in range(2 if index == 0 else 1):  # the first warms up
            for name, (network, inferer, after, device) in parts.items():
                network.eval()
                image = item["image"].to(device)
                start = time.process_time()
                with torch.no_grad():
                    logits = inferer(image[None], network)[0]
                seconds = time.process_time() - start
                if index == 0 and turn == 0:
                    continue
                found = after({**item, "pred": logits})
                true = np.asarray(found["label"])
                got = image_metrics(found["mask"], true > 0, found["instances"], true)
                rows[name].append([got["dice"], got["aji"], got["n_pred"], seconds])
    return {name: np.array(values, dtype=float) for name, values in rows.items()}


if __name__ == "__main__":
    main()
