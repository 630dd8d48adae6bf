"""Process group, ranks, device, reductions. One process without torchrun is rank 0 of 1."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Ranks:
    """Who this process is and where it computes."""

    rank: int  # among all processes
    local_rank: int  # on this machine
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        return self.world_size > 1


def init_distributed(device: str = "auto", deterministic: bool = False) -> Ranks:
    """Join the process group torchrun has prepared, if any (nccl on GPUs, gloo on CPUs).

    device: "auto" takes this rank's GPU where there is one, else the CPU; "cpu", "cuda", "cuda:1",
    "mps" are taken at their word. deterministic: kernels on a GPU that give the same bits every
    time, where there are such; others warn. Raises ValueError for a device that is not there.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        # for all threads and processes that compile; the next line says it to this thread alone
        os.environ.setdefault("TORCHINDUCTOR_DETERMINISTIC", "1")
        torch.use_deterministic_algorithms(True, warn_only=True)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = _device(device, local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world_size > 1:
        # Long, because the other ranks wait here while rank 0 tokenises; a rank that dies takes
        # the run down through torchrun, not through this timeout.
        _init_process_group("nccl" if chosen.type == "cuda" else "gloo", timedelta(hours=24))
        _end_with_the_launcher()
    return Ranks(int(os.environ.get("RANK", "0")), local_rank, world_size, chosen)


def _init_process_group(backend: str, timeout: timedelta):
    """dist.init_process_group, under names of this start's own.

    torchrun (2.13) keeps one store for all restarts of a run on one machine. There the ranks would
    find the addresses of their predecessors and wait for them. On several machines each counts its
    restarts for itself; a new store for every start is what docs/distributed.md asks for there.
    """
    store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        store = dist.PrefixStore(f"start {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)


def _end_with_the_launcher():
    """On Linux: SIGTERM to this process when torchrun is gone, however it ended (prctl(2)).

    A launcher killed with SIGKILL can tell its ranks nothing; they would train on, unseen, beside
    the run that is started next.
    """
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device {name}: expected auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda":
        index = local_rank if device.index is None else device.index
        if index >= torch.cuda.device_count():
            raise ValueError(f"--device {name}: {torch.cuda.device_count()} CUDA devices are here")
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("--device mps: no such device here")
    if device.type not in ("cpu", "mps"):
        raise ValueError(f"--device {name}: expected auto, cpu, cuda, cuda:N or mps")
    return device


@contextmanager
def local_main_first(ranks: Ranks):
    """The body runs on each machine's first rank, then on its others: one builds, all reuse."""
    if ranks.is_distributed and ranks.local_rank != 0:
        dist.barrier()
    yield
    if ranks.is_distributed and ranks.local_rank == 0:
        dist.barrier()


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The element-wise sum over all processes, in place; the tensor itself with one process."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def seed_dropout(seed: int, step: int, micro_step: int, rank: int):
    """Seed the generator that dropout draws from, as a pure function of the micro-batch.

    So a resumed run draws what an uninterrupted one would have, with no generator state to save.
    """
    entropy = np.random.SeedSequence((seed, step, micro_step, rank))
    torch.manual_seed(int(entropy.generate_state(1)[0]))


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of one that --fsdp has sharded (collective); any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """`tensor`, full on every rank, on the parameter's device and sharded as the parameter is.

    Scalars, such as AdamW's `step`, are never sharded.
    """
    tensor = tensor.to(parameter.device)
    if isinstance(parameter, DTensor) and tensor.ndim:
        mesh, placements = parameter.device_mesh, parameter.placements
        return distribute_tensor(tensor, mesh, placements, src_data_rank=None)
    return tensor


def building_device(ranks: Ranks, fsdp: bool) -> torch.device:
    """Where a model's weights are made or loaded, before they go to the ranks' devices: the CPU.

    With --fsdp on the first rank alone; the others build the same model without memory ("meta"). So
    a model that no single device could hold needs the memory of one CPU, once.
    """
    return torch.device("meta" if fsdp and not ranks.is_main else "cpu")


def shard(model: nn.Module, ranks: Ranks, args) -> nn.Module:
    """--fsdp: every rank keeps its part of parameters, gradients and optimizer state (FSDP2).

    The weights are the first rank's and are handed out tensor by tensor. A layer is gathered while
    it computes. Raises ValueError for what does not go together with it. Returns the model.
    """
    if not ranks.is_distributed:
        raise ValueError("--fsdp: there is one process; start it with torchrun")
    if args.dtype == "float16":
        raise ValueError("--fsdp: use --dtype bfloat16; float16 needs a scaler for shards")
    weights = {name: p.detach() for name, p in model.named_parameters()} if ranks.is_main else {}
    is_tied = model.config.tie_word_embeddings
    model.to("meta")
    if is_tied:  # moving has made two parameters of one
        model.lm_head.weight = model.model.embed_tokens.weight
    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    # else embedding and head stay whole after an evaluation, and are not what the optimizer knows
    fully_shard(model, mesh=mesh, reshard_after_forward=True)

    shards = {}
    for name, parameter in model.named_parameters():
        tensor = weights.pop(name, None)
        if tensor is None:
            tensor = torch.empty(parameter.shape, dtype=parameter.dtype)
        tensor = tensor.to(ranks.device)
        shards[name] = distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
    if is_tied:
        shards["lm_head.weight"] = shards["model.embed_tokens.weight"]
    model.load_state_dict(shards, assign=True)
    if is_tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.make_buffers(ranks.device)
    return model


def data_parallel(module: nn.Module, ranks: Ranks) -> nn.Module:
    """The module with its gradients averaged over the ranks; itself where there is one process.

    Buffers stay each rank's own: they are the same everywhere, or, as the experts' loads, what this
    rank's rows have come to. Gradients lie where they are sent from, not once more beside it.
    """
    if not ranks.is_distributed:
        return module
    wrapped = DistributedDataParallel(module, gradient_as_bucket_view=True)
    wrapped.broadcast_buffers = False  # torch 2.13 calls the argument forward_sync_buffers
    return wrapped


@contextmanager
def gradient_sync(wrapped, at_boundary: bool):
    """Around forward and backward: ranks share gradients at the accumulation boundary alone."""
    if isinstance(wrapped, DistributedDataParallel) and not at_boundary:
        with wrapped.no_sync():
            yield
        return
    module = getattr(wrapped, "_orig_mod", wrapped)  # under torch.compile's wrapper
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(at_boundary)
    yield


def shutdown():
    """Leave the process group. Whatever was wrapped in DistributedDataParallel must be gone before.

    Else its reducer frees the last reference to the group, with Python's lock held, and waits for
    gloo's threads, which may be waiting for that lock to free a tensor: one run in six hung.
    """
    if dist.is_initialized():
        gc.collect()
        dist.barrier()
        dist.destroy_process_group()
