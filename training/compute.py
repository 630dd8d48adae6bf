"""How a step is computed: its precision, compiled or not, as CUDA graphs or kernel by kernel."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import torch

from model.compiler_cache import remove_unfinished
from model.config import LMConfig
from training.distributed import Ranks

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
LONG_RUN = 1000  # optimizer steps from which compiling pays on a CPU


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of autocast for --dtype; "auto" is the fastest one that needs no loss scaling.

    bfloat16 on GPUs that have it and on CPUs with instructions for it (AMX, AVX512-BF16: several
    times float32), else float32: without them a CPU emulates bfloat16 at a fraction of the speed.
    """
    if name != "auto":
        return DTYPES[name]
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    if device.type == "cpu" and torch.backends.mkldnn.is_available() and _cpu_has_bf16():
        return torch.bfloat16
    return torch.float32


@cache
def _cpu_has_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


def compiler(
    flag: bool | None, device: torch.device, total_steps: int, cuda_graphs: bool = False
) -> Callable:
    """torch.compile for --compile, or a function that gives back what it gets.

    None compiles on CUDA where there is Triton (torch's wheels for Windows have none), and on a CPU
    where the run is long enough to win back the time that compiling takes and there is a C++
    compiler. dynamic=False: batches have one shape, and graphs made for it are faster than graphs
    for any. cuda_graphs: kernels are launched together, as recorded; worth it where launching them
    one by one takes longer than they do.
    """
    if flag is None:
        found = any(shutil.which(name) for name in ("g++", "c++", "clang++", "cl"))
        long_on_cpu = device.type == "cpu" and total_steps >= LONG_RUN and found
        flag = long_on_cpu or (device.type == "cuda" and find_spec("triton") is not None)
    if not flag:
        return lambda function: function
    remove_unfinished()
    mode = "reduce-overhead" if cuda_graphs else None
    return partial(torch.compile, dynamic=False, mode=mode)


def check_cuda_graphs(args: argparse.Namespace, ranks: Ranks, config: LMConfig):
    """ValueError if --cuda_graphs contradicts another flag.

    Gradients of one micro-batch would lie where the next one's graph writes its own, collectives
    are not part of a graph, and experts in one have not been tried.
    """
    if not args.cuda_graphs:
        return
    if ranks.device.type != "cuda":
        raise ValueError(f"--cuda_graphs: the device is {ranks.device}")
    if args.compile is False:
        raise ValueError("--cuda_graphs: not with --no-compile, the compiler makes them")
    if args.accumulation_steps > 1 or args.auto_batch:
        raise ValueError("--cuda_graphs: not with --accumulation_steps above 1 or --auto_batch")
    if config.use_moe:
        raise ValueError("--cuda_graphs: not with experts")
    if ranks.is_distributed:
        raise ValueError("--cuda_graphs: for one process")
