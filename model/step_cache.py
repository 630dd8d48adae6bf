"""The engine's cache as one forward pass sees it: tokens of several sequences in a single row.

Some sequences have one new token each (those being answered), others a piece of their prompt.

Shapes in this file:
    R  rows of the cache      K  key/value heads    S  tokens of a row    D  head_dim
    A  query heads    N  tokens in the step    n  sequences with one token, which come first
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.attention import attention


class Piece(NamedTuple):
    """Tokens of one prompt in a step: those from start to end go into this row of the cache."""

    row: int
    start: int
    end: int


class StepCache:
    """The cache as one step's forward pass sees it: N tokens in a row, of several sequences."""

    def __init__(self, cache: Tensor, lengths: np.ndarray, pieces: list[Piece], device):
        self.cache, self.pieces, self.n = cache, pieces, len(lengths)
        spans = [np.arange(piece.start, piece.end) for piece in pieces]
        self.positions = torch.from_numpy(np.concatenate([lengths, *spans]))[None].to(device)
        self.masks = [piece_mask(piece, device) for piece in pieces]
        if self.n:
            self.lengths = torch.from_numpy(lengths).to(device)  # [n]
            self.rows = torch.arange(self.n, device=device)
            self.longest = int(lengths.max()) + 1
            same = int(lengths.min()) + 1 == self.longest
            places = torch.arange(self.longest, device=device)
            self.mask = None if same else (places <= self.lengths[:, None])[:, None, None]

    def positions_and_mask(self, T: int) -> tuple[Tensor, None]:
        return self.positions, None

    def layer(self, i: int) -> StepLayer:
        return StepLayer(self, self.cache[i, 0], self.cache[i, 1])

    def advance(self, T: int):
        pass  # the engine knows


class StepLayer:
    """One layer's keys and values, [R, K, S, D] each."""

    def __init__(self, step: StepCache, keys: Tensor, values: Tensor):
        self.step, self.keys, self.values = step, keys, values

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: None) -> Tensor:
        """q [1, A, N, D], k and v [1, K, N, D] of the step's tokens → [1, A, N, D].

        Each looks at its own row, at itself and what stands before it.
        """
        step, n, keys, values = self.step, self.step.n, self.keys, self.values
        parts = []
        if n:
            keys[step.rows, :, step.lengths] = k[0, :, :n].transpose(0, 1)  # [n, K, D]
            values[step.rows, :, step.lengths] = v[0, :, :n].transpose(0, 1)
            queries = q[0, :, :n].transpose(0, 1)[:, :, None]  # [n, A, 1, D]
            known = (part[:n, :, : step.longest] for part in (keys, values))
            y = attention(queries, *known, step.mask)
            parts.append(y[:, :, 0].transpose(0, 1)[None])  # [1, A, n, D]
        at = n
        for piece, piece_mask in zip(step.pieces, step.masks):
            row, start, end = piece
            to = at + end - start
            keys[row, :, start:end] = k[0, :, at:to]
            values[row, :, start:end] = v[0, :, at:to]
            known = (part[row : row + 1, :, :end] for part in (keys, values))
            parts.append(attention(q[:, :, at:to], *known, piece_mask))
            at = to
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def piece_mask(piece: Piece, device) -> Tensor | None:
    """What a prompt's tokens may look at: bool [1, 1, T, S], or None for `attention`'s own rule."""
    T = piece.end - piece.start
    if piece.start == 0 or T == 1:
        return None
    ones = torch.ones(T, piece.end, dtype=torch.bool, device=device)
    return ones.tril(piece.start)[None, None]
