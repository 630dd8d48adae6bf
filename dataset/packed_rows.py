"""Rows of whole records, packed by best fit: what the datasets of conversations, pairs and judged
answers have in common. `arrays["row_ends"]` says where the items of each row end.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from dataset.cache_folder import cached_arrays
from dataset.encoded import Encoded

FORMAT_VERSION = 1  # of cached rows: raise it whenever the same data would give others


def cached_rows(kind: str, encoded: Encoded, options: dict, make, cache_dir: str | Path | None):
    """(arrays, facts) that `make` gives, kept in a cache of rows if there is a cache_dir.

    kind, options: what they depend on beside the files of `encoded` (JSON values).
    """
    if cache_dir is None:
        return make()
    keys = [file.key for file in encoded.files]
    made_from = {"rows of": kind, "format_version": FORMAT_VERSION, "records": keys, **options}
    made_from["part"] = list(options["part"])
    return cached_arrays(Path(cache_dir), made_from, make, "cache of rows")


def items_of(arrays, row: int) -> slice:
    """Where the items of a row lie: arrays["row_ends"] says where those of each row end."""
    ends = arrays["row_ends"]
    return slice(int(ends[row - 1]) if row else 0, int(ends[row]))


def two_documents_each(
    numbers: list[int], documents: Callable, most: int, T: int, eos_id: int, scored: bool = False
) -> tuple[torch.Tensor, ...]:
    """A row of things that are two documents each: X, Y, loss_mask, document_ids, numbers [most].

    documents  a number -> its two documents, (ids, mask) each
    scored     X holds their last tokens, too, and the mask is 1 there alone; Y is X
    """
    X, Y = np.full(T, eos_id, np.int64), np.full(T, eos_id, np.int64)
    loss_mask, document_ids = np.zeros(T, np.float32), np.zeros(T, np.int64)
    filled = np.full(most, -1, np.int64)
    filled[: len(numbers)] = numbers
    position = 0
    for k, number in enumerate(numbers):
        for side, (ids, mask) in enumerate(documents(number)):
            if scored:
                end = position + len(ids)
                X[position:end] = Y[position:end] = ids
                loss_mask[end - 1] = 1
            else:
                end = position + len(ids) - 1
                X[position:end], Y[position:end] = ids[:-1], ids[1:]
                loss_mask[position:end] = mask[1:]
            document_ids[position:end] = 2 * k + 1 + side
            position = end
    return tuple(map(torch.from_numpy, (X, Y, loss_mask, document_ids, filled)))


def row_sizes(arrays, rows: np.ndarray) -> np.ndarray:
    """int64 [len(rows)]: the number of items in each row, 0 for row -1."""
    rows, ends = np.asarray(rows, np.int64), arrays["row_ends"]
    begins = np.where(rows > 0, ends[np.maximum(rows, 1) - 1], 0)
    return np.where(rows < 0, 0, ends[rows] - begins)
