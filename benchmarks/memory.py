"""
What keeping freed memory (``scripts.memory``, as all verbs do) brings: an encoder with and without, on a CPU.

    python benchmarks/memory.py [--backbone vit_t] [--size 1024] [--repeat 5]

Each runs in its own process, in turns. Prints the median seconds of a forward pass, the seconds of CPU it took, those
of them that the system took (clearing fresh pages), the peak memory of the process, and the ratios, medians over the
turns. Weights are random. On a busy machine only CPU seconds mean something, and only with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time

from machine import BUNDLE, describe_machine, peak_memory, processes_in_turns, ratio


def serve(which: str, backbone: str, size: int) -> None:
    """A child: one timed forward pass for each line read; at the end tells its peak memory in bytes."""
    import torch
    from scripts.memory import keep_freed_memory
    from scripts.networks.weights import load_encoder

    if which == "kept" and not keep_freed_memory():
        sys.exit("this C library, or a MALLOC_ variable of the environment, does not let malloc be told")
    encoder = load_encoder(backbone, "random", BUNDLE / "models")
    image = 255 * torch.rand(1, 3, size, size)
    for _ in sys.stdin:
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        with torch.inference_mode():
            encoder(image)
        after = resource.getrusage(resource.RUSAGE_SELF)
        system = after.ru_stime - before.ru_stime
        cpu = system + after.ru_utime - before.ru_utime
        print(json.dumps({"seconds": time.perf_counter() - start, "cpu": cpu, "system": system}), flush=True)
    print(peak_memory())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_t")
    parser.add_argument("--size", type=int, default=1024, help="side of the image")
    parser.add_argument("--repeat", type=int, default=5, help="timed forward passes of each")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.backbone, args.size)
        return

    setting = ["--backbone", args.backbone, "--size", str(args.size)]
    commands = {name: [__file__, *setting, "--serve", name] for name in ("default", "kept")}
    timed, last = processes_in_turns(commands, args.repeat)
    print(describe_machine())
    print(f"{args.backbone}, {args.size} x {args.size}")
    print(f"{'':10}{'seconds':>9}{'CPU s':>9}{'system s':>10}{'peak GB':>9}")
    for name, passes in timed.items():
        seconds, cpu, system = (statistics.median(p[key] for p in passes) for key in ("seconds", "cpu", "system"))
        print(f"{name:10}{seconds:9.2f}{cpu:9.2f}{system:10.2f}{int(last[name]) / 1e9:9.2f}")
    ratios = [ratio(*([p[key] for p in timed[name]] for name in ("kept", "default"))) for key in ("seconds", "cpu")]
    print(f"{'ratio':10}{ratios[0]:9.2f}{ratios[1]:9.2f}{'':10}{int(last['kept']) / int(last['default']):9.2f}")


if __name__ == "__main__":
    main()
