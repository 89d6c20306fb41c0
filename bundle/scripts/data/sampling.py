from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from monai.data.utils import set_rnd
from torch.utils.data import Dataset, Sampler

__all__ = ["DomainBalancedSampler", "SeededDataset", "SeededIndex"]


class SeededIndex(int):
    """An item's index that carries the ``seed`` of the random transforms of this one draw."""

    seed: int

    def __new__(cls, index: int, seed: int) -> SeededIndex:
        seeded = super().__new__(cls, index)
        seeded.seed = seed
        return seeded

    def __getnewargs__(self) -> tuple[int, int]:
        return int(self), self.seed  # indices go to the processes of a data loader


class SeededDataset(Dataset):
    """A MONAI data set whose random transforms follow the seed of each :class:`SeededIndex`, in any process."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: SeededIndex) -> Any:
        set_rnd(self.dataset, index.seed)
        return self.dataset[int(index)]


class DomainBalancedSampler(Sampler[list[int]]):
    """
    Batch sampler with a fixed share of primary samples, the rest drawn evenly from the auxiliary domains.

    The auxiliary places of all batches go round the auxiliary domains in turn, however unequal their sizes. Each
    domain is drawn in shuffled passes: every sample once before any a second time. Turns and passes run on from epoch
    to epoch, yet each epoch follows from (seed, epoch) alone, so a resumed run continues exactly. Without
    auxiliary domains all samples are primary.

    Call :meth:`set_epoch` before each epoch; otherwise every epoch has the same batches.

    With several processes, ``batch_size`` is that of all together: their batch is the one that a single process would
    draw, balanced alike, and each takes its share of it. Every draw carries a seed that follows from (seed, step, place
    in the batch), so what the transforms make of it does not depend on the number of processes or workers either.

    Args:
        domains: domain index of every item of the data set, 0 is the primary.
        batch_size: samples per batch, of all processes together.
        batches_per_epoch: batches per epoch.
        primary_share: share of the primary domain in each batch, rounded to whole samples.
        seed: seed of the order.
        rank: number of this process.
        world_size: number of processes.

    Raises:
        ValueError: when no item is primary, or when the share leaves no place in the batch for primary or for
            auxiliary samples, or the processes cannot share the batch evenly.
    """

    def __init__(
        self,
        domains: Sequence[int],
        batch_size: int,
        batches_per_epoch: int,
        primary_share: float = 0.5,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1 or batches_per_epoch < 1:
            raise ValueError(
                f"batch_size and batches_per_epoch must be at least 1, got {batch_size} and {batches_per_epoch}."
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, world_size), got rank {rank} and world_size {world_size}.")
        if batch_size % world_size:
            raise ValueError(f"batch_size {batch_size} must be a multiple of the number of processes, {world_size}.")
        of_item = np.asarray(domains, dtype=int)
        self._members = {int(domain): np.flatnonzero(of_item == domain) for domain in np.unique(of_item)}
        self._auxiliaries = [domain for domain in self._members if domain != 0]
        if 0 not in self._members:
            raise ValueError(f"domains has no item of the primary domain (index 0) among {len(of_item)} items.")
        self._primaries = int(primary_share * batch_size + 0.5) if self._auxiliaries else batch_size
        if self._auxiliaries and not 0 < self._primaries < batch_size:
            kind = "primary" if self._primaries <= 0 else "auxiliary"
            raise ValueError(
                f"primary_share {primary_share} of batch_size {batch_size} leaves no place for {kind} samples; "
                "change primary_share or batch_size."
            )
        self.batch_size, self.batches_per_epoch = batch_size, batches_per_epoch
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration draws."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches_per_epoch

    def __iter__(self) -> Iterator[list[int]]:
        first = self.epoch * self.batches_per_epoch
        orders: dict[int, tuple[int, np.ndarray]] = {}
        for step in range(first, first + self.batches_per_epoch):
            batch = [self._draw(0, step * self._primaries + place, orders) for place in range(self._primaries)]
            others = self.batch_size - self._primaries
            for place in range(step * others, (step + 1) * others):
                turn, which = divmod(place, len(self._auxiliaries))
                batch.append(self._draw(self._auxiliaries[which], turn, orders))
            seeds = np.random.SeedSequence([self.seed, step]).generate_state(self.batch_size)
            draws = [SeededIndex(item, int(seed)) for item, seed in zip(batch, seeds)]
            yield draws[self.rank :: self.world_size]

    def _draw(self, domain: int, position: int, orders: dict[int, tuple[int, np.ndarray]]) -> int:
        """The item at a position in the endless sequence of shuffled passes through a domain."""
        members = self._members[domain]
        number, place = divmod(position, len(members))
        if domain not in orders or orders[domain][0] != number:
            orders[domain] = (number, np.random.default_rng([self.seed, domain, number]).permutation(members))
        return int(orders[domain][1][place])
