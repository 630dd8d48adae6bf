"""The model that preferences or rewards change: all of its weights, or an adapter on a frozen base.

With an adapter or without, it begins as the model of --init_from, which is its reference.
"""

from __future__ import annotations

from pathlib import Path

import torch

from dataset.chat import stop_ids
from dataset.tokenizer import Tokenizer
from model import lora
from model.hf_format import Inherited, load_model, save_model
from model.model import MiniMindLM
from training.distributed import shard
from training.run import Run


def load_policy(run: Run, checkpoint: Path | None = None) -> MiniMindLM:
    """The model as the run began with it, or as a checkpoint of the run has it; not yet placed."""
    if run.adapter is None:
        exact = run.exact_weights if checkpoint else None
        folder = checkpoint or run.args.init_from
        return load_model(folder, run.home, config=run.config, weights_file=exact)
    model = load_model(run.args.init_from, run.home, config=run.config)
    torch.manual_seed(run.args.seed)  # the same first adapters on every rank; they add nothing yet
    lora.attach(model, run.adapter)
    if checkpoint:
        lora.load_adapter(model, checkpoint, run.base_sha256)
    return model


def load_reference(run: Run) -> MiniMindLM:
    """The model as the run began with it, to compare the policy with; placed, and never trained.

    With an adapter it is the policy's own model, whose adapter is to be turned off: no second one.
    """
    if run.adapter is not None:
        return run.model
    model = load_model(run.args.init_from, run.home, config=run.config).requires_grad_(False)
    model = shard(model, run.ranks, run.args) if run.args.fsdp else model.to(run.device)
    return model.eval()


def write_policy(run: Run, tokenizer: Tokenizer, base: Inherited, folder: Path, weights: dict):
    """Write a model or adapter folder. base: what `hf_format.inherited` said of --init_from."""
    if run.adapter is None:
        save_model(run.model, folder, stop_ids(tokenizer), weights, base)
    else:
        adapter, base_folder = run.adapter, run.args.init_from
        lora.save_adapter(run.model, adapter, folder, base_folder, run.base_sha256, weights)
    tokenizer.save(folder, chat_template=True)
