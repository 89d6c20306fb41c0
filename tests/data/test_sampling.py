from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from monai.data import Dataset
from monai.transforms import RandGaussianNoise
from scripts.data.sampling import DomainBalancedSampler, SeededDataset
from torch.utils.data import DataLoader

sizes = st.lists(st.integers(1, 23), min_size=2, max_size=5)  # of the domains, the primary's first


def domains_of(counts):
    return [domain for domain, count in enumerate(counts) for _ in range(count)]


def epochs(sampler, *numbers):
    for number in numbers:
        sampler.set_epoch(number)
        yield from sampler


@given(sizes, st.integers(2, 12), st.integers(1, 6), st.integers(0, 40))
def test_every_batch_has_the_primary_share(counts, batch_size, length, epoch):
    domains = domains_of(counts)
    sampler = DomainBalancedSampler(domains, batch_size, length, primary_share=0.5)
    batches = list(epochs(sampler, epoch))
    assert len(batches) == len(sampler) == length
    for batch in batches:
        assert len(batch) == batch_size
        assert sum(domains[item] == 0 for item in batch) == int(batch_size / 2 + 0.5)


@given(sizes, st.integers(2, 12), st.integers(1, 6), st.integers(1, 5))
def test_auxiliary_domains_are_drawn_evenly_however_unequal(counts, batch_size, length, last):
    domains = domains_of(counts)
    sampler = DomainBalancedSampler(domains, batch_size, length)
    seen = Counter(domains[item] for batch in epochs(sampler, *range(last)) for item in batch)
    drawn = [seen[domain] for domain in range(1, len(counts))]
    assert max(drawn) - min(drawn) <= 1


@given(sizes, st.integers(2, 8), st.integers(1, 6))
def test_no_sample_comes_again_before_all_of_its_domain(counts, batch_size, length):
    domains = domains_of(counts)
    sampler = DomainBalancedSampler(domains, batch_size, length)
    drawn = [item for batch in epochs(sampler, *range(8)) for item in batch]
    for domain, count in enumerate(counts):
        order = [item for item in drawn if domains[item] == domain]
        for start in range(0, len(order) - count + 1, count):
            assert len(set(order[start : start + count])) == count


@given(sizes, st.integers(0, 100), st.integers(0, 9))
def test_an_epoch_follows_from_seed_and_epoch_alone(counts, seed, epoch):
    domains = domains_of(counts)
    running = DomainBalancedSampler(domains, 4, 3, seed=seed)
    for number in range(epoch + 1):
        running.set_epoch(number)
        last = list(running)
    resumed = DomainBalancedSampler(domains, 4, 3, seed=seed)
    resumed.set_epoch(epoch)
    assert list(resumed) == last
    assert list(resumed) == last, "iterating twice gives the same batches"


def test_every_pass_has_an_order_of_its_own():
    first, second = DomainBalancedSampler([0] * 50, 50, 2)
    assert set(first) == set(second) and first != second


def test_epochs_and_seeds_differ():
    domains = domains_of([50, 50])
    sampler = DomainBalancedSampler(domains, 8, 4, seed=1)
    first, second = list(epochs(sampler, 0)), list(epochs(sampler, 1))
    assert first != second
    assert first != list(DomainBalancedSampler(domains, 8, 4, seed=2))


@given(sizes, st.integers(1, 4), st.integers(2, 4), st.integers(0, 5))
def test_ranks_share_out_the_batch_of_one_process(counts, batch_size, world_size, epoch):
    domains = domains_of(counts)
    whole = list(epochs(DomainBalancedSampler(domains, batch_size * world_size, 3), epoch))
    ranks = [
        list(
            epochs(DomainBalancedSampler(domains, batch_size * world_size, 3, rank=rank, world_size=world_size), epoch)
        )
        for rank in range(world_size)
    ]
    for step, batch in enumerate(whole):
        assert all(len(rank[step]) == batch_size for rank in ranks)
        shared = [(item, item.seed) for rank in ranks for item in rank[step]]
        assert Counter(shared) == Counter((item, item.seed) for item in batch), "and the same random transforms"


def test_ranks_are_disjoint_where_domains_are_large():
    domains = domains_of([100, 100])
    ranks = [DomainBalancedSampler(domains, 12, 5, rank=rank, world_size=3) for rank in range(3)]
    seen = [item for sampler in ranks for batch in sampler for item in batch]
    assert len(seen) == len(set(seen)) == 60


def test_without_auxiliary_domains_all_samples_are_primary():
    sampler = DomainBalancedSampler([0] * 5, 4, 10, primary_share=0.1)
    assert Counter(item for batch in sampler for item in batch) == dict.fromkeys(range(5), 8)
    assert [len(batch) for batch in DomainBalancedSampler([0] * 5, 1, 3)] == [1, 1, 1]


@pytest.mark.parametrize("share, batch_size, kind", [(0.0, 4, "primary"), (0.1, 4, "primary"), (0.9, 4, "auxiliary")])
def test_a_share_that_leaves_out_a_side_is_refused(share, batch_size, kind):
    with pytest.raises(
        ValueError, match=f"primary_share {share} of batch_size {batch_size} leaves no place for {kind} "
    ):
        DomainBalancedSampler([0, 1, 2], batch_size, 1, primary_share=share)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"domains": [1, 2]}, "primary domain"),
        ({"domains": []}, "primary domain"),
        ({"batch_size": 0}, "batch_size and batches_per_epoch must be at least 1"),
        ({"batches_per_epoch": 0}, "batches_per_epoch"),
        ({"rank": 2, "world_size": 2}, "rank"),
        ({"batch_size": 3, "world_size": 2}, "batch_size 3 must be a multiple of the number of processes, 2"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DomainBalancedSampler(**{"domains": [0, 1], "batch_size": 2, "batches_per_epoch": 1, **arguments})


def test_it_is_a_batch_sampler_of_a_data_loader():
    domains = domains_of([3, 9, 2])
    loader = DataLoader(domains, batch_sampler=DomainBalancedSampler(domains, 6, 4))
    assert [(batch == 0).sum().item() for batch in loader] == [3] * 4


@pytest.mark.parametrize("workers", [0, 2])
def test_random_transforms_follow_the_draw_whatever_came_before(workers):
    items = np.zeros((6, 1, 2, 2), dtype=np.float32)
    dataset = SeededDataset(Dataset(items, RandGaussianNoise(prob=1.0)))
    sampler = DomainBalancedSampler([0, 0, 0, 1, 1, 1], 4, 3)
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=workers)
    alone = [np.stack([np.asarray(dataset[draw]) for draw in reversed(batch)])[::-1] for batch in sampler]
    loaded = [np.asarray(batch) for batch in loader]
    assert all(np.array_equal(one, other) for one, other in zip(alone, loaded, strict=True))
    assert len(np.unique(np.stack(alone))) == np.stack(alone).size, "no draw repeats another's noise"
