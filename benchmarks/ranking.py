"""
Not speed: do the scores of `inferring` rank images of a domain that no training saw by how well they are segmented?

    python benchmarks/ranking.py --dataset_dir DATA [--domain monuseg] [--split validation] [--ckpt_path MODEL]

Prints Spearman's correlation with Dice, over images, of `uncertainty`, `out_of_domain` and `domain_distance`; a score
that ranks well is near -1.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
from machine import open_config
from PIL import Image
from scipy.stats import spearmanr

SCORES = ("uncertainty", "out_of_domain", "domain_distance")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", required=True)
    parser.add_argument("--domain", default="monuseg")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--ckpt_path", help="weights other than the bundle's")
    args = parser.parse_args()

    from scripts.data.readers import LoadNucleid

    root = Path(args.dataset_dir, args.domain)
    entries = json.loads((root / "split.json").read_text())[args.split]
    with tempfile.TemporaryDirectory() as folder:
        images, out = Path(folder, "images"), Path(folder, "out")
        images.mkdir()
        for number, entry in enumerate(entries):
            shutil.copy(root / entry["image"], images / f"{number}{Path(entry['image']).suffix}")
        options = {"dataset_dir": str(images), "output_dir": str(out), "outputs": ["mask"]}
        options |= {"ckpt_path": args.ckpt_path} if args.ckpt_path else {}
        open_config("inference", "inference", **options).get_parsed_content("inferring")
        with (out / "summary.csv").open(newline="") as file:
            rows = {int(Path(row["file"]).stem): row for row in csv.DictReader(file)}
        dice = []
        for number, entry in enumerate(entries):
            found = np.asarray(Image.open(out / f"{number}_mask.png")) > 0
            item = LoadNucleid()({name: str(root / entry[name]) for name in ("image", "label")})
            true = np.asarray(item["label"])[0] > 0
            dice.append(2 * (found & true).sum() / (found.sum() + true.sum()))
    print(f"{args.domain}, {args.split}: {len(dice)} images, Dice {min(dice):.2f} to {max(dice):.2f}")
    for score in [score for score in SCORES if score in rows[0]]:  # an old model knows no domains
        values = [float(rows[number][score]) for number in range(len(dice))]
        print(f"{score:16}{spearmanr(dice, values).statistic:6.2f}   {min(values):.3f} to {max(values):.3f}")


if __name__ == "__main__":
    main()
