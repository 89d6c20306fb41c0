"""
How time and memory grow with the image and with the slide, from file to files, with the configs as they are.

    python benchmarks/growth.py --images FOLDER [--image_sides 1000 2000 4000 8000] [--slide_sides 4096 8192 16384]

Images and slides of the given sides (0.25 um a pixel) are put together from squares of a folder of real images. Each
runs in a process of its own. Adds a row to growth.csv beside this file for each, in the place of an earlier one of that
size, prints the table and draws growth.png: CPU seconds of user and system for each megapixel, and peak memory.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from machine import describe_machine, open_config, peak_memory
from PIL import Image
from slide import TILE, _pieces, _save_slide

HERE = Path(__file__).parent
COLUMNS = ("kind", "side", "megapixels", "nuclei", "cpu_s", "cpu_s_per_mpx", "peak_mb")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="folder of images of at least 256 x 256")
    parser.add_argument("--image_sides", type=int, nargs="*", default=[1000, 2000, 4000, 8000])
    parser.add_argument("--slide_sides", type=int, nargs="*", default=[4096, 8192, 16384])
    parser.add_argument("--out", type=Path, default=HERE / "growth.csv")
    parser.add_argument("--alone", action="store_true", help="measure the one size here, and print it as JSON")
    args = parser.parse_args()
    jobs = [("image", side) for side in args.image_sides] + [("slide", side) for side in args.slide_sides]
    if args.alone:
        print(json.dumps(_measure(args.images, *jobs[0])))
        return
    print(describe_machine())
    for kind, side in jobs:
        sides = {"image": [], "slide": [], kind: [str(side)]}
        command = [sys.executable, __file__, "--images", args.images, "--alone"]
        command += ["--image_sides", *sides["image"], "--slide_sides", *sides["slide"]]
        lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
        rows = [row for row in _rows(args.out) if (row["kind"], int(row["side"])) != (kind, side)]
        rows.append({name: str(value) for name, value in json.loads(lines[-1]).items()})
        rows.sort(key=lambda row: (row["kind"], int(row["side"])))
        with args.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        print(
            " | ".join(rows[[(row["kind"], int(row["side"])) for row in rows].index((kind, side))].values()), flush=True
        )
    _draw(_rows(args.out), args.out.with_suffix(".png"))


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _measure(folder: str, kind: str, side: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as place:
        pieces, out = _pieces(folder, Path(place)), Path(place, "out")
        if kind == "image":
            per_row = -(-side // TILE)
            rows = [
                np.concatenate([pieces[(r * per_row + c) % len(pieces)] for c in range(per_row)], axis=1)
                for r in range(per_row)
            ]
            Path(place, "images").mkdir()
            Image.fromarray(np.concatenate(rows)[:side, :side]).save(Path(place, "images", "tissue.png"))
            del rows
            config = open_config("inference", "inference", dataset_dir=f"{place}/images", output_dir=str(out), mpp=0.25)
        else:
            slide = _save_slide(Path(place, "tissue.tif"), pieces, side)
            config = open_config("wsi", "inference", slide=str(slide), output_dir=str(out))
        del pieces
        before = _cpu_seconds()
        config.get_parsed_content("inferring" if kind == "image" else "segmenting_slide")
        seconds = _cpu_seconds() - before
        summary = json.loads((out / ("" if kind == "image" else "tissue") / "summary.json").read_text())
    values = (kind, side, round(side**2 / 1e6, 1), summary["nuclei"], round(seconds, 1))
    return dict(zip(COLUMNS, (*values, round(seconds / side**2 * 1e6, 3), round(peak_memory() / 2**20)), strict=True))


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _draw(rows: list[dict[str, str]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for axis, name, label in zip(axes, ("cpu_s_per_mpx", "peak_mb"), ("CPU seconds a megapixel", "peak memory, MB")):
        for kind in ("image", "slide"):
            own = [row for row in rows if row["kind"] == kind]
            axis.plot([float(r["megapixels"]) for r in own], [float(r[name]) for r in own], "o-", label=f"{kind}s")
        axis.set(xscale="log", xlabel="megapixels", ylabel=label)
        axis.set_ylim(0, 1.1 * axis.get_ylim()[1])
        axis.legend()
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
