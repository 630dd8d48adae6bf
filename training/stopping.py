"""SIGTERM and SIGINT: finish the update, save, leave; every rank at the same update."""

from __future__ import annotations

import os
import signal
import sys
import time

import torch
import torch.distributed as dist

from training.distributed import Ranks

# torchrun passes on what a terminal or a batch system has sent to the whole process group: the
# same request comes twice
SAME_REQUEST_SECONDS = 2.0


class Stopping:
    """Turns the first SIGTERM or SIGINT into a request that all ranks agree on.

    Before `begin_training` a signal leaves at once, by SystemExit: there is nothing to save yet.
    After it the signal is noted, and `agree` tells every rank. A second signal, more than two
    seconds later, ends the process where it stands; checkpoints have their name only when they are
    complete, so it harms none.
    """

    def __init__(self, ranks: Ranks):
        self.ranks = ranks
        self.signal = 0  # what this process has been sent
        self.agreed = 0  # what all ranks know of
        self._is_training = False
        self._first = 0.0
        # a group of its own, on the CPU: asking never waits for a GPU
        self._group = dist.new_group(backend="gloo") if ranks.is_distributed else None
        signals = (signal.SIGTERM, signal.SIGINT)
        self._before = {number: signal.signal(number, self._note) for number in signals}

    def _note(self, number: int, _frame):
        now = time.monotonic()
        if self.signal and now - self._first > SAME_REQUEST_SECONDS:
            os._exit(128 + number)
        if not self.signal:
            self.signal, self._first = number, now
            if not self._is_training:
                print("stopped before the first update", file=sys.stderr)
                raise SystemExit(128 + number)

    def begin_training(self):
        """From here on a signal waits for the end of the update."""
        self._is_training = True

    def agree(self) -> bool:
        """Whether any rank has been asked to stop. Collective: call it on every rank."""
        if self._group is None:
            self.agreed = self.signal
        elif not self.agreed:
            request = torch.tensor(self.signal)
            dist.all_reduce(request, dist.ReduceOp.MAX, group=self._group)
            self.agreed = int(request)
        return self.agreed != 0

    def leave(self) -> int:
        """Give signals back to whoever had them. 128 + its number if one ended the run, else 0."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        return 128 + self.agreed if self.agreed else 0


def ignore_signals(_worker: int):
    """For loader processes: the main process decides when they end."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
