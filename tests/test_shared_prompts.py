"""Rows in which completions of one prompt share it."""

import random

import pytest

from dataset.best_fit import best_fit
from dataset.shared_prompts import rows_of_groups


def tokens_of(row, before, lengths):
    return sum(before[members[0]] + sum(lengths[i] for i in members) for members in row)


@pytest.mark.parametrize("seed", range(20))
def test_every_completion_is_in_one_row_with_its_prompt(seed):
    """None is left out, no row is too long, none that shares a prompt belongs to another group."""
    draw = random.Random(seed)
    groups, before, lengths, capacity = [], [], [], draw.choice([40, 64, 200])
    for group in range(draw.randrange(1, 30)):
        prompt = draw.randrange(0, 20)
        for _ in range(draw.randrange(1, 12)):
            groups.append(group)
            before.append(prompt)
            lengths.append(draw.randrange(1, 20))
    rows = rows_of_groups(groups, before, lengths, capacity)
    numbers = [i for row in rows for members in row for i in members]
    assert sorted(numbers) == list(range(len(groups)))
    for row in rows:
        assert 0 < tokens_of(row, before, lengths) <= capacity
        told = [{groups[i] for i in members} for members in row]
        assert all(len(one) == 1 for one in told) and len(set.union(*told)) == len(told)
    assert rows == rows_of_groups(groups, before, lengths, capacity)


def test_a_prompt_stands_once_where_its_group_fits():
    """Groups of 8 with prompts as long as twice a completion: few prompts are told twice."""
    draw = random.Random(0)
    groups = [i // 8 for i in range(8 * 64)]
    before, lengths = [20] * len(groups), [draw.randrange(6, 14) for _ in groups]
    rows = rows_of_groups(groups, before, lengths, 256)
    prompts = sum(len(row) for row in rows)
    assert 64 <= prompts < 1.6 * 64
    assert sum(tokens_of(row, before, lengths) for row in rows) > 0.9 * 256 * len(rows)
    alone = len(best_fit([20 + n for n in lengths], 256)[1])
    assert len(rows) < 0.5 * alone


def test_groups_of_one_are_packed_as_best_fit_does():
    """As few rows, each as full, in the order of their lengths."""
    draw = random.Random(1)
    lengths = [draw.randrange(1, 60) for _ in range(300)]
    rows = rows_of_groups(range(300), [0] * 300, lengths, 64)
    items, ends = best_fit(lengths, 64)
    assert len(rows) == len(ends)
    filled = [items[begin:end] for begin, end in zip([0, *ends], ends)]
    assert [[i for (i,) in row] for row in rows] == [list(row) for row in filled]


def test_of_what_does_not_fit_at_once_the_longest_goes_first():
    """20 of room: the prompt of 4 with 9 and 7; the rest, 6 and 5, gets it again."""
    rows = rows_of_groups("aaaa", [4] * 4, [6, 9, 5, 7], 20)
    assert rows == [[[1, 3]], [[0, 2]]]
    assert rows_of_groups([], [], [], 20) == []
