"""
What bfloat16, half the resolution, or another model costs and saves: time, Dice, AJI, F1 and nuclei, with evaluate.json
as it is.

    python benchmarks/precision.py --dataset_dir DATA --domains tnbc monuseg [--split validation] [--limit 5]
        [--half | --openvino | --against MODEL]

Each image is segmented with each precision in turn. Prints, for each domain, the mean of the scores, the difference to
float32, of the mean and of the image that lost most, and the ratio of the CPU time of the network alone.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from machine import describe_machine, open_config

PRECISIONS = {
    "float32": {"amp": False},
    "encoder bfloat16": {"amp": False, "encoder_precision": "bfloat16"},
    "bfloat16": {"amp": True},
}
OPENVINO = {
    "float32": {"amp": False},
    "bfloat16": {"amp": True},
    "OpenVINO float32": {"amp": False, "runtime": "openvino"},
    "OpenVINO bfloat16": {"runtime": "openvino"},
}
HALF = {"float32": {"amp": False}, "0.5 um": {"amp": False, "target_mpp": 0.5, "min_area": 10}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", required=True, help="folder of the domains' folders")
    parser.add_argument("--domains", nargs="+", required=True, help="names of domains")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--ckpt_path", help="weights other than the bundle's")
    parser.add_argument("--limit", type=int, help="images of a domain")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--half", action="store_true", help="0.5 um a pixel instead of bfloat16; images are of 0.25")
    other.add_argument("--openvino", action="store_true", help="PyTorch and OpenVINO, each in both precisions")
    other.add_argument("--against", help="a second model file, such as one that sees images at half resolution")
    args = parser.parse_args()

    print(describe_machine())
    weights = {"ckpt_path": args.ckpt_path} if args.ckpt_path else {}
    if args.against:
        against = str(Path(args.against).resolve())
        settings = {"float32": {"amp": False}, "the other": {"amp": False, "ckpt_path": against}}
    else:
        settings = HALF if args.half else OPENVINO if args.openvino else PRECISIONS
    print(f"{'':33}{'Dice':>8}{'AJI':>8}{'F1':>8}{'nuclei':>8}", end="")
    print(f"{'Dice -':>9}{'worst':>8}{'AJI -':>9}{'worst':>8}{'time':>7}")
    for domain in args.domains:
        configs = {
            name: open_config(
                "evaluate", "inference", domains=_domain(args, domain), split=args.split, **{**weights, **given}
            )
            for name, given in settings.items()
        }
        scores = _scores(configs, args.limit)
        first = scores["float32"]
        for name, own in scores.items():
            dice, aji = (own[:, i] - first[:, i] for i in range(2))
            mean, nuclei = own.mean(axis=0), int(own[:, 2].sum())
            print(f"{domain:15}{name:18}{mean[0]:8.4f}{mean[1]:8.4f}{mean[3]:8.4f}{nuclei:8}", end="")
            print(f"{dice.mean():+9.4f}{dice.min():+8.4f}{aji.mean():+9.4f}{aji.min():+8.4f}", end="")
            print(f"{np.median(own[:, 4] / first[:, 4]):7.2f}", flush=True)


def _domain(args: argparse.Namespace, name: str) -> list[dict]:
    root = str(Path(args.dataset_dir, name).resolve())
    return [{"name": name, "role": "primary", "root": root, "datalist": "split.json", "mpp": 0.25}]


def _scores(configs: dict, limit: int | None) -> dict[str, np.ndarray]:
    """Dice, AJI, nuclei, F1 and the network's CPU seconds (images, 5) of each setting."""
    import torch
    from scripts.nuclei.metrics import image_metrics

    names = ("network", "inferer", "postprocessing", "device", "dataset")
    parts = {name: [config.get_parsed_content(key) for key in names] for name, config in configs.items()}
    images = len(parts["float32"][-1])
    rows = defaultdict(list)
    for index in range(images if limit is None else min(limit, images)):
        for turn in range(2 if index == 0 else 1):  # the first warms up
            for name, (network, inferer, after, device, dataset) in parts.items():
                network.eval()
                item = dataset[index]
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
                rows[name].append([got["dice"], got["aji"], got["n_pred"], got["f1_50"], seconds])
    return {name: np.array(values, dtype=float) for name, values in rows.items()}


if __name__ == "__main__":
    main()
