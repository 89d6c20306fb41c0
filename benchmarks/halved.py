"""
A domain as a scanner at half the magnification would give it: images and labels of half the size.

    python benchmarks/halved.py --dataset_dir DATA --domains tnbc monuseg --output_dir HALVED [--mpp 0.5]

Writes each domain, with its ``split.json``, into HALVED; images as means of pixels, labels by every second pixel, so
that neighbours stay apart. ``--mpp`` is written as the pixel size of every image; without it nobody knows the size and
the images are segmented as they are. A domain that is there already is left.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import machine  # noqa: F401 # puts the bundle on the path
import numpy as np
import torch
from scripts.data.readers import read_image, read_label
from skimage.io import imsave
from tqdm import tqdm


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--dataset_dir", type=Path, required=True, help="folder of domains with a split.json each")
    arguments.add_argument("--domains", nargs="+", default=["tnbc", "monuseg"])
    arguments.add_argument("--output_dir", type=Path, required=True)
    arguments.add_argument("--mpp", type=float, help="micrometres per pixel of what is written")
    args = arguments.parse_args()
    for name in args.domains:
        source, target = args.dataset_dir / name, args.output_dir / name
        if target.exists():
            print(f"{target}: there already")
            continue
        parts = json.loads((source / "split.json").read_text())
        for entry in tqdm([entry for part in parts.values() for entry in part], desc=name, unit="image"):
            halve(source, target, entry)
            if args.mpp:
                entry["mpp"] = args.mpp
        (target / "split.json").write_text(json.dumps(parts, indent=1))
        print(f"{target}: {', '.join(f'{len(part)} {key}' for key, part in parts.items())}")


def halve(source: Path, target: Path, entry: dict) -> None:
    """Write an image and its label at half the size; ``entry`` names the new files."""
    image = torch.tensor(read_image(source / entry["image"])).permute(2, 0, 1).float()
    half, label = half_size(image, read_label(source / entry["label"]))
    pixels = {"image": half.byte().permute(1, 2, 0).numpy(), "label": label.astype("uint16")}
    for key, values in pixels.items():
        entry[key] = str(Path(entry[key]).with_suffix(".png"))
        (target / entry[key]).parent.mkdir(parents=True, exist_ok=True)
        imsave(target / entry[key], values, check_contrast=False)


def half_size(image: torch.Tensor, label: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
    """(3, H, W) float and (H, W) -> whole numbers (3, H // 2, W // 2), means of pixels, and every second label."""
    label = label[1::2, 1::2]
    return torch.nn.functional.interpolate(image[None], label.shape, mode="bilinear", antialias=True)[0].round(), label


if __name__ == "__main__":
    main()
