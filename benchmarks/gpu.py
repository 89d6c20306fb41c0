"""
Everything that needs a GPU, in one command of at most 8 minutes; one table, and what each figure is relative to.

    python benchmarks/gpu.py [--only encoder exactness compiling training inferring slide] [--device cuda]

encoder     SAM's ViT-B, segment-anything's own and ours, and ours of MobileSAM's ViT-T: milliseconds an image, peak
            memory, largest difference from segment-anything in single precision relative to the largest output
exactness   the shipped weights on the bundle's sample: label maps of the GPU against those of the CPU
compiling   the whole network as it is and compiled
training    a training step of train.json, running the encoder and on stored features, ViT-T and ViT-B at 1024
inferring   images a second from files to files
slide       tiles a second, and the network's share of the time

Weights of encoders and of trainings are random, which cost the same. Times are medians of several synchronised
repetitions after warming up. ``--device cpu`` with ``--side 256`` only tries the command out.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from machine import BUNDLE, describe_machine, open_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections to run")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--side", type=int, default=1024, help="side of images and tiles")
    parser.add_argument("--slide_side", type=int, default=8192, help="side of the slide, in pixels")
    parser.add_argument("--repeat", type=int, default=10, help="timed repetitions")
    args = parser.parse_args()

    import torch

    if args.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("No GPU is there. --device cpu --side 256 --slide_side 1024 --repeat 1 tries the command out")
    print(describe_machine())
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.only:
            print(f"\n{name}", flush=True)
            start = time.perf_counter()
            try:
                SECTIONS[name](args, Path(folder))
            except Exception as error:  # the other sections are measured: a lent card is there for minutes
                failed.append(name)
                print(f"  failed: {type(error).__name__}: {str(error)[:500]}")
            gc.collect()
            if args.device.startswith("cuda"):
                torch.cuda.empty_cache()
            print(f"  ({time.perf_counter() - start:.0f} s)", flush=True)
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}")


def encoders(args: argparse.Namespace, folder: Path) -> None:
    """Segment-anything's encoder and ours."""
    import torch
    from encoder import build
    from scripts.networks.sam_encoders import build_encoder

    rate = {kind: _matmul(args.device, kind) for kind in (torch.float32, torch.bfloat16)}
    rates = ", ".join(f"{str(kind)[6:]} {each / 1e12:.1f} TFLOP/s" for kind, each in rate.items())
    print(f"  large matrix products: {rates}")
    makers = {
        "segment-anything": lambda: build("upstream", args.side),
        "ours": lambda: build("ours", args.side),
        "ours, ViT-T": lambda: build_encoder("vit_t"),
    }
    reference = None
    print(f"  {'encoder':20}{'precision':>10}{'images':>7}{'ms/image':>10}{'peak GB':>9}{'difference':>12}")
    for name, make in makers.items():
        network = make().to(args.device)
        for kind in (torch.float32, torch.bfloat16):
            for batch in (1, 8) if args.device != "cpu" else (1,):
                image = torch.randn(1, 3, args.side, args.side, generator=torch.Generator().manual_seed(1))
                image = image.expand(batch, -1, -1, -1).contiguous().to(args.device)
                forward = partial(_forward, network, image, kind)
                seconds, peak = _timed(forward, args)
                difference = ""
                if "T" not in name and batch == 1:
                    output = forward()
                    output = (output[-1] if isinstance(output, list) else output).float().cpu()
                    reference = output if reference is None else reference
                    difference = f"{(output - reference).abs().max() / reference.abs().max():.1e}"
                precision = str(kind).replace("torch.", "")
                line = f"{precision:>10}{batch:7}{1e3 * seconds / batch:10.2f}{peak:9.2f}{difference:>12}"
                print(f"  {name:20}{line}", flush=True)
        network = None  # before the next one is made


def exactness(args: argparse.Namespace, folder: Path) -> None:
    """Label maps of the shipped weights on the sample: CPU against the device, single and mixed precision."""
    import numpy as np
    from PIL import Image

    sys.path.insert(0, str(BUNDLE.parent))
    from scripts.nuclei.metrics import instance_scores

    from ama_sam import load

    files = sorted(BUNDLE.glob("sample/*/images/*"))[:: 1 if args.device != "cpu" else 6]
    images = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    reference = [load(device="cpu").segment(image, mpp=0.25).labels for image in images]
    print(f"  {len(images)} tiles, {sum(map(np.max, reference))} nuclei on the CPU")
    print(f"  {'precision':12}{'nuclei':>8}{'pixels of other class':>24}{'mean F1 against the CPU':>26}{'worst':>8}")
    for name, amp in (("single", False), ("mixed", True)):
        segmenter = load(device=args.device, amp=amp)
        found = [segmenter.segment(image, mpp=0.25).labels for image in images]
        pixels = np.mean([np.mean((a > 0) != (b > 0)) for a, b in zip(found, reference)])
        scores = [instance_scores(a, b)["f1_50"] for a, b in zip(found, reference) if b.any()]
        count = sum(map(np.max, found))
        print(f"  {name:12}{count:8}{pixels:24.2e}{np.mean(scores):26.4f}{min(scores):8.4f}")


def compiling(args: argparse.Namespace, folder: Path) -> None:
    """The whole network, eager and compiled, mixed precision."""
    import torch
    from scripts.networks.loading import load_network

    network = load_network(BUNDLE / "models" / "model.pt", device=args.device).eval()
    compiled = torch.compile(network)
    print(f"  {'network':12}{'images':>7}{'ms/image':>10}{'peak GB':>9}{'s to compile':>14}")
    for batch in (1, 4) if args.device != "cpu" else (1,):
        image = 255 * torch.rand(batch, 3, args.side, args.side, device=args.device)
        for name, each in (("eager", network), ("compiled", compiled)):
            forward = partial(_forward, each, image, torch.float16 if args.device != "cpu" else torch.bfloat16)
            start = time.perf_counter()
            forward()
            first = time.perf_counter() - start
            seconds, peak = _timed(forward, args)
            print(f"  {name:12}{batch:7}{1e3 * seconds / batch:10.2f}{peak:9.2f}{first:14.1f}", flush=True)


def training(args: argparse.Namespace, folder: Path) -> None:
    """One step of the training that train.json describes, its data loader included."""
    import torch
    from training_step import _step

    print(f"  {'backbone':10}{'crop':>6}{'features':>10}{'images':>8}{'ms/step':>9}{'peak GB':>9}")
    crops = [("vit_t", 256), ("vit_t", args.side), ("vit_b", 256), ("vit_b", args.side)]
    for backbone, crop in dict.fromkeys(crops):
        for cache in ("off", "on") if crop == 256 else ("off",):
            settings = argparse.Namespace(decoder_size="standard", crop_size=crop, batch_size=8)
            step = _step(backbone, cache, str(folder / f"{backbone}_{crop}_{cache}"), settings)
            seconds, peak = _timed(step, args)
            line = f"{crop:6}{'stored' if cache == 'on' else 'live':>10}{8:8}{1e3 * seconds:9.1f}{peak:9.2f}"
            print(f"  {backbone:10}{line}", flush=True)
            del step
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def inferring(args: argparse.Namespace, folder: Path) -> None:
    """`inferring` from files to files."""
    from inferring import _run, _tiles

    source = _tiles(folder / "tiles", 32 if args.device != "cpu" else 2, args.side)
    runs = [_run(source, folder / f"run{i}", {"device": args.device}) for i in range(2)]
    total, network = (runs[1][key] / runs[1]["images"] for key in ("total", "network"))
    print(f"  {runs[1]['images']:.0f} images of {args.side} x {args.side}: {1 / total:.2f} images/s, ", end="")
    print(f"the network's share {network / total:.2f}")


def slide(args: argparse.Namespace, folder: Path) -> None:
    """`segmenting_slide` of a slide put together from the sample's tissue."""
    import json

    from slide import _pieces, _save_slide

    pieces = _pieces(str(BUNDLE / "sample" / "sample_tnbc" / "images"), folder / "synthetic")
    for number, side in enumerate((1024, args.slide_side)):
        file = _save_slide(folder / f"slide{number}.tif", pieces, side)
        out = folder / "slides"
        config = open_config("wsi", "inference", slide=str(file), output_dir=str(out), device=args.device)
        config.get_parsed_content("segmenting_slide")
    about = json.loads((out / file.stem / "summary.json").read_text())
    print(f"  {side} x {side}: {about['tiles']} tiles, {about['nuclei']} nuclei, {about['seconds']:.1f} s, ", end="")
    print(f"{about['tiles'] / about['seconds']:.2f} tiles/s, the network's share {about['network_share']:.2f}")


SECTIONS = {
    "encoder": encoders,
    "exactness": exactness,
    "compiling": compiling,
    "training": training,
    "inferring": inferring,
    "slide": slide,
}


def _forward(network: Callable, image, kind) -> object:
    """A pass in the given precision: autocast unless it is float32."""
    import torch

    with torch.no_grad(), torch.autocast(image.device.type, kind, enabled=kind != torch.float32):
        return network(image)


def _timed(step: Callable[[], object], args: argparse.Namespace) -> tuple[float, float]:
    """Median seconds of a synchronised repetition, and the device's peak memory in GB (0 on a CPU)."""
    import torch

    cuda = args.device.startswith("cuda")
    wait = torch.cuda.synchronize if cuda else (lambda: None)
    for _ in range(2):
        step()
    wait()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(args.repeat):
        start = time.perf_counter()
        step()
        wait()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), torch.cuda.max_memory_allocated() / 1e9 if cuda else 0.0


def _matmul(device: str, kind) -> float:
    """FLOP/s of large matrix products."""
    import torch

    side = 8192 if device != "cpu" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    seconds, _ = _timed(lambda: a @ b, argparse.Namespace(device=device, repeat=5))
    return 2 * side**3 / seconds


if __name__ == "__main__":
    main()
