"""
A training step on stored features against one that runs the frozen encoder, with train.json as it is.

    python benchmarks/training_step.py [--backbone vit_t vit_b] [--decoder_size light] [--repeat 9]

Both take batches from their data loader, so decoding, augmentation and reading stored features count. The images are
synthetic; backbones have random weights, which cost the same. Prints median seconds of a step and their ratio, taken
in turns, and what storing one window took.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time

from machine import describe_machine, in_turns, open_config, ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", nargs="+", default=["vit_t", "vit_b"])
    parser.add_argument("--decoder_size", default="light")
    parser.add_argument("--crop_size", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=9, help="timed steps of each")
    args = parser.parse_args()

    print(describe_machine())
    print(f"batch of {args.batch_size} crops of {args.crop_size} x {args.crop_size}, decoder {args.decoder_size}")
    print(f"{'backbone':10}{'live s':>9}{'cached s':>10}{'ratio':>8}{'s to store a window':>22}")
    for backbone in args.backbone:
        with tempfile.TemporaryDirectory() as folder:
            steps = {cache: _step(backbone, cache, folder, args) for cache in ("off", "on")}
            start = time.perf_counter()
            windows = steps["on"].fill()
            storing = (time.perf_counter() - start) / windows
            seconds = in_turns(steps, args.repeat)
        live, cached = (statistics.median(seconds[cache]) for cache in ("off", "on"))
        share = ratio(seconds["on"], seconds["off"])
        print(f"{backbone:10}{live:9.3f}{cached:10.3f}{share:8.2f}{storing:22.3f}", flush=True)


class _step:
    """Each call is one step of the training that train.json describes."""

    def __init__(self, backbone: str, cache: str, folder: str, args: argparse.Namespace) -> None:
        from scripts.data.synthetic import make_synthetic

        self.config = open_config(
            "train", "train", backbone=backbone, backbone_weights="random", cache=cache, output_dir=folder,
            decoder_size=args.decoder_size, crop_size=args.crop_size, batch_size=args.batch_size, cache_windows=1,
            dataset_dir=make_synthetic(f"{folder}/synthetic"), batches_per_epoch=1000,
        )  # fmt: skip
        self.batches = None

    def fill(self) -> int:
        return len(self.config.get_parsed_content("train::dataset"))

    def __call__(self) -> None:
        if self.batches is None:
            self.trainer = self.config.get_parsed_content("train::trainer")
            self.trainer.state.max_epochs, self.trainer.state.epoch_length = 1, 1000
            self.trainer.state.iteration = 2  # the first one of an epoch also measures gradients
            self.batches = itertools.chain.from_iterable(itertools.repeat(self.trainer.data_loader))
        self.config.get_parsed_content("train::iteration")(self.trainer, next(self.batches))


if __name__ == "__main__":
    main()
