"""
Load: many images through ``load()`` in one process, many requests to one label server; do memory and open files stay?

    python benchmarks/load.py --image TILE [--images 300] [--requests 100]

Prints resident memory and open files after a tenth of them, and at the end, with the ratio of memory. Linux only.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from machine import describe_machine
from PIL import Image

REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO), str(REPO / "bundle"), str(REPO / "tests" / "helpers")]


def held(process: int | str) -> tuple[float, int]:
    """Resident memory in MB, and how many files are open, of a process."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(os.listdir(f"/proc/{process}/fd"))


def watch(what: str, count: int, process: int | str, step) -> None:
    """Do a step so many times and print what the process holds after a tenth of them and at the end."""
    for number in range(1, count + 1):
        step()
        if number == max(count // 10, 1):
            first = held(process)
    last = held(process)
    print(
        f"{what:12}{count:6}{first[0]:12.0f}{last[0]:10.0f}{last[0] / first[0]:8.2f}{first[1]:8}{last[1]:8}", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, required=True, help="an image; its upper left 256 x 256 pixels are used")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--requests", type=int, default=100)
    args = parser.parse_args()
    tile = np.asarray(Image.open(args.image).convert("RGB"))[:256, :256]
    print(describe_machine())
    print(f"{'':12}{'count':>6}{'MB after 10 %':>14}{'at end':>10}{'ratio':>8}{'files':>8}{'at end':>8}")

    from ama_sam import load

    segmenter = load()
    watch("load()", args.images, "self", lambda: segmenter.segment(tile))

    from label_server import LabelServer

    sent = io.BytesIO()
    Image.fromarray(tile).save(sent, "PNG")
    with tempfile.TemporaryDirectory() as folder:
        settings = {"model_dir": Path(folder) / "model"}
        with LabelServer(REPO / "apps" / "ama_sam", Path(folder), settings) as server:

            def ask() -> None:
                files = {"file": ("tile.png", sent.getvalue())}
                answer = server.http.post(f"{server.url}/infer/ama_sam?output=image", files=files, timeout=120)
                answer.raise_for_status()

            watch("requests", args.requests, server.process.pid, ask)


if __name__ == "__main__":
    main()
