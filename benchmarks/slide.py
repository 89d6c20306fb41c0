"""
How much of the time of `segmenting_slide` is spent in the network, and how time grows with the slide.

    python benchmarks/slide.py [--images FOLDER] [--sides 2048 4096] [--ckpt_path MODEL] [--tile_size 1024]

Slides of the given sides (level-0 pixels at 0.25 um) are put together from a folder of images, or from synthetic tiles.
Prints, for each, tiles, seconds for a tile, the network's share of the wall time, and the peak of this process' memory.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import tifffile
from machine import describe_machine, open_config, peak_memory
from PIL import Image

TILE = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="folder of images of at least 256 x 256")
    parser.add_argument("--sides", type=int, nargs="+", default=[2048, 4096], help="sides of the slides")
    parser.add_argument("--ckpt_path", help="weights other than the bundle's")
    parser.add_argument("--tile_size", type=int, help="side of a window")
    parser.add_argument("--workers", type=int, help="processes for post-processing")
    args = parser.parse_args()

    print(describe_machine())
    print(f"{'side':>8}{'tiles':>8}{'nuclei':>10}{'s/tile':>10}{'network':>10}{'peak MB':>10}")
    with tempfile.TemporaryDirectory() as folder:
        pieces = _pieces(args.images, Path(folder, "synthetic"))
        overrides = {key: getattr(args, key) for key in ("ckpt_path", "tile_size", "workers")}
        overrides = {key: value for key, value in overrides.items() if value is not None}
        for number, side in enumerate([min(args.sides[0], 1024), *args.sides]):
            slide = _save_slide(Path(folder, f"{side}_{number}.tif"), pieces, side)
            out = Path(folder, "out")
            config = open_config("wsi", "inference", slide=str(slide), output_dir=str(out), **overrides)
            config.get_parsed_content("segmenting_slide")
            if number == 0:  # the first one warms up
                continue
            about = json.loads((out / slide.stem / "summary.json").read_text())
            peak = peak_memory() / 2**20
            each = about["seconds"] / about["tiles"]
            share = about["network_share"]
            print(f"{side:8}{about['tiles']:8}{about['nuclei']:10}{each:10.2f}{share:10.3f}{peak:10.0f}")


def _pieces(folder: str | None, synthetic: Path) -> list[np.ndarray]:
    """Squares of tissue (256, 256, 3)."""
    if folder is None:
        from scripts.data.synthetic import make_synthetic

        files = sorted(make_synthetic(synthetic).glob("synthetic_pink/images/*.png"))
    else:
        files = sorted(path for path in Path(folder).iterdir() if path.suffix in (".png", ".tif", ".jpg"))
    pieces = []
    for file in files:
        pixels = np.asarray(Image.open(file).convert("RGB"))
        for top in range(0, pixels.shape[0] - TILE + 1, TILE):
            pieces += [pixels[top : top + TILE, x : x + TILE] for x in range(0, pixels.shape[1] - TILE + 1, TILE)]
    return pieces


def _save_slide(path: Path, pieces: list[np.ndarray], side: int) -> Path:
    """A pyramid of JPEG tiles, as scanners write it; neighbouring pieces of an image stay neighbours."""

    def tiles(ratio: int):
        per_row = side // TILE
        small = [np.asarray(Image.fromarray(piece).reduce(ratio)) for piece in pieces]
        for row in range(0, per_row, ratio):
            for column in range(0, per_row, ratio):
                rows = [
                    np.concatenate([small[(r * per_row + c) % len(small)] for c in range(column, column + ratio)], 1)
                    for r in range(row, row + ratio)
                ]
                yield np.concatenate(rows)

    with tifffile.TiffWriter(path) as tiff:
        for level, ratio in enumerate((1, 4)):
            density = 1e4 / (0.25 * ratio)
            tiff.write(
                tiles(ratio),
                shape=(side // ratio, side // ratio, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 92},
                resolution=(density, density),
                resolutionunit="CENTIMETER",
                subfiletype=int(level > 0),
                subifds=1 if level == 0 else 0,
            )
    return path


if __name__ == "__main__":
    main()
