"""Batches reach a GPU from pinned memory, by copies that nobody waits for."""

import re
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

from training.loading import make_loader, on_device

REPOSITORY = Path(__file__).resolve().parent.parent
DATASET = [(torch.tensor([i]), torch.tensor([i + 0.5])) for i in range(4)]


def test_batches_are_pinned_and_sent_without_waiting():
    """Pinned for a GPU, where it matters; every copy is a non-blocking one."""
    for device, pinned in (("cpu", False), ("cuda", True)):
        loader = make_loader(DATASET, [[0, 1], [2, 3]], torch.device(device), num_workers=1)
        assert loader.pin_memory is pinned and loader.num_workers == 1

    waited = []

    class Copies(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is torch.Tensor.to:
                waited.append(not kwargs["non_blocking"])
            return func(*args, **kwargs or {})

    loader = make_loader(DATASET, [[0, 1], [2, 3]], torch.device("cpu"))
    with Copies():
        batches = list(on_device(loader, torch.device("meta")))
    assert waited == [False] * 4
    assert all(t.is_meta and len(t) == 2 for batch in batches for t in batch)
    assert [x.tolist() for x, _ in on_device(loader, torch.device("cpu"))] == [
        [[0], [1]],
        [[2], [3]],
    ]


def test_there_is_one_way_to_the_device():
    """No other file of training/, no script makes a loader of its own."""
    files = [*REPOSITORY.glob("training/*.py"), *REPOSITORY.glob("*.py")]
    made = [f.name for f in files if re.search(r"\bDataLoader\(", f.read_text(encoding="utf-8"))]
    assert made == ["loading.py"]
