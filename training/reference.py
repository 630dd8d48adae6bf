"""Log-probabilities of whole answers: of the policy on held-out pairs, of the reference once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dataset.dpo import DPODataset
from training.distributed import Ranks, sum_over_ranks
from training.evaluation import shared_batches
from training.loading import make_loader, on_device
from training.losses import document_log_probs


@torch.no_grad()
def pair_log_probs(
    model, dataset: DPODataset, batch_size: int, ranks: Ranks, autocast, stop=None,
    of: Callable = document_log_probs,
) -> Tensor:  # fmt: skip
    """float32 [pairs, 2] on the device: log p of every pair's chosen and rejected answer.

    The rows are shared among the ranks; every rank gets the whole result. The model's train/eval
    mode is restored. stop: a Stopping, which can end it early. of: another number of every
    document, such as losses.document_scores of a reward model.
    """
    was_training = model.training
    model.eval()
    result = torch.zeros(dataset.total + 1, 2, device=ranks.device)  # the last: of no pair, -1
    loader = make_loader(dataset, shared_batches(len(dataset), batch_size, ranks), ranks.device)
    for X, Y, loss_mask, document_ids, pairs in on_device(loader, ranks.device):
        if stop is not None and stop.agree():
            break
        with autocast:
            logits, _ = model(X, document_ids)
        sums = of(logits, Y, loss_mask, document_ids, 2 * dataset.pairs_per_row)
        result[pairs] = sums.view(*pairs.shape, 2)
    model.train(was_training)
    return sum_over_ranks(result[:-1])


def reference_log_probs(run, model, dataset: DPODataset) -> Tensor:
    """`pair_log_probs` of the model that a Run begins with, kept in a file of --cache_dir.

    The file's name holds a hash of the model's weights, the precision and the data, so that it can
    never serve other data or another reference. model: None for a loss without one: zeros.
    """
    if model is None:
        return torch.zeros(dataset.total, 2, device=run.device)
    ranks, made_from = run.ranks, f"{run.base_sha256} {run.dtype}"
    key = hashlib.sha256(f"{made_from} {dataset.fingerprint}".encode()).hexdigest()[:32]
    file = Path(run.args.cache_dir) / f"reference-{key}.safetensors"
    cached = None
    try:
        cached = load_file(file)["log_probs"]
        if cached.shape != (dataset.total, 2) or not cached.isfinite().all():
            cached = None
    except (OSError, SafetensorError, KeyError):
        pass  # absent or damaged: computed anew
    # all ranks go the same way, even if one of them does not see the file
    found = sum_over_ranks(torch.tensor(float(cached is not None), device=ranks.device))
    if found == ranks.world_size:
        return cached.to(ranks.device)
    result = pair_log_probs(model, dataset, run.args.batch_size, ranks, run.autocast)
    if ranks.is_main:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.{os.getpid()}")
        save_file({"log_probs": result.cpu()}, temporary)
        temporary.replace(file)
    return result
