"""Held-out loss: nats per token and bits per byte over whole datasets."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from dataset.chat import IM_END, encode_conversation
from model.generation import generate, greedy_answers
from training.distributed import Ranks, sum_over_ranks


@torch.no_grad()
def held_out_loss(
    model, dataset: Dataset, batch_size: int, token_bytes: np.ndarray, ranks: Ranks, autocast
) -> dict[str, float]:
    """Loss over every target of `dataset`, the rows shared among the ranks.

    dataset      items (X, Y, loss_mask) or (X, Y, loss_mask, document_ids)
    token_bytes  int32 [vocab], UTF-8 bytes each token stands for (0 for control tokens)
    autocast     a context manager for the forward pass

    Returns loss (nats per target), bits_per_byte (all nats / ln 2 / the bytes of all targets),
    perplexity and tokens; the same on every rank. The model's train/eval mode is restored.
    """
    was_training = model.training
    model.eval()
    bytes_of = torch.from_numpy(token_bytes.astype(np.float64)).to(ranks.device)
    # nats, targets and bytes: float64, since a float32 sum of millions loses whole tokens
    totals = torch.zeros(3, dtype=torch.float64, device=ranks.device)
    rows = range(ranks.rank, len(dataset), ranks.world_size)
    batches = [list(rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)]
    for batch in DataLoader(dataset, batch_sampler=batches):
        # the last batch is filled up: a new shape would make the compiler start again
        fill = batch_size - len(batch[0])
        X, Y, loss_mask, *document_ids = (F.pad(t, (0, 0, 0, fill)).to(ranks.device) for t in batch)
        with autocast:
            logits, _ = model(X, *document_ids)
        nats = F.cross_entropy(logits.flatten(0, 1).float(), Y.flatten(), reduction="none")
        mask = loss_mask.flatten().double()
        totals += torch.stack(
            ((nats * mask).sum(), mask.sum(), (bytes_of[Y.flatten()] * mask).sum())
        )
    model.train(was_training)
    nats, targets, num_bytes = sum_over_ranks(totals).tolist()
    loss = nats / max(targets, 1)
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700)),
        "bits_per_byte": nats / math.log(2) / max(num_bytes, 1),
        "tokens": int(targets),
    }


def continue_text(model, tokenizer, prompt: list[int], max_new_tokens: int, seed: int) -> str:
    """The prompt and what the model makes of it (temperature 0.8, top_p 0.9), as one line."""
    was_training = model.training
    model.eval()
    stream = generate(
        model, prompt, max_new_tokens, {tokenizer.eos_id}, seed, temperature=0.8, top_p=0.9
    )
    ids = list(stream)
    model.train(was_training)
    text = f"{tokenizer.decode(prompt, skip_control=True)} ⟶ {tokenizer.decode(ids, True)}"
    return " ".join(text.split())


def ask(model, tokenizer, questions: list[str], max_new_tokens: int = 48) -> list[str]:
    """The greedy answer of a chat model to each question, asked alone."""
    was_training = model.training
    model.eval()
    prompts = [
        encode_conversation(
            tokenizer, [{"role": "user", "content": question}], add_generation_prompt=True
        )[0]
        for question in questions
    ]
    stop_ids = {tokenizer.eos_id, tokenizer.control_id(IM_END)}
    answers = greedy_answers(model, prompts, max_new_tokens, stop_ids)
    model.train(was_training)
    return [tokenizer.decode(ids) for ids in answers]
