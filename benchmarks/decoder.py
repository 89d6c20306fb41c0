"""
The sizes of the HR-Decoder, trained on vit_t's features: seconds of a forward and backward pass.

    python benchmarks/decoder.py [--crop_size 256] [--batch_size 8] [--repeat 9]

Prints parameters, FLOP of the forward pass, median seconds, the ratio to the first size in the same turn, and the
arithmetic rate of the step (three times the forward's FLOP) as a share of what large matrix products reach.
"""

from __future__ import annotations

import argparse
import statistics

from machine import describe_machine, in_turns, matmul_rate, ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crop_size", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=9)
    args = parser.parse_args()

    import torch
    from scripts.networks.hr_decoder import SIZES, HRDecoder
    from scripts.networks.sam_encoders import build_encoder
    from torch.utils.flop_counter import FlopCounterMode

    encoder, side = build_encoder("vit_t"), args.crop_size
    image = torch.rand(args.batch_size, 3, side, side) * 255
    sizes = [(args.batch_size, c, side // s, side // s) for c, s in zip(encoder.channels, encoder.strides)]
    features = [torch.randn(size) for size in sizes]
    decoders = {size: HRDecoder(encoder.channels, encoder.strides, size=size) for size in SIZES}
    flop = {}
    for size, decoder in decoders.items():
        with FlopCounterMode(display=False) as counter:
            decoder(features, image)
        flop[size] = counter.get_total_flops()

    def step(decoder):
        decoder.zero_grad()
        decoder(features, image)[0].square().mean().backward()

    rate = matmul_rate()
    seconds = in_turns({size: lambda d=decoder: step(d) for size, decoder in decoders.items()}, args.repeat)
    print(describe_machine())
    print(f"forward and backward, batch of {args.batch_size} crops of {side} x {side}")
    print(f"{'size':10}{'parameters':>12}{'GFLOP':>8}{'seconds':>9}{'ratio':>7}{'share of matmul rate':>22}")
    first = next(iter(SIZES))
    for size, decoder in decoders.items():
        parameters = sum(p.numel() for p in decoder.parameters())
        median, relative = statistics.median(seconds[size]), ratio(seconds[size], seconds[first])
        share = 3 * flop[size] / median / rate
        print(f"{size:10}{parameters:12,}{flop[size] / 1e9:8.1f}{median:9.3f}{relative:7.2f}{share:22.2f}")


if __name__ == "__main__":
    main()
