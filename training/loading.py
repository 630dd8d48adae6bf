"""Micro-batches, from a dataset to the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from training.stopping import ignore_signals


def make_loader(
    dataset: Dataset, batch_sampler: Iterable[list[int]], device: torch.device, num_workers: int = 0
) -> DataLoader:
    """Batches of the dataset's rows, for a GPU in memory that it copies from by itself (pinned)."""
    return DataLoader(
        dataset, batch_sampler=batch_sampler, num_workers=num_workers,
        pin_memory=device.type == "cuda", worker_init_fn=ignore_signals,
    )  # fmt: skip


def on_device(batches: Iterable, device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    """Each batch on the device. Python does not wait for the copy, the device's next work does."""
    for batch in batches:
        yield tuple(tensor.to(device, non_blocking=True) for tensor in batch)
