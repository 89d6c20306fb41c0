"""
PyTorch and other runtimes: CPU seconds of the shipped network on square tiles, in turns, as shares of PyTorch's.

    OMP_NUM_THREADS=1 python benchmarks/runtime.py [--onnx models/model.onnx] [--sides 512 1024] [--repeat 5]

OpenVINO is run as the bundle runs it, compiled for tiles of any size, and compiled for that size alone. ``--onnx`` is
the export of docs/exporting.md, for onnxruntime. What OpenVINO in bfloat16 costs: precision.py --openvino.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable

from machine import BUNDLE, describe_machine, ratio

MODEL = BUNDLE / "models" / "model.pt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--onnx", help="the network as ONNX")
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 1024], help="of the tiles, pixels")
    parser.add_argument("--repeat", type=int, default=5, help="turns")
    args = parser.parse_args()

    import torch

    print(describe_machine())
    print(f"{'side':6}{'':34}{'time':>7}{'largest difference of logits':>32}")
    for side in args.sides:
        tile = torch.rand(1, 3, side, side) * 255
        runs = _runs(side, args.onnx)
        seconds, answers = defaultdict(list), {}
        with torch.inference_mode():
            for turn in range(args.repeat + 1):  # the first warms up
                for name, run in runs.items():
                    start = time.process_time()
                    answers[name] = run(tile)
                    if turn:
                        seconds[name].append(time.process_time() - start)
        for name in runs:
            difference = float((answers[name] - answers["PyTorch float32"]).abs().max())
            share = ratio(seconds[name], seconds["PyTorch float32"])
            print(f"{side:<6}{name:34}{share:7.2f}{difference:32.2g}", flush=True)


def _runs(side: int, onnx: str | None) -> dict[str, Callable]:
    import torch
    from scripts.networks import runtime
    from scripts.networks.loading import load_network

    network = load_network(MODEL)

    def mixed(tile: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu"):
            return network(tile).float()

    runs = {"PyTorch float32": network, "PyTorch bfloat16 (--amp true)": mixed}
    for precision in ("float32", "bfloat16"):
        runs[f"OpenVINO {precision}"] = runtime.OpenVinoNetwork(network, MODEL, precision)
        runs[f"OpenVINO {precision}, this size alone"] = runtime.OpenVinoNetwork(network, MODEL, precision, side)
    if onnx:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        runs["onnxruntime float32"] = lambda tile: torch.from_numpy(session.run(None, {name: tile.numpy()})[0])
    return runs


if __name__ == "__main__":
    main()
