"""Which kinds of kernels a function's time goes to, as torch.profiler sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch._inductor.config
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

# kind: words in the names of its kernels, the first kind that fits counts
KINDS = {
    "attention kernels": ("flash", "fmha", "attention", "cudnn_generated", "flex"),
    "compiled loops": ("cpp_fused", "triton_poi", "triton_red", "triton_per"),
    "matrix products": ("mm", "gemm", "matmul", "linear", "packed_product", "nvjet", "triton_tem"),
    "memory copied": ("copy_", "memcpy", "memset"),
}
OTHER = "the rest"


def name_loops(device: torch.device):
    """Make the compiler put its loops' names into what it writes for a CPU: before compiling."""
    if device.type == "cpu":
        torch._inductor.config.cpp.enable_kernel_profile = True


def where_time_goes(step: Callable[[], object], device: torch.device, steps: int = 5) -> dict:
    """Shares of the time by kind of kernel, which add up to 1, and `seconds` of a step in all.

    On a GPU they are of the time in which a kernel runs. `idle`, not one of these shares, is then
    the part of a step's time in which none does.
    """
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    with profile(activities=activities) as profiler:
        for _ in range(steps):
            step()
        if cuda:
            torch.cuda.synchronize()
    return shares_of(profiler.events(), cuda, steps)


def shares_of(events: Sequence, cuda: bool, steps: int) -> dict:
    """What `where_time_goes` returns, from the profiler's events.

    On a GPU's timeline an annotation ("Optimizer.step") is an event, too, as long as all kernels in
    it: it is left out. On a CPU an event's own time is without that of the events in it.
    """
    totals = dict.fromkeys([*KINDS, OTHER], 0.0)
    for event in events:
        if (event.device_type == DeviceType.CUDA) != cuda or (cuda and event.is_user_annotation):
            continue
        microseconds = event.self_device_time_total if cuda else event.self_cpu_time_total
        totals[kind_of(event.name)] += microseconds
    busy = sum(totals.values())
    wall = max(e.time_range.end for e in events) - min(e.time_range.start for e in events)
    shares = {kind: total / busy for kind, total in totals.items()}
    if cuda:
        shares["idle"] = max(0.0, 1 - busy / wall)
    return shares | {"seconds": wall / steps / 1e6}


def kind_of(name: str) -> str:
    if name.startswith("## Call"):  # Python around a compiled graph; its hash may hold any letters
        return OTHER
    lower = name.lower()
    return next((kind for kind, words in KINDS.items() if any(w in lower for w in words)), OTHER)


def profile_line(shares: dict) -> str:
    """A profile as one line: the kinds that take one percent and more."""
    parts = [f"{share:.0%} {kind}" for kind, share in shares.items() if kind != "seconds"]
    shown = ", ".join(part for part in parts if not part.startswith("0%"))
    return f"{shown} ({shares['seconds'] * 1e3:,.1f} ms a run, with the profiler on)"
