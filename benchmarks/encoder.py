"""
SAM's ViT-B encoder: segment-anything's own blocks against ours, on this machine's CPU.

    python benchmarks/encoder.py [--size 1024] [--repeat 3]

Each runs in its own process, in turns, so that other load on the machine meets both. Prints the median seconds of a
forward pass, the seconds of CPU it took, the peak memory of the process, the arithmetic rate and its share of what
large matrix products reached just before (above 1 where oneDNN, which ours uses, beats the library behind these), and
the largest difference of the two outputs relative to the largest output. The ratios are medians over the turns. Weights
are random, relative positions included.

On a busy machine only CPU seconds mean something, and only without threads that wait: OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from machine import matmul_rate, peak_memory, processes_in_turns, ratio


def build(which: str, size: int):
    """Upstream's encoder, or ours made of its parameters; the same random weights for both."""
    import torch
    from scripts.networks.sam_encoders import SAM_VITS, SAM_WINDOW, sam_modeling
    from scripts.networks.sam_vit import SamViT

    torch.manual_seed(0)
    encoder = sam_modeling().ImageEncoderViT(
        img_size=size, window_size=SAM_WINDOW, use_rel_pos=True, **SAM_VITS["vit_b"]
    )
    for name, parameter in encoder.named_parameters():
        if "rel_pos" in name or "pos_embed" in name:  # zeros otherwise, which would hide a wrong bias
            torch.nn.init.normal_(parameter, std=0.2)
    return (SamViT(encoder, taps=()) if which == "ours" else encoder).requires_grad_(False).eval()


def serve(which: str, size: int, output: Path) -> None:
    """A child: one timed forward pass for each line read; at the end writes its output and tells its peak memory."""
    import torch

    encoder = build(which, size)
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    for _ in sys.stdin:
        rate = matmul_rate()
        start, cpu = time.perf_counter(), time.process_time()
        result = encoder(image)
        taken = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
        print(json.dumps(taken | {"matmul": rate}), flush=True)
    torch.save(result[-1] if which == "ours" else result, output)
    print(peak_memory())


def compare(size: int, outputs: list[Path]) -> tuple[float, float]:
    """FLOP of upstream's forward pass, and the relative difference of the two outputs."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    upstream, ours = (torch.load(file, weights_only=True) for file in outputs)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        build("upstream", size)(torch.zeros(1, 3, size, size))
    return counter.get_total_flops(), ((ours - upstream).abs().max() / upstream.abs().max()).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="side of the image, a multiple of 16")
    parser.add_argument("--repeat", type=int, default=3, help="timed forward passes of each")
    parser.add_argument("--serve", nargs=2, metavar=("WHICH", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve[0], args.size, Path(args.serve[1]))
        return

    # this process imports torch last: on Linux a child's peak memory starts from its parent's
    names = ("upstream", "ours")
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, name) for name in names]
        commands = {n: [__file__, "--size", str(args.size), "--serve", n, str(f)] for n, f in zip(names, outputs)}
        timed, last = processes_in_turns(commands, args.repeat)
        peak = {name: int(text) for name, text in last.items()}
        flop, difference = compare(args.size, outputs)

    print(f"ViT-B, {args.size} x {args.size}, {flop / 1e9:.0f} GFLOP")
    print(f"{'':10}{'seconds':>9}{'CPU s':>9}{'peak GB':>9}{'GFLOP/s':>9}{'matmul':>9}{'share':>8}")
    for name in names:
        seconds, cpu, matmul = (statistics.median(p[k] for p in timed[name]) for k in ("seconds", "cpu", "matmul"))
        rate = flop / seconds
        speeds = f"{rate / 1e9:9.0f}{matmul / 1e9:9.0f}{rate / matmul:8.2f}"
        print(f"{name:10}{seconds:9.2f}{cpu:9.2f}{peak[name] / 1e9:9.2f}{speeds}")
    ratios = [ratio(*([p[key] for p in timed[name]] for name in ("ours", "upstream"))) for key in ("seconds", "cpu")]
    print(f"{'ratio':10}{ratios[0]:9.2f}{ratios[1]:9.2f}{peak['ours'] / peak['upstream']:9.2f}")
    print(f"largest difference / largest output: {difference:.1e}")


if __name__ == "__main__":
    main()
