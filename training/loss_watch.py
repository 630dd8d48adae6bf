"""Every update's numbers: bad ones are counted, sudden rises reported, the rest averaged."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from training.state import RunState

# of the running mean and variance of the loss (exponential, over about 20 updates)
DECAY = 0.95
FIRST_UPDATES = 50  # before these nothing is usual yet
SPIKE_DEVIATIONS = 6.0  # a loss this many standard deviations above the mean,
SPIKE_NATS = 0.3  # and this much, is a spike


class LossWatch:
    """Judges every update by its loss and its gradient's norm, the same numbers on all ranks.

    What is logged are the means over all good updates since the last log line, each weighted with
    its targets (or pairs): the numbers of a single update mislead.

    The optimizer has skipped a bad one by itself (optimizers.skip_unless_finite). The numbers are
    read when the next update has been handed to the device, so that no GPU waits for Python.

    max_bad_steps  updates in a row that may be skipped; one more raises ValueError
    state          the RunState, saved with every checkpoint; holds what is remembered here
    log            RunLog, for the lines and for metrics.jsonl
    dataset, sampler  say which rows an update is made of, and where they come from
    """

    def __init__(self, max_bad_steps: int, state: RunState, log, dataset, sampler):
        self.max_bad_steps, self.log = max_bad_steps, log
        self.dataset, self.sampler = dataset, sampler
        self.state = state
        self._pending = None  # an update that has not been judged, its numbers on their way
        self._was_good = True

    def note(self, step: int, values: Tensor, grad_norm: Tensor, scaled: bool):
        """Judge the update before, and remember this one. `step` counts updates from 0.

        values           of the update, the loss first, on the device: [values], or a scalar
        grad_norm        a scalar on the device
        scaled           a GradScaler skips overflowing gradients itself and that is nothing
                         unusual; then the loss alone decides

        Raises ValueError after too many bad updates in a row.
        """
        self.settle()
        weight = self.sampler.tokens_in_update(step % self.sampler.updates_per_epoch)
        numbers, arrived = torch.cat((grad_norm.float().view(1), values.float().view(-1))), None
        if numbers.device.type == "cuda":
            on_host = torch.empty(len(numbers), pin_memory=True)
            numbers = on_host.copy_(numbers, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._pending = step, weight, numbers, arrived, scaled

    def settle(self) -> bool:
        """Judge what has not been judged; whether the last update was a good one."""
        if self._pending is not None:
            step, weight, numbers, arrived, scaled = self._pending
            self._pending = None
            if arrived is not None:
                arrived.synchronize()
            grad_norm, *values = numbers.tolist()
            self.state.has_learned |= grad_norm != 0
            self._was_good = self._judge(step, values[0], grad_norm, scaled)
            if self._was_good:
                self._add(weight, values)
        return self._was_good

    def means(self) -> list[float]:
        """The means of `note`'s values over the good updates since the last call.

        Call it when `settle` has said that the last update was a good one.
        """
        _, *means = self.state.since_log
        self.state.since_log = []
        return means

    def _add(self, weight: int, values: list[float]):
        total, *means = self.state.since_log or [0, *values]
        total += weight
        if len(means) != len(values):  # a checkpoint that somebody has edited
            total, means = weight, values
        # in this form the mean of one update is that update's value to the bit
        means = [m + (v - m) * (weight / total) for m, v in zip(means, values)]
        self.state.since_log = [total, *means]

    def _judge(self, step: int, loss: float, grad_norm: float, scaled: bool) -> bool:
        state = self.state
        if math.isfinite(loss) and (scaled or math.isfinite(grad_norm)):
            state.bad_in_a_row = 0
            self._look_for_spike(step, loss)
            return True
        state.bad_steps += 1
        state.bad_in_a_row += 1
        places = self._places(step)
        self.log.event(step + 1, "skipped", bad_steps=state.bad_steps, rows=places)
        what = f"loss {loss}, gradient norm {grad_norm}"
        self.log.say(f"update {step + 1} skipped: {what}; its rows: {shortened(places)}")
        if state.bad_in_a_row > self.max_bad_steps:
            raise ValueError(
                f"--max_bad_steps {self.max_bad_steps}: {state.bad_in_a_row} updates in a row "
                f"were not finite ({what}), the last one made of {shortened(places)}; the "
                "checkpoints hold the weights from before. Lower --learning_rate, or look at the "
                "data"
            )
        return False

    def _places(self, step: int) -> list[str]:
        """Where the rows of an update come from."""
        rows = self.sampler.rows_in_update(step % self.sampler.updates_per_epoch)
        return [self.dataset.place(row) for row in rows]

    def _look_for_spike(self, step: int, loss: float):
        mean, variance, count = self.state.usual_loss
        limit = mean + max(SPIKE_DEVIATIONS * math.sqrt(variance), SPIKE_NATS)
        if count >= FIRST_UPDATES and loss > limit:
            places = self._places(step)
            self.log.event(step + 1, "spike", spike_loss=loss, usual_loss=mean, rows=places)
            self.log.say(
                f"update {step + 1}: the loss is {loss:.3f}, where {mean:.3f} ± "
                f"{math.sqrt(variance):.3f} was usual; its rows: {shortened(places)}"
            )
        # the first updates count alike, later ones fade
        weight = max(1 / (count + 1), 1 - DECAY)
        difference = loss - mean
        mean += weight * difference
        variance = (1 - weight) * (variance + weight * difference**2)
        self.state.usual_loss = [mean, variance, count + 1]


def shortened(places: list[str], most: int = 4) -> str:
    """The first few of many places, and how many more there are."""
    more = f" and {len(places) - most:,} more" if len(places) > most else ""
    return ", ".join(places[:most]) + more
