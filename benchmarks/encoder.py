"""
SAM's ViT-B encoder: segment-anything's own blocks against ours, on this machine's CPU.

    python benchmarks/encoder.py [--size 1024] [--repeat 3]

Prints the median seconds of a forward pass, the peak memory of the process (each runs in its own), the arithmetic rate
and its share of what large matrix products reach here just before, and the largest difference of the two outputs
relative to the largest output. Weights are random, relative positions included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BUNDLE = Path(__file__).resolve().parents[1] / "bundle"


def measure(which: str, size: int, repeat: int, output: Path) -> dict[str, float]:
    """Runs one of the two encoders in this process; writes its output and returns the measurements."""
    import resource

    import torch

    sys.path.insert(0, str(BUNDLE))
    from scripts.networks.sam_encoders import SAM_VITS, SamViT, sam_modeling

    torch.manual_seed(0)
    numbers = SAM_VITS["vit_b"]
    encoder = sam_modeling().ImageEncoderViT(img_size=size, window_size=14, use_rel_pos=True, **numbers)
    for name, parameter in encoder.named_parameters():
        if "rel_pos" in name or "pos_embed" in name:  # zeros otherwise, which would hide a wrong bias
            torch.nn.init.normal_(parameter, std=0.2)
    image = torch.randn(1, 3, size, size)
    if which == "ours":
        encoder = SamViT(encoder, taps=())
    encoder.requires_grad_(False).eval()

    result, seconds, rates = None, [], []
    for _ in range(repeat + 1):
        rates.append(matmul_rate(torch))
        start = time.perf_counter()
        result = encoder(image)
        seconds.append(time.perf_counter() - start)
    torch.save(result[-1] if which == "ours" else result, output)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    # the first pass warms up
    return {"seconds": statistics.median(seconds[1:]), "peak": peak, "matmul": statistics.median(rates[1:])}


def matmul_rate(torch, n: int = 2048) -> float:
    """FLOP/s of large matrix products."""
    a = torch.randn(n, n)
    start = time.perf_counter()
    for _ in range(3):
        a @ a
    return 3 * 2 * n**3 / (time.perf_counter() - start)


def compare(size: int, outputs: list[Path]) -> tuple[float, float]:
    """FLOP of upstream's forward pass, and the relative difference of the two outputs."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    sys.path.insert(0, str(BUNDLE))
    from scripts.networks.sam_encoders import SAM_VITS, sam_modeling

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        encoder = sam_modeling().ImageEncoderViT(img_size=size, window_size=14, use_rel_pos=True, **SAM_VITS["vit_b"])
        encoder(torch.zeros(1, 3, size, size))
    upstream, ours = (torch.load(file, weights_only=True) for file in outputs)
    return counter.get_total_flops(), ((ours - upstream).abs().max() / upstream.abs().max()).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="side of the image, a multiple of 16")
    parser.add_argument("--repeat", type=int, default=3, help="timed forward passes of each")
    parser.add_argument("--measure", nargs=2, metavar=("WHICH", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure[0], args.size, args.repeat, Path(args.measure[1]))))
        return

    # this process stays small and imports torch last: on Linux a child's peak memory starts from its parent's
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, which) for which in ("upstream", "ours")]
        for file in outputs:
            command = [sys.executable, __file__, "--size", str(args.size), "--repeat", str(args.repeat)]
            command += ["--measure", file.name, str(file)]
            results[file.name] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        flop, difference = compare(args.size, outputs)

    print(f"ViT-B, {args.size} x {args.size}, {flop / 1e9:.0f} GFLOP")
    print(f"{'':10}{'seconds':>9}{'peak GB':>9}{'GFLOP/s':>9}{'matmul':>9}{'share':>8}")
    for which, r in results.items():
        rate = flop / r["seconds"]
        numbers = f"{rate / 1e9:9.0f}{r['matmul'] / 1e9:9.0f}{rate / r['matmul']:8.2f}"
        print(f"{which:10}{r['seconds']:9.2f}{r['peak'] / 1e9:9.2f}{numbers}")
    ratio = {key: results["ours"][key] / results["upstream"][key] for key in ("seconds", "peak")}
    print(f"{'ratio':10}{ratio['seconds']:9.2f}{ratio['peak']:9.2f}")
    print(f"largest difference / largest output: {difference:.1e}")


if __name__ == "__main__":
    main()
