"""`UpdateSampler`: which rows every update consumes, whatever number of processes share the work.

The order of an epoch is a pure function of (seed, epoch). Update u consumes one *global block* of
G = accumulation_steps * world_size * batch_size rows, viewed as [accumulation_steps, world_size,
batch_size]: micro-batch m of rank r is block[m, r]. Resuming needs no more than (epoch, update).
"""

from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import Sampler


class UpdateSampler(Sampler[list[int]]):
    """A batch sampler for `DataLoader(dataset, batch_sampler=...)`: this rank's micro-batches.

    dataset_len         rows in the dataset
    loss_tokens_fn      int64 rows [n] -> int64 [n], the targets that count in each (0 for row -1)
    batch_size          rows in one micro-batch of one rank
    accumulation_steps  micro-batches in one update
    rank, world_size    which process this is, of how many
    seed                of the order, at least 0

    Every micro-batch has exactly batch_size rows. An epoch visits every row once; its last update
    is completed with the filler row -1. Raises ValueError for numbers out of range.
    """

    def __init__(
        self,
        dataset_len: int,
        loss_tokens_fn: Callable[[np.ndarray], np.ndarray],
        batch_size: int,
        accumulation_steps: int = 1,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
    ) -> None:
        if dataset_len < 1:
            raise ValueError(f"expected a dataset of at least 1 row, got {dataset_len}")
        if batch_size < 1:
            raise ValueError(f"--batch_size: expected at least 1 row, got {batch_size}")
        if accumulation_steps < 1:
            raise ValueError(f"--accumulation_steps: expected at least 1, got {accumulation_steps}")
        if seed < 0:
            raise ValueError(f"--seed: expected at least 0, got {seed}")
        assert 0 <= rank < world_size, (rank, world_size)
        self.dataset_len = dataset_len
        self.loss_tokens_fn = loss_tokens_fn
        self.block_shape = (accumulation_steps, world_size, batch_size)
        self.rank = rank
        self.seed = seed
        self.updates_per_epoch = -(-dataset_len // self.rows_per_update)
        self.set_position(epoch=0, first_update=0)

    @property
    def rows_per_update(self) -> int:
        """G, over all micro-batches and ranks."""
        return int(np.prod(self.block_shape))

    def set_position(self, epoch: int, first_update: int = 0) -> None:
        """Let the next iteration be that of `epoch`, from its update `first_update` (from 0) on.

        first_update = updates_per_epoch is the end of the epoch: nothing is left in it.
        """
        assert epoch >= 0 and 0 <= first_update <= self.updates_per_epoch, (epoch, first_update)
        self.epoch = epoch
        self.first_update = first_update
        self._blocks = None

    def _epoch_blocks(self) -> np.ndarray:
        """int32 or int64 [updates, accumulation_steps, world_size, batch_size]: the epoch's order.

        4 bytes a row (8 from 2³¹ rows on); 20 while it is made.
        """
        if self._blocks is None:
            # Sorting raw numbers gives the same order in every version of numpy, which promises
            # that only for the bit generator and not for Generator.permutation.
            random = np.random.PCG64([self.seed, self.epoch]).random_raw(self.dataset_len)
            order = np.argsort(random, kind="stable")
            del random
            dtype = np.int32 if self.dataset_len < 1 << 31 else np.int64
            blocks = np.full(self.updates_per_epoch * self.rows_per_update, -1, dtype)
            blocks[: self.dataset_len] = order
            self._blocks = blocks.reshape(self.updates_per_epoch, *self.block_shape)
        return self._blocks

    def __len__(self) -> int:
        """Micro-batches of this rank from the position to the end of the epoch."""
        return (self.updates_per_epoch - self.first_update) * self.block_shape[0]

    def __iter__(self) -> Iterator[list[int]]:
        for block in self._epoch_blocks()[self.first_update :]:
            yield from block[:, self.rank].tolist()

    def rows_in_update(self, update: int) -> list[int]:
        """The rows that update number `update` of the epoch is made of, over all ranks."""
        rows = self._epoch_blocks()[update].reshape(-1)
        return rows[rows >= 0].tolist()

    def tokens_in_update(self, update: int) -> int:
        """Targets that count in update number `update` of the epoch, over all ranks together.

        Every rank computes it by itself: the loss of an update is divided by it.
        """
        rows = self._epoch_blocks()[update].reshape(-1).astype(np.int64)
        return int(self.loss_tokens_fn(rows).sum())
