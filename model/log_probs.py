"""Log-probabilities that an engine's requests ask for, of their prompts and of their answers.

Shapes in this file:
    n  rows being answered, or places of a prompt    V  vocab_size
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.request import LogProb, Request
from model.sampling import Sampler
from model.step_cache import Piece


def wanted_places(request: Request, piece: Piece) -> range:
    """The tokens of a piece whose logits are looked at: all, or a prompt's last one, or none."""
    count = piece.end - piece.start
    if request.prompt_logprobs:
        return range(count)
    return range(count - (piece.end == len(request.prompt)), count)


def look_at_prompt(request: Request, piece: Piece, logits: Tensor):
    """Note those of the prompt's tokens that follow the tokens of a piece, whose logits these are.

    logits [wanted places, V].
    """
    following = request.prompt[piece.start + 1 : piece.end + 1]
    request.prompt_tops += log_probs(logits[: len(following)], following, request.logprobs or 0)


def told_of(requests: list[Request], sampler: Sampler, logits: Tensor) -> Tensor | None:
    """Logits [n, V] whose log-probabilities are asked for: as drawn or the model's own.

    To be called before a draw changes the penalties; None where nobody asks.
    """
    as_drawn = [r.as_drawn and r.logprobs is not None for r in requests]
    if any(as_drawn):
        scaled = sampler.scaled(sampler.penalised(logits), slice(None))
        if all(as_drawn):
            return scaled
        chosen = torch.tensor(as_drawn, device=logits.device)[:, None]  # [n, 1]
        return torch.where(chosen, scaled, logits.float())
    return logits if any(r.logprobs is not None for r in requests) else None


def log_probs_of(
    requests: list[Request], told: Tensor | None, tokens: list[int]
) -> dict[int, LogProb]:
    """By row, of those whose requests ask for it; told [n, V] of `told_of`."""
    asked: dict[int, list[int]] = {}  # rows by how many of the likeliest they want
    for i, request in enumerate(requests):
        if request.logprobs is not None:
            asked.setdefault(request.logprobs, []).append(i)
    found = {}
    for count, places in asked.items():
        logits = told if len(places) == len(told) else told[places]
        found |= zip(places, log_probs(logits, [tokens[i] for i in places], count))
    return found


def log_probs(logits: Tensor, tokens: list[int], likeliest: int) -> list[LogProb]:
    """Of each row of logits [n, V]: the log-probability of its token, and of the likeliest ones."""
    if not tokens:
        return []
    scores = logits.float().log_softmax(-1)
    places = torch.arange(len(tokens), device=logits.device)
    chosen = scores[places, torch.tensor(tokens, device=logits.device)].tolist()
    values, ids = scores.topk(min(likeliest, scores.shape[-1]))
    return [
        LogProb(own, list(zip(row_ids, row_values)))
        for own, row_ids, row_values in zip(chosen, ids.tolist(), values.tolist())
    ]
