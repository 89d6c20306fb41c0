"""
Filling the feature cache against the frozen encoder alone, on the same windows: how much of the encoder's rate is left.

    python benchmarks/caching.py [--dataset_dir DATA] [--backbone vit_t] [--windows 16] [--repeat 5]

Training images of `bundle/sample` unless others are named, 8 windows each, read, augmented, encoded and written as a
training does, with train.json as it is; the weights are random, which cost the same. In turns: the encoder
on the augmented windows, held in memory, one by one and in the cache's batches; and the cache, in a new folder each
time. Prints median seconds a window of each, by the clock and of CPU, the encoder's shares of the cache's, and CPU
seconds of each step, were an image read and a window encoded for itself.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from machine import BUNDLE, describe_machine, in_turns, open_config, ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", default=str(BUNDLE / "sample"))
    parser.add_argument("--backbone", default="vit_t")
    parser.add_argument("--window_size", type=int, default=512)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()

    print(describe_machine())
    with tempfile.TemporaryDirectory() as folder:
        filling = _Filling(Path(folder), args)
        cpu: dict[str, list[float]] = defaultdict(list)
        steps = {"encoder": filling.encode, "batches": filling.encode_batches, "cache": filling.fill}
        timed = {name: functools.partial(_timed, step, cpu[name]) for name, step in steps.items()}
        seconds = in_turns(timed, args.repeat, warm_up=1)
    count = len(filling.images)
    heads = f"{'encoder s':>20}{'batches s':>12}{'cache s':>10}{'rate':>8}{'of batches':>12}"
    print(f"{count} windows, {args.backbone}{heads}")
    for name, each in (("by the clock", seconds), ("CPU", {key: values[1:] for key, values in cpu.items()})):
        encoder, batches, cache = (statistics.median(each[key]) / count for key in steps)
        alone, together = (ratio(each[key], each["cache"]) for key in ("encoder", "batches"))
        print(f"{name:24}{encoder:12.3f}{batches:12.3f}{cache:10.3f}{alone:8.0%}{together:12.0%}")
    print(f"\n{'step':34}{'CPU s a window':>16}")
    for step, passed in filling.steps.items():
        print(f"{step:34}{passed / count:16.4f}")


def _timed(step: Callable[[], None], seconds: list[float]) -> None:
    start = time.process_time()
    step()
    seconds.append(time.process_time() - start)


class _Filling:
    """The windows of a training, encoded alone or with all that filling the cache takes."""

    def __init__(self, folder: Path, args: argparse.Namespace) -> None:
        from scripts.data.domains import load_items

        config = open_config(
            "train", "train", backbone=args.backbone, backbone_weights="random", dataset_dir=args.dataset_dir,
            output_dir=str(folder), window_size=args.window_size,
        )  # fmt: skip
        self.folder, self.window_size, self.turn = folder, args.window_size, 0
        self.encoder = config.get_parsed_content("network").image_encoder
        self.transform = config.get_parsed_content("train::preprocessing")
        self.items = load_items(config.get_parsed_content("training_domains"), "training")
        self.each = config.get("cache_windows")
        self.items = self.items[: max(args.windows // self.each, 1)]
        self.images: list[torch.Tensor] = []
        self.steps = self._steps()

    def encode(self) -> None:
        with torch.no_grad():
            for image in self.images:
                self.encoder.begin(image[None])

    def encode_batches(self) -> None:
        from scripts.data.feature_cache import TOGETHER

        with torch.no_grad():
            for at in range(0, len(self.images), TOGETHER):
                some = self.images[at : at + TOGETHER]
                for size in {image.shape for image in some}:
                    self.encoder.begin(torch.stack([image for image in some if image.shape == size]))

    def fill(self) -> None:
        self._dataset().fill()

    def _dataset(self):
        from scripts.data.feature_cache import FeatureDataset

        self.turn += 1
        return FeatureDataset(self.items, self.transform, self.folder / str(self.turn), self.each, self.window_size)

    def _steps(self) -> dict[str, float]:
        """CPU seconds of each step over all windows; and the augmented images, which it keeps."""
        from scripts.data.encoding import EncodeFeatures

        dataset, passed = self._dataset(), defaultdict(float)
        for index, window in itertools.product(range(len(self.items)), range(self.each)):
            start = time.process_time()
            item = dataset._item(index, window)
            passed["digest of the files"] += time.process_time() - start
            for step in dataset.transform.transforms:
                if isinstance(step, EncodeFeatures):
                    self.images.append(torch.as_tensor(item["image"]).as_subclass(torch.Tensor).round())
                start = time.process_time()
                item = step(item)
                passed[type(step).__name__] += time.process_time() - start
                if isinstance(step, EncodeFeatures):
                    break
            start = time.process_time()
            torch.save({key: item[key] for key in ("image", "target", "features")}, self.folder / "window.pt")
            passed["writing"] += time.process_time() - start
        return passed


if __name__ == "__main__":
    main()
