"""
Which detections are debris: what do a smallest area, a smallest solidity, and both together cost and bring?

    python benchmarks/debris.py --dataset_dir DATA [--ckpt_path MODEL] [--split validation] [--half]

Segments once, without such a rule, and applies each to what was found, at the network's pixel size. Prints the change
of PQ, AJI and F1 (means over images) against a smallest area of 40 pixels alone, the detections removed, those of them
that match a true nucleus (IoU above .5), and that match one of less than 150 pixels. ``--half``: of halved images.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import torch
from halved import half_size
from machine import BUNDLE  # puts the bundle on the path
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from scripts.data.readers import read_image, read_label
from scripts.data.transforms import ToTargetMppd
from scripts.nuclei.measures import describe_nuclei
from scripts.nuclei.metrics import best_iou, instance_scores

BASE, TRULY_SMALL = 40, 150  # pixels
VALUES = (0.7, 0.75, 0.8, 0.85, 0.88, 0.9, 0.92, 0.94)
RULES = {  # values, and which detections stay
    "area (px)": ((20, 30, 40, 50, 60, 70, 80, 100, 120, 150), lambda d, a: d.area >= a),
    "solidity": (VALUES, lambda d, s: (d.area >= BASE) & (d.solidity >= s)),
    "solidity below 100 px": (VALUES, lambda d, s: (d.area >= BASE) & ((d.area >= 100) | (d.solidity >= s))),
}


def detections(root: Path, entry: dict, half: bool, model, network, inferer, to_instances) -> SimpleNamespace:
    """Of one image the detections at the size of its label, their measures, and the label."""
    image = torch.from_numpy(read_image(root / entry["image"]).astype(np.float32)).permute(2, 0, 1)
    true, mpp = read_label(root / entry["label"]), None
    if half:
        (image, true), mpp = half_size(image, true), 2 * model.mpp
    item = ToTargetMppd(model.mpp, keys=["image"])({"image": MetaTensor(image), "mpp": mpp})
    with torch.inference_mode():
        seen = to_instances({"pred": inferer(item["image"][None], network)[0]})["instances"]
    nuclei = describe_nuclei(np.asarray(seen[0]), np.ones(seen.shape[1:]), np.asarray(item["image"]))
    pred = torch.nn.functional.interpolate(seen[None].double(), true.shape, mode="nearest-exact")[0, 0].int().numpy()
    small = true * (np.bincount(true.ravel())[true] * (seen.numel() / true.size) < TRULY_SMALL)
    area, solidity = np.array([(n.area, n.solidity) for n in nuclei]).reshape(-1, 2).T
    # of halved images the last detections may have no pixel left
    iou, iou_small = (np.append(best_iou(pred, label), 0 * area)[: len(area)] for label in (true, small))
    return SimpleNamespace(pred=pred, true=true, area=area, solidity=solidity, matches=iou > 0.5, small=iou_small > 0.5)


def scores(images: list[SimpleNamespace], kept: list[np.ndarray]) -> np.ndarray:
    each = [instance_scores((np.arange(len(k) + 1) * np.append(0, k))[d.pred], d.true) for k, d in zip(kept, images)]
    return np.mean([[one[key] for key in ("pq", "aji", "f1_50")] for one in each], axis=0)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--dataset_dir", required=True, help="folder of domains with a split.json each")
    arguments.add_argument("--ckpt_path", default=str(BUNDLE / "models" / "model.pt"))
    arguments.add_argument("--split", default="validation")
    arguments.add_argument("--half", action="store_true")
    arguments.add_argument("--figure", default="debris.png")
    args = arguments.parse_args()
    parser = ConfigParser(ConfigParser.load_config_file(BUNDLE / "configs" / "inference.json"))
    parser.update({"bundle_root": str(BUNDLE), "ckpt_path": args.ckpt_path, "min_area": 1, "min_solidity": 0})
    model, network, inferer, finish = map(parser.get_parsed_content, ("model", "network", "inferer", "postprocessing"))
    figure, axes = plt.subplots(2, len(RULES), figsize=(11, 6), sharex="col", sharey="row", layout="constrained")
    for name in ("tnbc", "dsb2018_purple", "dsb2018_white", "monuseg"):
        root = Path(args.dataset_dir, name)
        entries = json.loads((root / "split.json").read_text())[args.split]
        images = [detections(root, one, args.half, model, network, inferer, finish.transforms[0]) for one in entries]
        matches, small = (np.concatenate([vars(d)[of] for d in images]) for of in ("matches", "small"))
        base = scores(images, before := [d.area >= BASE for d in images])
        print("{}: PQ {:.3f} AJI {:.3f} F1 {:.3f}".format(name, *base))
        for (kind, (values, rule)), (top, bottom) in zip(RULES.items(), axes.T):
            rows = []
            for value in values:
                kept = [rule(d, value) for d in images]
                gone = np.concatenate(before) & ~np.concatenate(kept)
                rows.append([value, *(scores(images, kept) - base), *(sum(gone & of) for of in (gone, matches, small))])
                print("  {} {:5} {:+.4f} {:+.4f} {:+.4f}  removed {:.0f}, {:.0f}, {:.0f}".format(kind, *rows[-1]))
            x, pq, *_, lost = np.array(rows).T
            top.plot(x, pq, ".-", label=name)
            bottom.plot(x, 100 * lost / max(small.sum(), 1), ".-")
            bottom.set_xlabel(f"smallest {kind}")
    axes[0, 0].set(ylabel="change of PQ", ylim=(-0.06, 0.03))
    axes[1, 0].set(ylabel=f"matched nuclei below {TRULY_SMALL} px\nthat are lost (%)", ylim=(-2, 60))
    axes[0, 0].legend(frameon=False)
    figure.savefig(args.figure, dpi=110)


if __name__ == "__main__":
    main()
