from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

__all__ = ["DomainBalancedSampler"]


class DomainBalancedSampler(Sampler[list[int]]):
    """
    Batch sampler with a fixed share of primary samples, the rest drawn evenly from the auxiliary domains.

    The auxiliary places of all batches go round the auxiliary domains in turn, however unequal their sizes. Each
    domain is drawn in shuffled passes: every sample once before any a second time. Turns and passes run on from epoch
    to epoch, yet each epoch follows from (seed, epoch) alone, so a resumed run continues exactly. Without
    auxiliary domains all samples are primary.

    Call :meth:`set_epoch` before each epoch; otherwise every epoch has the same batches.

    With several processes, ``batch_size`` is that of one process, the batch of all processes together is balanced,
    and it is the batch that one process would draw with ``world_size * batch_size``.

    Args:
        domains: domain index of every item of the data set, 0 is the primary.
        batch_size: samples per batch and process.
        batches_per_epoch: batches per epoch and process.
        primary_share: share of the primary domain in each batch, rounded to whole samples.
        seed: seed of the order.
        rank: number of this process.
        world_size: number of processes.

    Raises:
        ValueError: when no item is primary, or when the share leaves no place in the batch for primary or for
            auxiliary samples.
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
        of_item = np.asarray(domains, dtype=int)
        self._members = {int(domain): np.flatnonzero(of_item == domain) for domain in np.unique(of_item)}
        self._auxiliaries = [domain for domain in self._members if domain != 0]
        if 0 not in self._members:
            raise ValueError(f"domains has no item of the primary domain (index 0) among {len(of_item)} items.")
        total = batch_size * world_size
        self._primaries = int(primary_share * total + 0.5) if self._auxiliaries else total
        if self._auxiliaries and not 0 < self._primaries < total:
            kind = "primary" if self._primaries <= 0 else "auxiliary"
            raise ValueError(
                f"primary_share {primary_share} of a batch of {total} (batch_size {batch_size} x {world_size} "
                f"processes) leaves no place for {kind} samples; change primary_share or batch_size."
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
            others = self.batch_size * self.world_size - self._primaries
            for place in range(step * others, (step + 1) * others):
                turn, which = divmod(place, len(self._auxiliaries))
                batch.append(self._draw(self._auxiliaries[which], turn, orders))
            yield batch[self.rank :: self.world_size]

    def _draw(self, domain: int, position: int, orders: dict[int, tuple[int, np.ndarray]]) -> int:
        """The item at a position in the endless sequence of shuffled passes through a domain."""
        members = self._members[domain]
        number, place = divmod(position, len(members))
        if domain not in orders or orders[domain][0] != number:
            orders[domain] = (number, np.random.default_rng([self.seed, domain, number]).permutation(members))
        return int(orders[domain][1][place])
