"""Best fit on a histogram of lengths makes the very bins that are made item by item."""

import bisect

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dataset.best_fit import best_fit


def item_by_item(lengths: list[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing as it is written down: the bins that runs of old were made with."""
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (room left, bin), sorted
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[item]
        at = bisect.bisect_left(room, (length, -1))
        if at == len(room):
            left, number = capacity, len(bins)
            bins.append([])
        else:
            left, number = room.pop(at)
        bins[number].append(item)
        if left > length:
            bisect.insort(room, (left - length, number))
    return bins


def check(lengths, capacity):
    lengths = np.asarray(lengths)
    items, ends = best_fit(lengths, capacity)
    assert items.dtype == ends.dtype == np.int64
    starts = [0, *ends.tolist()]
    bins = [items[a:b].tolist() for a, b in zip(starts, ends.tolist(), strict=False)]
    assert bins == item_by_item(lengths.tolist(), capacity)
    assert starts[-1] == len(items)


@st.composite
def problems(draw):
    """(lengths, capacity): all lengths, a few different ones, small ones, or halves and wholes."""
    capacity = draw(st.integers(1, 64))
    kinds = [
        st.integers(1, capacity),
        st.sampled_from(draw(st.lists(st.integers(1, capacity), min_size=1, max_size=3))),
        st.integers(1, max(1, capacity // 8)),
        st.sampled_from([capacity, (capacity + 1) // 2, max(1, capacity // 3), 1]),
    ]
    return draw(st.lists(draw(st.sampled_from(kinds)), max_size=150)), capacity


@settings(max_examples=400, deadline=None)
@given(problems())
@example(([], 5))
@example(([1] * 20, 1))
@example(([7] * 20, 7))
@example(([1] * 50, 7))
@example(([6, 2, 4, 1, 3, 6, 5, 1, 1], 7))
def test_bins_are_those_of_one_item_after_the_other(problem):
    """The same bins in the same order, the same items in the same order in each."""
    lengths, capacity = problem
    check(np.array(lengths, np.int64), capacity)


@pytest.mark.parametrize("seed", range(20))
def test_many_items_with_a_heavy_tail(seed):
    """As conversations come: thousands, most of them short, of any integer type."""
    rng = np.random.default_rng(seed)
    capacity = [768, 2048, 255, 70_000][seed % 4]
    tail = rng.pareto(1, 3000) if seed % 2 else rng.lognormal(1, 1.5, 3000)
    lengths = np.clip(capacity / 60 * tail, 1, capacity)
    check(lengths.astype([np.int64, np.uint32, np.uint8, np.int32][seed % 4]), capacity)


@pytest.mark.parametrize("lengths", [[3, 0], [3, 8], [-1]])
def test_lengths_that_no_bin_takes_are_the_callers_mistake(lengths):
    with pytest.raises(AssertionError):
        best_fit(np.array(lengths), 7)
