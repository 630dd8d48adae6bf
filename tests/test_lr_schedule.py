"""The learning rate's schedules, against transformers'."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from transformers import get_wsd_schedule

from training import lr_schedule


def learning_rate(step, peak, warmup, total, min_ratio, schedule="cosine", decay_fraction=0.2):
    """The schedule with the flags as numbers."""
    args = SimpleNamespace(
        learning_rate=peak, warmup_steps=warmup, min_lr_ratio=min_ratio, lr_schedule=schedule,
        decay_fraction=decay_fraction,
    )  # fmt: skip
    return lr_schedule.learning_rate(step, total, args)


def theirs(steps, peak, **numbers):
    """Their learning rates of updates 0 to `steps`, one more than there are."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=peak)
    scheduler = get_wsd_schedule(optimizer, decay_type="linear", **numbers)
    rates = []
    for _ in range(steps + 1):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("total", "warmup", "fraction", "min_ratio"),
    [
        (steps, warmup, fraction, ratio)
        for (steps, warmup), fraction, ratio in itertools.product(
            [(100, 20), (101, 7), (12, 0), (1, 0), (20, 20)], [0.0, 0.1, 0.25, 0.8, 1.0], [0, 0.1]
        )
    ],
)
def test_wsd_equals_transformers(total, warmup, fraction, min_ratio):
    """Our update s has the rate of their update s + 1: our first is not 0, our last the least.

    They let the warmup begin at the least rate, we at 0: it is compared where that is the same.
    """
    decay = min(round(fraction * total), total - warmup)
    expected = theirs(
        total, 0.3, num_warmup_steps=warmup, num_decay_steps=decay, num_training_steps=total,
        min_lr_ratio=min_ratio,
    )[1:]  # fmt: skip
    if decay == 0:  # their last step is the least all the same
        expected[-1] = 0.3
    ours = [learning_rate(s, 0.3, warmup, total, min_ratio, "wsd", fraction) for s in range(total)]
    first = warmup if min_ratio else 0
    assert ours[first:] == pytest.approx(expected[first:], rel=1e-12)
    assert ours[:warmup] == pytest.approx([0.3 * (s + 1) / warmup for s in range(warmup)])


def test_a_run_can_be_made_longer():
    """wsd: until the shorter run's decay begins, both have the same rates."""
    short, long = (
        [learning_rate(s, 1e-3, 10, total, 0.1, "wsd", 0.2) for s in range(total)]
        for total in (100, 300)
    )
    assert short[:80] == long[:80] and short[80] < long[80] == 1e-3
    assert short[-1] == long[-1] == pytest.approx(1e-4)


def test_cosine_is_the_default():
    """Half a cosine from the first update after the warmup to the last."""
    rates = [learning_rate(s, 2.0, 4, 24, 0.1) for s in range(24)]
    assert rates == [learning_rate(s, 2.0, 4, 24, 0.1, "cosine", 0.5) for s in range(24)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    for step in range(4, 24):
        angle = math.pi * (step - 4) / 19
        assert rates[step] == pytest.approx(2.0 * (0.1 + 0.9 * (1 + math.cos(angle)) / 2))


def test_beyond_the_last_step():
    """A step after the last one, or a warmup longer than the run, is no error."""
    for schedule in ("cosine", "wsd"):
        assert learning_rate(30, 1.0, 5, 20, 0.1, schedule) == pytest.approx(0.1)
        assert learning_rate(3, 1.0, 100, 20, 0.1, schedule) == 0.04
