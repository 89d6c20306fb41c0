"""
How much of the time of `inferring` is spent in the network, with inference.json as it is.

    python benchmarks/inferring.py [--dataset_dir FOLDER] [--images 8] [--side 512] [--repeat 3]

Without a folder of images, synthetic tiles are made. Prints images per second from files to files, those of the network
alone, measured inside the same run, and the share of each part of the time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from machine import describe_machine, open_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", help="folder of images")
    parser.add_argument("--images", type=int, default=8, help="number of synthetic tiles")
    parser.add_argument("--side", type=int, default=512, help="side of the synthetic tiles")
    parser.add_argument("--ckpt_path", help="weights other than the bundle's")
    parser.add_argument("--repeat", type=int, default=3, help="timed runs")
    args = parser.parse_args()

    print(describe_machine())
    with tempfile.TemporaryDirectory() as folder:
        source = args.dataset_dir or _tiles(Path(folder, "tiles"), args.images, args.side)
        overrides = {"ckpt_path": args.ckpt_path} if args.ckpt_path else {}
        runs = [_run(source, Path(folder, f"run{i}"), overrides) for i in range(args.repeat + 1)]
    runs = runs[1:]  # the first one warms up
    print(f"{runs[0]['images']:.0f} images from {args.dataset_dir or 'synthetic tiles'}")
    total, network = (statistics.median(run[key] / run["images"] for run in runs) for key in ("total", "network"))
    print(f"{'':18}{'s per image':>12}{'images/s':>10}{'share':>8}")
    for name in ("total", "network", "reading", "post-processing", "writing"):
        seconds = statistics.median(run[name] / run["images"] for run in runs)
        share = statistics.median(run[name] / run["total"] for run in runs)
        print(f"{name:18}{seconds:12.3f}{1 / max(seconds, 1e-9):10.2f}{share:8.2f}")
    print(f"the network's share of the time: {network / total:.2f}")


def _tiles(folder: Path, count: int, side: int) -> str:
    """Synthetic images, set side by side and cut to the wanted size."""
    import numpy as np
    from PIL import Image
    from scripts.data.synthetic import make_synthetic

    files = sorted(make_synthetic(folder.parent / "synthetic").glob("*/images/*.png"))
    folder.mkdir()
    for i in range(count):
        rows = []
        while sum(row.shape[0] for row in rows) < side:
            row = [np.asarray(Image.open(files[(7 * i + len(rows) + k) % len(files)])) for k in range(-(-side // 64))]
            rows.append(np.concatenate(row, axis=1)[:, :side])
        Image.fromarray(np.concatenate(rows)[:side]).save(folder / f"{i}.png")
    return str(folder)


def _run(source: str, output: Path, overrides: dict[str, str]) -> dict[str, float]:
    """Seconds of one run of the evaluator, and of its parts."""
    config = open_config("inference", "inference", dataset_dir=source, output_dir=str(output), **overrides)
    evaluator, dataset = (config.get_parsed_content(key) for key in ("evaluator", "dataset"))
    seconds = dict.fromkeys(("network", "reading", "post-processing", "writing"), 0.0)

    def timed(name: str, function):
        def call(*args, **kwargs):
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[name] += time.perf_counter() - start

        return call

    network, writer = config.get_parsed_content("network"), config.get_parsed_content("handlers")[-1]
    network.forward = timed("network", network.forward)
    dataset.transform = timed("reading", dataset.transform)
    after = config.get_parsed_content("postprocessing")
    after.transforms = [timed("post-processing", step) for step in after.transforms]
    writer._write_image = timed("writing", writer._write_image)
    start = time.perf_counter()
    evaluator.run()
    return {"total": time.perf_counter() - start, "images": float(len(writer.rows)), **seconds}


if __name__ == "__main__":
    main()
