"""What a teacher says of rows, kept in files: its k likeliest tokens at every target.

A folder of the cache (dataset/cache_folder.py) is made from the teacher's weights, the rows, k,
temperature and precision, so that it can never serve others:

    keys.bin       uint64 [rows]: a hash of the tokens of each row
    ends.bin       int64 [rows]: where the targets of each row end
    places.bin     uint32 [N]: the place of each target in its row
    ids.bin        [N · k]: the likeliest tokens there, the likeliest first
    log_probs.bin  float32 [N · (k + 1)]: their log-probabilities, softened, and the rest's

The rest are all other tokens together, as if they were one. It is neither dropped nor shared out:
k + 1 outcomes have probabilities that add up to 1, for the teacher and for the student, whose rest
is added up in the same way. A divergence of outcomes put together is never larger than that of the
single ones; what is lost is how the rest is distributed within.

Shapes: B rows, T tokens, N targets, V vocab_size, k the likeliest tokens.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dataset.cache_folder import (
    MappedArrays,
    check_shapes,
    checksums,
    open_or_make,
    write_arrays,
)
from dataset.tokenizer import dtype_of
from training.distributed import Ranks
from training.evaluation import shared_batches
from training.loading import make_loader, on_device

FORMAT_VERSION = 1  # raise it whenever the same teacher and rows would give other files


def of_the_likeliest(log_probs: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities [N, k + 1] of the tokens `ids` [N, k], and of all others together.

    log_probs: float32 [N, V] of all tokens. The others are added up by themselves: 1 minus the
    likeliest would be 0 where a model is sure.
    """
    others = log_probs.scatter(-1, ids, -math.inf).logsumexp(-1, keepdim=True)  # [N, 1]
    return torch.cat([log_probs.gather(-1, ids), others], -1)


def key_of_row(X: np.ndarray) -> int:
    """A hash of the tokens of a row, int64 [T]."""
    return int.from_bytes(hashlib.blake2b(X.tobytes(), digest_size=8).digest(), "little")


def remembered(run, dataset, V: int, load: Callable) -> MappedArrays:
    """The files about a dataset's rows, found in --cache_dir or made now by the model of `load`.

    V: entries of the vocabulary that count. Raises ValueError when they cannot be written.
    """
    args = run.args
    made_from = {
        "teacher_memory": FORMAT_VERSION, "teacher_sha256": run.identity["teacher_sha256"],
        "rows": dataset.fingerprint, "k": args.teacher_top_k, "temperature": args.temperature,
        "dtype": str(run.dtype), "vocab_size": V,
    }  # fmt: skip

    def make(folder: Path) -> dict:
        shapes = write_arrays(folder, _what_it_says(run, dataset, V, load()))
        return {"shapes": shapes, "files": checksums(folder)}

    cache_dir = Path(args.cache_dir)
    cache_dir.mkdir(parents=True, exist_ok=True)
    folder, meta = open_or_make(cache_dir, made_from, make, check_shapes, "teacher's memory")
    return MappedArrays(folder, meta["shapes"])


@torch.no_grad()
def _what_it_says(run, dataset, V: int, teacher) -> Iterator[dict[str, np.ndarray]]:
    """The arrays of the files, batch after batch; row -1, the filler, is the last one."""
    args, ends = run.args, 0
    alone = Ranks(0, 0, 1, run.device)  # one process of each machine does it
    batches = [*shared_batches(len(dataset), args.batch_size, alone), [-1]]
    loader = tqdm(make_loader(dataset, batches, run.device), desc="asking the teacher",
                  disable=None)  # fmt: skip
    for X, _, loss_mask, *document_ids in on_device(loader, run.device):
        with run.autocast:
            logits, _ = teacher(X, *document_ids)
        is_target = loss_mask > 0
        log_probs, ids = [], []
        for part in logits[..., :V][is_target].split(1024):  # [some of N, V]
            softened = (part.float() / args.temperature).log_softmax(-1)
            ids.append(softened.topk(args.teacher_top_k).indices)
            log_probs.append(of_the_likeliest(softened, ids[-1]))
        row_ends = ends + is_target.sum(1).cumsum(0).cpu().numpy()
        ends = int(row_ends[-1])
        yield {
            "keys": np.array([key_of_row(x) for x in X.cpu().numpy()], np.uint64),
            "ends": row_ends,
            "places": is_target.nonzero()[:, 1].cpu().numpy().astype(np.uint32),
            "ids": _flat(ids).astype(dtype_of(V)),
            "log_probs": _flat(log_probs).astype(np.float32),
        }


def _flat(parts: list[Tensor]) -> np.ndarray:
    return torch.cat(parts).flatten().cpu().numpy() if parts else np.zeros(0)


class Memory:
    """Looks rows up by their tokens, in the files of several datasets."""

    def __init__(self, files: list[MappedArrays], k: int):
        self.files, self.k = files, k
        self.where = {
            key: (number, row)
            for number, arrays in enumerate(files)
            for row, key in enumerate(arrays["keys"].tolist())
        }

    def of(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """log_probs float32 [B, T, k + 1] and ids int64 [B, T, k] of rows X [B, T].

        Where nothing is a target all outcomes have the same probability. KeyError for a row that
        the teacher was not asked about.
        """
        k = self.k
        ids = np.zeros((*X.shape, k), np.int64)
        log_probs = np.full((*X.shape, k + 1), -math.log(k + 1), np.float32)
        for row, tokens in enumerate(X.cpu().numpy()):
            number, at = self.where[key_of_row(tokens)]
            arrays = self.files[number]
            begin, end = int(arrays["ends"][at - 1]) if at else 0, int(arrays["ends"][at])
            places = arrays["places"][begin:end].astype(np.int64)
            ids[row, places] = arrays["ids"][k * begin : k * end].reshape(-1, k)
            said = arrays["log_probs"][(k + 1) * begin : (k + 1) * end]
            log_probs[row, places] = said.reshape(-1, k + 1)
        return tuple(torch.from_numpy(array).to(X.device) for array in (log_probs, ids))
