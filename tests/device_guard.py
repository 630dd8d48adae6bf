"""What would fail or wait on a GPU, found on a CPU: modes to run real code under.

On a CPU a tensor that was made without a device lies where all others lie, and reading a number
costs nothing. On a GPU the first is an error or a copy, and for the second Python waits until all
that it has handed to the device is done; then the device waits for Python.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode

REPOSITORY = Path(__file__).resolve().parent.parent
aten = torch.ops.aten

# Copies from Python's memory; with a device, too, since the copy is waited for.
FROM_PYTHON = {torch.tensor, torch.as_tensor, torch.asarray}
TO_PYTHON = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu}
# The host must know a number, or the size of the result, before it can go on.
WAITS = {
    aten._local_scalar_dense,  # item(), int(), `if tensor:`
    aten.equal,
    aten.nonzero,
    aten.masked_select,
    aten.bincount,
    aten._unique2,
    aten.unique_consecutive,
    aten.unique_dim,
}
INDEXING = {aten.index, aten.index_put, aten.index_put_}  # with a mask: by way of nonzero
# Reading data is the host's work: what is called from there does not count.
OF_THE_HOST = (REPOSITORY / "dataset", Path(torch.__file__).parent / "utils" / "data")
# why it may be
ALLOWED = {
    "training/loss_watch.py settle: tolist": "an earlier update's, by then in the host's memory",
    "training/distributed.py like: to, waiting": "Muon's updates lie on the device already",
}


def fault(lines: list[str], what: str, only_directly: bool = False):
    """Note `what` with the innermost frame of our own code, and whose code it called, if any.

    only_directly: not if other code stands in between.
    """
    frame, inner = sys._getframe(2), ""
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if any(map(file.is_relative_to, OF_THE_HOST)):
            return
        is_ours = file.is_relative_to(REPOSITORY) and "site-packages" not in file.parts
        if is_ours and file != Path(__file__):
            place = f"{file.relative_to(REPOSITORY)} {frame.f_code.co_name}: {what}"
            if place not in ALLOWED and not (inner and only_directly):
                lines.append(place + inner)
            return
        is_wrapper = file.name in (
            "_compile.py",
            "eval_frame.py",
        )  # torch's, of the modes themselves
        if not is_ours and not is_wrapper:
            inner = inner or f" in {file.name} {frame.f_code.co_name}"
        frame = frame.f_back


class MadeWithoutDevice(TorchFunctionMode):
    """Notes tensors that our own code makes without saying where, or copies in or out and waits.

    What torch's own functions make for themselves is their affair.
    """

    def __init__(self, lines: list[str]):
        super().__init__()
        self.lines = lines

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        is_pinned = kwargs.get("pin_memory")  # memory of the host, on purpose
        where = (*args[1:2], kwargs.get("device"))
        moves = func is torch.Tensor.to and any(isinstance(x, (torch.device, str)) for x in where)
        if moves and not kwargs.get("non_blocking"):
            fault(self.lines, "to, waiting", only_directly=True)
        elif func in FROM_PYTHON or func in TO_PYTHON:
            fault(self.lines, name, only_directly=True)
        elif func in _device_constructors() and kwargs.get("device") is None and not is_pinned:
            fault(self.lines, f"{name} without a device", only_directly=True)
        return func(*args, **kwargs)


class Waiting(TorchDispatchMode):
    """Notes operators for which Python would wait, called by our code or by what it has called.

    Code of torch in between excuses nothing: the GPU waits all the same.
    """

    def __init__(self, lines: list[str]):
        super().__init__()
        self.lines = lines

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        op = func.overloadpacket
        by_mask = op in INDEXING and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if op in WAITS or by_mask:
            fault(self.lines, f"{op.__name__}{' by a mask' if by_mask else ''}")
        return func(*args, **kwargs or {})


@contextmanager
def guarded(lines: list[str]) -> Iterator[None]:
    """Run the body and note in `lines` what of it would fail or wait on a GPU."""
    with MadeWithoutDevice(lines), Waiting(lines):
        yield
