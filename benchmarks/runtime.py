"""
PyTorch and other runtimes: CPU seconds of the shipped network on square tiles, in turns, as shares of PyTorch's.

    OMP_NUM_THREADS=1 python benchmarks/runtime.py [--onnx models/model.onnx] [--sides 512 1024] [--repeat 5]
    OMP_NUM_THREADS=1 python benchmarks/runtime.py --parts [--sides 1024] [--repeat 9]

OpenVINO is run as the bundle runs it, compiled for tiles of any size, and compiled for that size alone. ``--onnx`` is
the export of docs/exporting.md, for onnxruntime. What OpenVINO in bfloat16 costs: precision.py --openvino.

With ``--parts`` PyTorch alone: what kinds of operators take of the network's time (by its profiler, which has the clock
alone: shares are medians of the turns), and at what rate they work, as a share of oneDNN's with large matrix products,
in CPU seconds of the same turns.
"""

from __future__ import annotations

import argparse
import math
import statistics
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
    parser.add_argument("--parts", action="store_true", help="where PyTorch's time goes")
    args = parser.parse_args()

    import torch

    print(describe_machine())
    if args.parts:
        for side in args.sides:
            _parts(side, args.repeat)
        return
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


KINDS = {
    "linear layers": ("_linear_pointwise",),
    "depthwise convolutions": (),
    "other convolutions": ("_convolution_pointwise", "mkldnn_convolution", "_convolution", "convolution"),
    "attention": ("_scaled_dot_product_flash_attention_for_cpu",),
    "norms": ("native_layer_norm", "native_group_norm"),
    "copies": ("copy_", "cat", "index_select", "_index_put_impl_", "pixel_unshuffle", "pixel_shuffle"),
    "sums, GELU, ReLU": ("add", "add_", "sub", "sub_", "div", "gelu", "clamp_min_"),
}


def _kind(operator: str, shapes: list) -> str:
    """What of ``KINDS`` an operator with inputs of those shapes is."""
    name = operator.replace("::", ".").rpartition(".")[2]
    if name in KINDS["other convolutions"] and len(shapes[1]) == 4 and shapes[1][1] == 1:
        return "depthwise convolutions"
    return next((kind for kind, names in KINDS.items() if name in names), "the rest")


def _parts(side: int, repeat: int) -> None:
    import torch
    from scripts.memory import keep_freed_memory
    from scripts.networks.loading import load_network
    from torch.profiler import ProfilerActivity, profile

    keep_freed_memory()
    network, tile, large = load_network(MODEL), torch.rand(1, 3, side, side) * 255, torch.rand(2048, 2048)
    with torch.no_grad():
        features = network.image_encoder(tile)
    runs = {
        "product": lambda: torch.ops.mkldnn._linear_pointwise(large, large, None, "none", [], ""),
        "encoder": lambda: network.image_encoder(tile),
        "decoder": lambda: network.decoder(features, tile),
    }
    flop = {"product": 2 * len(large) ** 3} | {name: _flop(runs[name]) for name in ("encoder", "decoder")}
    of_kind = {kind: sum(flop[name].get(kind, 0) for name in ("encoder", "decoder")) for kind in [*KINDS, "the rest"]}
    seconds, shares = defaultdict(list), defaultdict(list)
    with torch.inference_mode():
        for turn in range(repeat + 1):  # the first warms up
            for name, run in runs.items():
                start = time.process_time()
                run()
                if turn:
                    seconds[name].append(time.process_time() - start)
            with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
                network(tile)
            events = profiled.key_averages(group_by_input_shape=True)
            whole = sum(event.self_cpu_time_total for event in events)
            for kind in of_kind if turn else ():
                own = (event for event in events if _kind(event.key, event.input_shapes) == kind)
                shares[kind].append(sum(event.self_cpu_time_total for event in own) / whole)
    print(f"{side} x {side}{'GFLOP':>32}{'share of time':>16}{'share of the rate of products':>32}")
    network_seconds = [sum(pair) for pair in zip(seconds["encoder"], seconds["decoder"], strict=True)]

    def line(name: str, work: float, taken: list[float]) -> None:
        share = ratio(taken, network_seconds)
        rates = [
            work / own / (flop["product"] / product) for own, product in zip(taken, seconds["product"], strict=True)
        ]
        rate = f"{statistics.median(rates):32.2f}" if work else ""
        print(f"{name:30}{work / 1e9:12.1f}{share:16.3f}{rate}")

    for kind, work in of_kind.items():
        line(kind, work, [share * all_ for share, all_ in zip(shares[kind], network_seconds, strict=True)])
    for name in ("encoder", "decoder"):
        line(name, sum(flop[name].values()), seconds[name])
    line("network", sum(of_kind.values()), network_seconds)
    product, network_median = (statistics.median(each) for each in (seconds["product"], network_seconds))
    print(
        f"products at {flop['product'] / product / 1e9:.0f} GFLOP/s, the network takes {network_median:.3f} CPU seconds"
    )


def _flop(run: Callable) -> dict[str, int]:
    """Floating point operations of the products by kind; PyTorch's own counter does not know oneDNN's operators."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counts: dict[str, int] = defaultdict(int)

    formulas = {  # multiplications, of the shapes of inputs and output
        torch.ops.mkldnn._linear_pointwise: lambda inputs, out: math.prod(inputs[0]) * inputs[1][0],
        torch.ops.mkldnn._convolution_pointwise: lambda inputs, out: math.prod(out) * math.prod(inputs[1][1:]),
        torch.ops.aten.convolution: lambda inputs, out: (
            math.prod(inputs[0] if inputs[6] else out) * math.prod(inputs[1][1:])  # the seventh: transposed
        ),
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda inputs, out: (
            2 * math.prod(inputs[0]) * inputs[1][2]
        ),
    }

    def counted(operator: object) -> Callable:
        def count(*inputs, out_shape, **_) -> int:
            work = 2 * formulas[operator](inputs, out_shape)
            counts[_kind(str(operator), inputs)] += work
            return work

        return count

    mapping = {operator: counted(operator) for operator in formulas}
    with torch.inference_mode(), FlopCounterMode(display=False, custom_mapping=mapping):
        run()
    return counts


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
