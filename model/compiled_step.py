"""The step of one token per row as one compiled function, for the engine.

Shapes in this file:
    B  rows    V  vocab_size
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from model.compiler_cache import remove_unfinished
from model.generation import KVCache, device_and_dtype, next_logits
from model.model import MiniMindLM

# by model, for as long as the model is used
_compiled_steps: WeakKeyDictionary[MiniMindLM, Callable] = WeakKeyDictionary()


def compiled_next_logits(model: MiniMindLM) -> Callable[[MiniMindLM, Tensor, KVCache], Tensor]:
    """`next_logits` compiled for this model, for one new token per row and a cache with `lengths`.

    A CUDA graph on a GPU, where all shapes are fixed; on a CPU the number of slots stays open.
    Layers must not be replaced afterwards: asking all of them at every token whether they are still
    the ones that were compiled takes a good part of a small model's step, and is left out.
    """
    if model not in _compiled_steps:
        remove_unfinished()
        options = {}
        if not model.config.use_moe:  # the chosen experts split the step, and the parts do ask
            options["guard_filter_fn"] = torch.compiler.skip_guard_on_all_nn_modules_unsafe
        on_gpu = device_and_dtype(model)[0].type == "cuda"
        if on_gpu:
            options["triton.cudagraphs"] = True  # what mode="reduce-overhead" does
        # torch finds compiled code by the function's code object: every model has one of its own
        own = FunctionType(next_logits.__code__.replace(), globals())
        _compiled_steps[model] = torch.compile(
            own, dynamic=False if on_gpu else None, options=options
        )
    return _compiled_steps[model]


def fix_shapes(cache: KVCache, lengths: Tensor):
    """Turn the cache into one that `compiled_next_logits` can take again and again."""
    cache.set_lengths(lengths)
    buffers = (*cache.keys, *cache.values)
    if lengths.device.type == "cuda":  # a CUDA graph writes to fixed addresses
        cache.slots = torch.arange(buffers[0].shape[2], device=lengths.device)
        for tensor in buffers:
            torch._dynamo.mark_static_address(tensor)
        return
    torch._dynamo.mark_dynamic(cache.slots, 0)
    for tensor in buffers:
        torch._dynamo.mark_dynamic(tensor, 2)
