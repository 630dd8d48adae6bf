"""The order of rows depends on seed and epoch alone, and every row comes once an epoch."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from dataset.packing import whole_stream
from dataset.pretrain import PretrainDataset
from dataset.sampler import UpdateSampler
from tests.test_packing import FakeFile


def dataset_of(num_tokens: int, T: int = 4) -> PretrainDataset:
    """A dataset whose stream is the tokens 10, 11, 12, ... (all different) and one eos."""
    return PretrainDataset(whole_stream([FakeFile([(1, range(10, 9 + num_tokens))])]), T)


def samplers(dataset, batch_size, accumulation_steps, world_size, seed=7):
    return [
        UpdateSampler(
            len(dataset),
            dataset.loss_tokens,
            batch_size,
            accumulation_steps,
            rank,
            world_size,
            seed,
        )
        for rank in range(world_size)
    ]


# (batch_size, accumulation_steps, world_size), all with 12 rows an update
SPLITS = [(12, 1, 1), (1, 12, 1), (3, 4, 1), (6, 1, 2), (2, 3, 2), (4, 1, 3), (1, 4, 3)]


def updates(dataset, split, epoch, first_update=0):
    """For every update of the epoch: the set of rows that all ranks use in it."""
    ranks = samplers(dataset, *split)
    for sampler in ranks:
        sampler.set_position(epoch, first_update)
    micro_batches = [list(sampler) for sampler in ranks]
    batch_size, accumulation_steps, _ = split
    assert all(len(rows) == batch_size for batches in micro_batches for rows in batches)
    assert {len(batches) for batches in micro_batches} == {len(ranks[0])}
    per_update = []
    for start in range(0, len(micro_batches[0]), accumulation_steps):
        rows = [
            row
            for batches in micro_batches
            for micro_batch in batches[start : start + accumulation_steps]
            for row in micro_batch
        ]
        per_update.append(Counter(rows))
    return per_update


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_every_token_is_a_target_once_an_epoch(split):
    """Over 3 epochs every token of the stream is an unmasked target exactly 3 times, through a
    DataLoader, whatever the number of ranks and the split into micro-batches."""
    dataset = dataset_of(num_tokens=101)  # 26 rows: 3 updates of 12, the last one filled up
    seen = Counter()
    for sampler in samplers(dataset, *split):
        loader = DataLoader(dataset, batch_sampler=sampler)
        for epoch in range(3):
            sampler.set_position(epoch)
            for X, Y, loss_mask in loader:
                assert X.shape == Y.shape == loss_mask.shape == (split[0], 4)
                seen.update(Y[loss_mask > 0].tolist())
    assert seen == Counter({token: 3 for token in [*range(10, 110), 9]})


def test_the_order_does_not_depend_on_the_number_of_processes():
    """Every update of every epoch uses the same rows for each split of its 12 rows."""
    dataset = dataset_of(num_tokens=101)
    for epoch in range(3):
        expected = updates(dataset, SPLITS[0], epoch)
        assert len(expected) == 3 and expected[-1][-1] == 10  # 26 rows and 10 fillers
        for split in SPLITS[1:]:
            assert updates(dataset, split, epoch) == expected


def test_a_micro_batch_is_a_slice_of_the_block():
    """Micro-batch m of rank r is block[m, r], the block being [accumulation, world, batch]."""
    dataset = dataset_of(num_tokens=48 * 4)
    (whole,) = samplers(dataset, 48, 1, 1)[0]
    block = np.array(whole).reshape(4, 3, 4)
    for rank, sampler in enumerate(samplers(dataset, 4, 4, 3)):
        assert list(sampler) == block[:, rank].tolist()


def test_the_order_is_a_function_of_seed_and_epoch():
    """The same (seed, epoch) gives the same order in a new sampler; another one, another order."""
    dataset = dataset_of(num_tokens=400)
    orders = {}
    for seed in (0, 1):
        for epoch in (0, 1):
            for _ in range(2):
                sampler = samplers(dataset, 10, 1, 1, seed)[0]
                sampler.set_position(epoch)
                order = tuple(row for batch in sampler for row in batch)
                assert orders.setdefault((seed, epoch), order) == order
                assert sorted(order) == list(range(100)) != list(order)
    assert len(set(orders.values())) == 4


def test_the_order_is_pinned():
    """This order stays what it is: a changed one would break resuming older runs."""
    sampler = UpdateSampler(10, lambda rows: rows, batch_size=10, seed=42)
    assert list(sampler) == [ORDER_42_0]
    sampler.set_position(epoch=1)
    assert list(sampler) == [ORDER_42_1]


ORDER_42_0 = [4, 8, 1, 9, 3, 6, 0, 7, 2, 5]
ORDER_42_1 = [1, 2, 8, 5, 3, 9, 6, 0, 4, 7]


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_resuming_continues_with_the_next_update(split):
    """From (epoch, update) on the updates are those of an uninterrupted epoch, for any split."""
    dataset = dataset_of(num_tokens=301)
    whole = updates(dataset, SPLITS[0], epoch=1)
    for first_update in range(len(whole) + 1):
        assert updates(dataset, split, 1, first_update) == whole[first_update:]


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_every_rank_knows_the_tokens_of_an_update(split):
    """tokens_in_update is the sum of the masks of all ranks' micro-batches of that update."""
    dataset = dataset_of(num_tokens=101)
    masks = []
    for sampler in samplers(dataset, *split):
        sampler.set_position(2)
        per_batch = [int(mask.sum()) for _, _, mask in DataLoader(dataset, batch_sampler=sampler)]
        masks.append(np.array(per_batch).reshape(-1, split[1]).sum(axis=1))
    for sampler in samplers(dataset, *split):
        sampler.set_position(2)
        counted = [sampler.tokens_in_update(u) for u in range(sampler.updates_per_epoch)]
        assert counted == sum(masks).tolist() and sum(counted) == 101


def test_loader_processes_change_nothing():
    """With worker processes the batches are the same and come in the same order."""
    dataset = dataset_of(num_tokens=101)
    one, two = (samplers(dataset, 3, 2, 1)[0] for _ in range(2))
    alone = DataLoader(dataset, batch_sampler=one)
    helped = DataLoader(dataset, batch_sampler=two, num_workers=2)
    assert len(alone) == len(helped) == 10  # 26 rows are 5 updates of 2 micro-batches
    for batches in zip(alone, helped, strict=True):
        assert all(map(torch.equal, *batches))


def test_numbers_out_of_range_are_errors():
    """Nothing to sample, no rows in a batch, no micro-batches, a negative seed: ValueError."""
    good = {"dataset_len": 1, "loss_tokens_fn": len, "batch_size": 1}
    UpdateSampler(**good)
    for name, value in (("dataset_len", 0), ("batch_size", 0), ("accumulation_steps", 0)):
        with pytest.raises(ValueError, match=r"at least 1.*got 0"):
            UpdateSampler(**{**good, name: value})
    with pytest.raises(ValueError, match="--seed"):
        UpdateSampler(**good, seed=-1)


def test_an_order_is_kept_in_four_bytes_a_row():
    """And made in 16 beside what sorting takes, so that 10 million rows are 40 MB in each rank."""
    num_rows = 500_000
    sampler = UpdateSampler(num_rows, len, batch_size=8)
    tracemalloc.start()
    first = sampler.rows_in_update(0)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(set(first)) == 8
    assert kept < 4.1 * num_rows and peak < 16.1 * num_rows
