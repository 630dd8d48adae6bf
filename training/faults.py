"""Faults of torch that a user can mend, in one line each."""

from __future__ import annotations

import torch

from model.compiler_cache import cache_folders


def fault_in_words(error: RuntimeError) -> str | None:
    """What to tell a user: out of memory, or its compiler's trouble; None: another error."""
    # torch.OutOfMemoryError of a GPU, or that of a CPU's allocator
    what = str(error).split("DefaultCPUAllocator: ")[-1].split(".")[0]
    if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in what:
        return (
            f"out of memory ({what}): halve --batch_size and double --accumulation_steps (the same "
            "update, but not with --cuda_graphs), or lower --max_seq_len, or take a smaller model"
        )
    cause = getattr(error, "inner_exception", None)
    if not isinstance(cause, (ImportError, OSError)) and type(cause).__name__ != "CppCompileError":
        return None
    lines = str(cause).strip().splitlines()
    what = next((line for line in lines if "error: " in line), lines[-1]).strip()
    kept = " and ".join(map(str, cache_folders()))
    return (
        f"torch's compiler failed ({what}): what it keeps may be damaged or the disk full, delete "
        f"{kept}; or go without it (--no-compile)"
    )
