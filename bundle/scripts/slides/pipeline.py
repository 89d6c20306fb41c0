from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from typing import TypeVar

import numpy as np
import torch
from scipy.special import expit
from scripts.ending import end_with_parent
from scripts.nuclei.measures import Nucleus, describe_nuclei
from scripts.out_of_domain.scoring import DomainDistance
from scripts.slides.slide import Slide
from scripts.slides.tiles import Tile

__all__ = ["ReadTile", "TilePipeline", "ordered_map"]

READERS = 2  # threads that read tiles: codecs and resampling leave Python's lock
READ_AHEAD = 3  # tiles beyond the batch in work
NOTHING = -30.0  # logit of what is no nucleus
DESCRIBE_AHEAD = 2  # tiles, for each worker, that wait for post-processing

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class ReadTile:
    """
    What was read of a tile, and how far it lies from the training domains.

    Args:
        tile: where it is.
        pixels: (3, side, side) uint8; beyond the slide they are mirrored.
        inside: rows and columns that lie in the slide.
        unread: ([x, y, w, h] at level 0, problem) of areas that could not be read.
        distances: (rows, columns, K) of its parts, see ``DomainDistance.take``; None where that is not known.
    """

    tile: Tile
    pixels: np.ndarray
    inside: tuple[slice, slice]
    unread: list[tuple[list[int], str]]
    distances: torch.Tensor | None = None


class TilePipeline:
    """
    Finds the nuclei in tiles of a slide: reading and post-processing go on beside the network.

    Args:
        network: takes (B, 3, H, W) RGB in [0, 255] to logits (B, C, H, W), foreground first.
        inferer: ``inferer(tiles, network)``, such as ``TileInferer``.
        postprocessing: turns ``{"pred": logits (C, H, W), "mpp": float}`` into an item with ``instances`` (1, H, W).
        device: of the network.
        batch_size: tiles per forward pass.
        workers: processes for post-processing; 0 is a thread, enough beside a network on the CPU.
        domain_distance: listens to the network; None leaves distances out.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        inferer: Callable[..., torch.Tensor],
        postprocessing: Callable[[dict], dict],
        device: torch.device | str = "cpu",
        batch_size: int = 1,
        workers: int = 0,
        domain_distance: DomainDistance | None = None,
    ) -> None:
        self.network, self.inferer, self.postprocessing = network, inferer, postprocessing
        self.device = torch.device(device)
        self.batch_size, self.workers = batch_size, workers
        self.domain_distance = domain_distance
        self.network_seconds = 0.0

    def __call__(
        self, slide: Slide, scale: float, mpp: float, tiles: Sequence[Tile]
    ) -> Iterator[tuple[ReadTile, list[Nucleus]]]:
        """
        Args:
            slide: what to read from.
            scale: level-0 pixels for each pixel of the network.
            mpp: micrometres per pixel of the network.
            tiles: in the order of the results.

        Yields:
            each tile, and the nuclei in it, in its pixels.
        """
        self.network_seconds = 0.0
        if self.workers:
            # not forked: the network's threads would be copied in whatever state they are
            describers: Executor = ProcessPoolExecutor(self.workers, get_context("spawn"), end_with_parent)
        else:
            describers = ThreadPoolExecutor(1, "describing")
        with ThreadPoolExecutor(READERS, "reading") as readers, describers:
            read = ordered_map(readers, partial(_read, slide, scale), tiles, READ_AHEAD + self.batch_size)
            kept: deque[ReadTile] = deque()
            described = ordered_map(
                describers,
                partial(_describe, self.postprocessing, mpp),
                self._predict(read, kept),
                DESCRIBE_AHEAD * max(self.workers, 1),
            )
            for nuclei in described:
                yield kept.popleft(), nuclei

    def _predict(self, read: Iterable[ReadTile], kept: deque[ReadTile]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pixels and logits (C, H, W) of each tile; ``kept`` remembers the tiles in order."""
        for batch in _in_batches(read, self.batch_size):
            start = time.perf_counter()
            pixels = torch.from_numpy(np.stack([tile.pixels for tile in batch])).to(self.device)
            with torch.inference_mode():
                logits = self.inferer(pixels.float(), self.network)
            logits = torch.as_tensor(logits).cpu().numpy()
            self.network_seconds += time.perf_counter() - start
            distances = None if self.domain_distance is None else self.domain_distance.take()
            for index, (tile, values) in enumerate(zip(batch, logits)):
                foreground = np.full_like(values[0], NOTHING)
                foreground[tile.inside] = values[0][tile.inside]
                values[0] = foreground
                kept.append(tile if distances is None else replace(tile, distances=distances[index]))
                yield tile.pixels, values


def ordered_map(pool: Executor, function: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """
    Results of a function in the order of the items, worked out beside whatever the caller does with them.

    Args:
        pool: threads or processes.
        function: what they do.
        items: taken only as results are asked for, so this may be the end of another such pipeline.
        ahead: items under way or waiting to be asked for: what bounds the memory.
    """
    pending: deque[Future] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def _in_batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _read(slide: Slide, scale: float, tile: Tile) -> ReadTile:
    left, top, side = tile.square
    pixels, unread = slide.read(left, top, side, side, scale)
    # a white edge is like nothing the network was trained on: beyond the slide is its mirror image, as in TileInferer
    parts = [
        slice(max(-start, 0), min(math.ceil(size / scale) - start, side))
        for start, size in ((top, slide.height), (left, slide.width))
    ]
    inside = parts[0], parts[1]
    beyond = [(part.start, side - part.stop) for part in parts]
    if any(map(any, beyond)):
        pixels = np.pad(pixels[inside], (*beyond, (0, 0)), mode="reflect")
    return ReadTile(tile, np.ascontiguousarray(pixels.transpose(2, 0, 1)), inside, unread)


def _describe(
    postprocessing: Callable[[dict], dict], mpp: float, predicted: tuple[np.ndarray, np.ndarray]
) -> list[Nucleus]:
    pixels, logits = predicted
    item = postprocessing({"pred": torch.from_numpy(logits), "mpp": mpp})
    spread = np.asarray(item["spread"])[0] if "spread" in item else None
    return describe_nuclei(np.asarray(item["instances"])[0], expit(logits[0]), pixels, spread)
