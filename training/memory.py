"""Memory, before anything long begins: one micro-batch of the shape that all of them have.

A GPU that runs out says so, and the rest of the machine goes on. On a CPU the operating system ends
the process without a word: there the need of a few rows is measured and the rest is projected.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import torch
import torch.distributed as dist

from model.attention import LONGEST_BLOCKWISE
from training.checkpoint import trained
from training.compute import compiler
from training.distributed import Ranks
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
    on_cpu = ranks.device.type == "cpu"
    if not on_cpu and ranks.device.type != "cuda":
        return  # MPS: it does not say that it is out of memory
    fits = _projection(model, args, autocast, packed) if on_cpu else None
    for size in sizes:
        ok = fits(size) if on_cpu else _trial(model, size, args, ranks, autocast, packed)
        if _all_agree(ok, ranks):
            break
    else:
        raise ValueError(
            f"--max_seq_len {args.max_seq_len}: not even one row of so many tokens fits the memory "
            "of this device with the optimizer's state; lower it, or take a smaller model"
        )
    if not on_cpu and ranks.is_distributed:
        # what was compiled outside DistributedDataParallel would not overlap its sums with the
        # backward pass
        torch.compiler.reset()
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


def _all_agree(ok: bool, ranks: Ranks) -> bool:
    if not ranks.is_distributed:
        return ok
    answer = torch.tensor(float(ok), device=ranks.device)
    dist.all_reduce(answer, dist.ReduceOp.MIN)
    return bool(answer)


def _one_pass(model, rows: int, args, device, autocast, packed: bool):
    """Forward, loss, backward of a micro-batch [rows, T]; the gradients are dropped."""
    ids = torch.zeros(rows, args.max_seq_len, dtype=torch.int64, device=device)
    documents = (ids,) if packed else ()
    with autocast:
        logits, aux_loss = model(ids, *documents)
        loss = masked_cross_entropy(logits, ids, torch.ones_like(ids, dtype=torch.float32))
    (loss + aux_loss).backward()
    del logits, aux_loss, loss
    model.zero_grad(set_to_none=True)


def _trained_bytes(model) -> int:
    return sum(p.numel() * p.element_size() for _, p in trained(model))


def _trial(model, rows: int, args, ranks: Ranks, autocast, packed: bool) -> bool:
    """Whether a GPU has the memory: by trying, the optimizer's two moments set aside."""
    try:
        # two moments, and the buckets in which DistributedDataParallel sends the gradients
        count = _trained_bytes(model) * (3 if ranks.is_distributed else 2)
        aside = torch.empty(count, dtype=torch.uint8, device=ranks.device)
        compiled = compiler(args.compile, ranks.device, 0, args.cuda_graphs)(model)
        _one_pass(compiled, rows, args, ranks.device, autocast, packed)
    except torch.OutOfMemoryError:
        torch.compiler.reset()  # a model is compiled for eight shapes at most
        return False
    finally:
        aside = None  # noqa: F841 (free it before the cache is emptied)
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
    return True


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
