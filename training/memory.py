"""Memory, before anything long begins: one micro-batch of the shape that all of them have.

A GPU that runs out says so, and the rest of the machine goes on. On a CPU the operating system ends
the process without a word: there the need of a few rows is measured and the rest is projected.
"""

from __future__ import annotations

import contextlib
import math
import os
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from model.attention import LONGEST_BLOCKWISE
from training.checkpoint import trained
from training.compute import compiler
from training.distributed import Ranks, data_parallel, gradient_sync
from training.losses import masked_cross_entropy

USABLE = 0.9  # share of the free memory that a projection may fill: it is an estimate
_PROC = Path("/proc/self")


def fit_memory(model, args, ranks: Ranks, autocast, packed: bool = False):
    """Try --batch_size rows of --max_seq_len tokens, forward and backward, before training.

    With --auto_batch the micro-batch becomes the largest that fits and divides the rows that a
    process has in an update, batch_size · accumulation_steps, and accumulation_steps what is left:
    the update stays the same but for the masks of dropout. Without it, ValueError if the
    micro-batch does not fit, with the numbers that would. All ranks agree. packed: rows hold
    several documents.

    The state of the optimizer is counted in; on a CPU the copy that a save takes is, too.
    """
    if args.fsdp:
        if args.auto_batch:
            raise ValueError("--auto_batch: not with --fsdp; choose --batch_size yourself")
        return  # a rank that fails alone would leave the others waiting in a gather
    rows = args.batch_size * args.accumulation_steps
    largest = rows if args.auto_batch else args.batch_size
    sizes = [n for n in range(largest, 0, -1) if rows % n == 0]
    if ranks.device.type == "cpu":
        fits = _projection(model, args, autocast, packed)
        size = _least(next(filter(fits, sizes), 0), ranks)
    elif ranks.device.type == "cuda":
        size = largest_by_trial(model, sizes, args, ranks, autocast, packed)
    else:
        return  # MPS: it does not say that it is out of memory
    if size == 0:
        raise ValueError(
            f"--max_seq_len {args.max_seq_len}: not even one row of so many tokens fits the memory "
            "of this device with the optimizer's state; lower it, or take a smaller model"
        )
    if size < args.batch_size and not args.auto_batch:
        without = " (without --cuda_graphs)" if args.cuda_graphs else ""
        raise ValueError(
            f"--batch_size {args.batch_size}: so many rows of {args.max_seq_len} tokens do not fit "
            f"the memory of this device; use --batch_size {size} --accumulation_steps "
            f"{rows // size} (the same update), or --auto_batch{without}"
        )
    args.batch_size, args.accumulation_steps = size, rows // size
    if args.auto_batch and ranks.is_main:
        print(f"--auto_batch: --batch_size {size} --accumulation_steps {rows // size}", flush=True)


def _least(number: int, ranks: Ranks) -> int:
    """The smallest of all ranks' numbers, on every rank."""
    if not ranks.is_distributed:
        return number
    smallest = torch.tensor(number, device=ranks.device)
    dist.all_reduce(smallest, dist.ReduceOp.MIN)
    return int(smallest)


def _one_pass(model, rows: int, args, device, autocast, packed: bool):
    """Forward, loss, backward of a micro-batch [rows, T]; the gradients are dropped."""
    ids = torch.zeros(rows, args.max_seq_len, dtype=torch.int64, device=device)
    # a tensor of its own: the compiler notes which of its inputs are one and the same
    documents = (torch.zeros_like(ids),) if packed else ()
    with autocast:
        logits, aux_loss = model(ids, *documents)
        loss = masked_cross_entropy(logits, ids, torch.ones_like(ids, dtype=torch.float32))
    (loss + aux_loss).backward()
    del logits, aux_loss, loss
    model.zero_grad(set_to_none=True)


def _trained_bytes(model) -> int:
    return sum(p.numel() * p.element_size() for _, p in trained(model))


def largest_by_trial(model, sizes: list[int], args, ranks: Ranks, autocast, packed: bool) -> int:
    """The largest of `sizes` (falling) that every rank's GPU has the memory for; 0 if none.

    What is tried is what training calls, so that training finds it compiled: a minute for every
    size. So --auto_batch begins with the size that uncompiled passes, which take more memory but
    no time, say fits; what this one takes, compiled, says whether to compile a larger one.
    """
    device, moments = ranks.device, 2 * _trained_bytes(model)  # of the optimizer
    compiled = compiler(args.compile, device, 0, args.cuda_graphs)(model)
    wrapped = data_parallel(compiled, ranks)

    def one_pass(rows: int, called=wrapped):
        with gradient_sync(wrapped, at_boundary=False):  # a rank that fails leaves none waiting
            _one_pass(called, rows, args, device, autocast, packed)

    def fits(rows: int) -> bool:
        try:
            aside = torch.empty(moments, dtype=torch.uint8, device=device)
            one_pass(rows)
            ok = 1
        except torch.OutOfMemoryError:
            ok = 0
        aside = None  # noqa: F841 (free it before the cache is emptied)
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        return _least(ok, ranks) == 1

    def projected(need) -> int:
        """The largest size whose need(rows) fits; the smallest if none does."""
        free = USABLE * free_gpu_bytes(device) - moments
        return _least(next((n for n in sizes if need(n) <= free), sizes[-1]), ranks)

    if args.compile is False:
        return next(filter(fits, sizes), 0)
    if not args.auto_batch:
        if fits(sizes[0]):
            return sizes[0]
        sizes = sizes[1:]  # one that can be recommended
    size = projected(_uncompiled_need(partial(one_pass, called=model), device)) if sizes else 0
    while size and not fits(size):
        torch.compiler.reset()  # a model is compiled for eight shapes at most
        sizes = [n for n in sizes if n < size]
        size = max(sizes, default=0)
    if size:
        need = gpu_peak_bytes(partial(one_pass, size), device) / size
        larger = projected(lambda rows: rows * need)
        if larger > size and fits(larger):
            return larger
    return size


def _uncompiled_need(one_pass, device):
    """A function rows -> bytes of a pass, from passes of one and two rows."""
    try:
        one, two = (gpu_peak_bytes(partial(one_pass, rows), device) for rows in (1, 2))
    except torch.OutOfMemoryError:
        return lambda rows: math.inf
    return lambda rows: one + (rows - 1) * (two - one)


def gpu_peak_bytes(function, device) -> int:
    """The most memory that tensors took while `function` ran, beside those there were before."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    function()
    return torch.cuda.max_memory_allocated(device) - before


def free_gpu_bytes(device) -> int:
    """Memory that tensors may still take on a GPU."""
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def _projection(model, args, autocast, packed: bool):
    """A function rows -> whether a CPU has the memory, from the peaks of one, two and four rows."""

    def peak(rows: int) -> int:
        return peak_bytes(lambda: _one_pass(model, rows, args, "cpu", autocast, packed))

    before, first = resident_bytes(), peak(1)
    # two moments for the optimizer, and weights and moments once more while a save is under way
    kept = 5 * _trained_bytes(model)
    free = USABLE * (free_bytes() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if not first or not free:
        return lambda rows: True  # a system that does not say
    one = first - before
    softmax = 0  # a compiled step keeps it for the backward pass; measured is one that does not
    if args.compile is not False and not args.activation_checkpointing:
        config, T = model.config, args.max_seq_len
        if T <= LONGEST_BLOCKWISE:
            softmax = 2 * T * T * config.num_attention_heads * config.num_hidden_layers
    if kept + args.batch_size * args.accumulation_steps * (one + softmax) <= free:
        return lambda rows: True  # far from the limit
    if kept + 4 * (one + softmax) > free:  # four rows might be too many to be tried
        return lambda rows: kept + rows * (one + softmax) <= free
    two, four = peak(2) - before, peak(4) - before
    per_row = max(four - two, 0) / 2
    return lambda rows: kept + max(one, two + (rows - 2) * per_row) + rows * softmax <= free


def peak_bytes(function) -> int:
    """The most memory this process has had, all together, while `function` ran.

    Linux alone (proc(5): clear_refs, VmHWM); elsewhere the function runs and the result is 0.
    """
    known = False
    with contextlib.suppress(OSError):
        (_PROC / "clear_refs").write_text("5")  # the peak starts again at the present size
        known = True
    function()
    return _status("VmHWM") if known else 0


def resident_bytes() -> int:
    """The memory this process has now; 0 where the system does not say (Linux does)."""
    return _status("VmRSS")


def _status(name: str) -> int:
    with contextlib.suppress(OSError):
        for line in (_PROC / "status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return 0


def free_bytes() -> int:
    """Memory this process may still take: the machine's, or its control group's; 0 if unknown."""
    free = []
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free.append(int(line.split()[1]) * 1024)
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError, KeyError):  # "max" is no number: no limit
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        cached = int(stat["active_file"]) + int(stat["inactive_file"])  # given back when needed
        free.append(limit - used + cached)
    return min(free, default=0)
