"""
What trained adapters cost: a training step on stored features, and the network's own time, against a frozen encoder.

    python benchmarks/adapters.py [--backbone vit_t] [--adapters none late all] [--crop_size 256] [--repeat 9]

Steps are those of train.json, with everything but the network's time also in them; the images are synthetic, weights
random, which cost the same. Prints trained parameters of the encoder, bytes of a stored pixel, median seconds and
ratios to the first choice, taken in turns.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile

from machine import describe_machine, in_turns, open_config, ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_t")
    parser.add_argument("--adapters", nargs="+", default=["none", "late", "all"])
    parser.add_argument("--crop_size", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--side", type=int, default=512, help="of the image that is segmented")
    parser.add_argument("--repeat", type=int, default=9, help="timed steps of each")
    args = parser.parse_args()

    import torch

    with tempfile.TemporaryDirectory() as folder:
        trainings = {kind: _Training(kind, folder, args) for kind in args.adapters}
        steps = in_turns({kind: training.step for kind, training in trainings.items()}, args.repeat)
        device = next(iter(trainings.values())).network.decoder.head.weight.device
        image = torch.rand(1, 3, args.side, args.side, device=device) * 255

        def segment(network: torch.nn.Module) -> None:
            with torch.inference_mode():
                network(image).cpu()

        networks = {kind: training.network.eval() for kind, training in trainings.items()}
        passes = in_turns({kind: lambda n=network: segment(n) for kind, network in networks.items()}, args.repeat)
    print(describe_machine())
    print(f"{args.backbone}, batch of {args.batch_size} crops of {args.crop_size}; images of {args.side} x {args.side}")
    print(f"{'adapters':9}{'parameters':>11}{'B/pixel':>9}{'step s':>9}{'ratio':>7}{'segment s':>11}{'ratio':>7}")
    first = args.adapters[0]
    for kind, training in trainings.items():
        encoder = training.network.image_encoder
        parameters = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
        stored = sum(2 * c / s**2 for c, s in zip(encoder.stored_channels, encoder.stored_strides))
        told = [f"{statistics.median(s[kind]):9.3f}{ratio(s[kind], s[first]):7.2f}" for s in (steps, passes)]
        print(f"{kind:9}{parameters:11,}{stored:9.1f}{told[0]}  {told[1]}", flush=True)


class _Training:
    """Each step is one of the training that train.json describes."""

    def __init__(self, adapters: str, folder: str, args: argparse.Namespace) -> None:
        from scripts.data.synthetic import make_synthetic

        config = open_config(
            "train", "train", backbone=args.backbone, backbone_weights="random", adapters=adapters, output_dir=folder,
            crop_size=args.crop_size, batch_size=args.batch_size, cache_windows=1, batches_per_epoch=1000,
            dataset_dir=make_synthetic(f"{folder}/synthetic"), run_name=adapters,
        )  # fmt: skip
        self.trainer, self.network = (config.get_parsed_content(key) for key in ("train::trainer", "network"))
        self.iteration = config.get_parsed_content("train::iteration")
        self.trainer.state.max_epochs, self.trainer.state.epoch_length = 1, 1000
        self.trainer.state.iteration = 2  # the first one of an epoch also measures gradients
        self.batches = itertools.chain.from_iterable(itertools.repeat(self.trainer.data_loader))

    def step(self) -> None:
        self.iteration(self.trainer, next(self.batches))


if __name__ == "__main__":
    main()
