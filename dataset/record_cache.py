"""Encode conversations, pairs or judged answers once; afterwards map them from a cache.

One cache folder (dataset/cache_folder.py) holds the good records of one file, in the arrays of
dataset/encoded.py, and what is to be said of the others. It is made from the file's content and the
tokenizer with its chat template; not from the length of rows, for sequences are kept whole.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from dataset.cache_folder import (
    MappedArrays,
    check_shapes,
    checksums,
    open_or_make,
    write_arrays,
)
from dataset.chat import NO_THINKING, THINKING
from dataset.content_hash import content_hash, hash_of_data
from dataset.encoded import ARRAYS, Encoded, EncodedFile
from dataset.encoding import (
    WANTED,
    ConversationJob,
    EncodedChunk,
    JudgedJob,
    PairJob,
    ReasoningFound,
)
from dataset.readers import Tally, check_path, files_of, format_of
from dataset.record_chunks import work_through
from dataset.records import Problems
from dataset.token_cache import check_ids
from dataset.tokenizer import Tokenizer

FORMAT_VERSION = 1  # part of the key: raise it whenever the same data would give other files
# what encodes the records of a kind, and the fields that it looks at
JOBS = {
    "conversations": (ConversationJob, WANTED["chat"]),
    "pairs": (PairJob, WANTED["pairs"]),
    "judged": (JudgedJob, WANTED["judged"]),
}

Result = TypeVar("Result")


def with_template(tokenizer: Tokenizer, encode: Callable[[], Result]) -> Result:
    """encode(), with the chat template that its data needs; the tokenizer keeps it.

    A template of the tokenizer's own stays. Where there is none, or ours without thoughts, that one
    is tried; if a record has reasoning, `encode` begins anew with the one that has a place for it.
    """
    if tokenizer.chat_template not in (None, NO_THINKING):
        return encode()
    try:
        tokenizer.chat_template = NO_THINKING
        return encode()
    except ReasoningFound:
        tokenizer.chat_template = THINKING
        return encode()


def encoded_records(
    kind: str,
    paths: Iterable[str | Path],
    tokenizer: Tokenizer,
    cache_dir: str | Path,
    on_bad_record: str = "stop",
    problems: Problems | None = None,
    flag: str = "--data_path",
    show_progress: bool | None = None,
) -> Encoded:
    """The good records of some files, encoded now or found in the cache.

    kind           "conversations", "pairs" or "judged"
    problems       gets what is worth telling about all of them. With on_bad_record="stop" the
                   caller raises when all files are read (`problems.raise_if_any`)
    show_progress  True or False, or None for a bar when stderr is a terminal

    A cache that is damaged is reported on stderr and made anew. Several processes may call this at
    once. Raises ReasoningFound (see `with_template`), and ValueError for a file that cannot be read
    or changes meanwhile, for what the chat template cannot say, and for a cache_dir that cannot be
    written to.
    """
    problems = Problems() if problems is None else problems
    show_progress = sys.stderr.isatty() if show_progress is None else show_progress
    files = []
    for path in [check_path(path, flag) for path in paths]:
        folder, meta = _cached(kind, path, tokenizer, Path(cache_dir), flag, show_progress)
        if meta["stopped_at_reasoning"]:
            raise ReasoningFound(f"{path} has answers with their reasoning")
        found = Problems.from_json(str(path), meta["problems"])
        file = EncodedFile(MappedArrays(folder, meta["shapes"]), str(path), folder.name)
        files.append(file)
        tally = Tally(file.num_records + found.count, file.num_records)
        tally.check(path, found.count, on_bad_record, flag)
        problems.merge(found)
    return Encoded(files, tokenizer.eos_id, tokenizer.fingerprint)


def _cached(
    kind: str, path: Path, tokenizer: Tokenizer, cache_dir: Path, flag: str, show_progress: bool
) -> tuple[Path, dict]:
    """(folder, its meta.json) of the cache of one file."""
    data_sha256 = hash_of_data(path, cache_dir, "cache")
    made_from = {
        "records": kind,
        "format_version": FORMAT_VERSION,
        "data_sha256": data_sha256,
        "data_format": format_of(path),
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "special_tokens": tokenizer.special_tokens,
        "chat_template": hashlib.sha256((tokenizer.chat_template or "").encode()).hexdigest(),
    }

    def make(folder: Path) -> dict:
        facts = _encode(kind, path, tokenizer, folder, flag, show_progress)
        if content_hash(path, cache_dir) != data_sha256:
            raise ValueError(f"{flag}: {path} was changed while it was read; start again")
        return facts

    return open_or_make(cache_dir, made_from, make, _check, f"cache of {kind}")


def _encode(
    kind: str, path: Path, tokenizer: Tokenizer, folder: Path, flag: str, show_progress: bool
) -> dict:
    """Write the arrays of a file; what meta.json says of them."""
    problems, reasoning = Problems(), False
    bar = tqdm(
        total=sum(file.stat().st_size for file in files_of(path)),
        desc=f"encoding {path.name}",
        unit="B",
        unit_scale=True,
        disable=not show_progress,
    )
    job, wanted = JOBS[kind]
    with bar:
        chunks = work_through(path, job(tokenizer), problems, bar.update, flag, wanted)
        nothing = _nothing(tokenizer)
        try:
            shapes = write_arrays(folder, _pieces(chunks, nothing))
        except ReasoningFound:  # from now on that is known without reading so far
            reasoning, shapes = True, write_arrays(folder, [nothing])
    return {
        "stopped_at_reasoning": reasoning,
        "problems": problems.to_json(str(path)),
        "shapes": shapes,
        "files": checksums(folder),
    }


def _nothing(tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """The arrays of no record."""
    return {name: np.zeros(0, dtype or tokenizer.dtype) for name, dtype in ARRAYS.items()}


def _pieces(
    chunks: Iterator[EncodedChunk], nothing: dict[str, np.ndarray]
) -> Iterator[dict[str, np.ndarray]]:
    """The arrays, chunk by chunk."""
    yield nothing
    num_tokens = num_sequences = 0
    for chunk in chunks:
        yield {
            "ids": chunk.ids,
            "masks": chunk.masks,
            "ends": num_tokens + np.cumsum(chunk.lengths, dtype=np.int64),
            "record_ends": num_sequences + np.cumsum(chunk.counts, dtype=np.int64),
            "lines": chunk.lines,
            "hashes": chunk.hashes,
            "labels": chunk.labels,
            "control_strings": np.array([chunk.num_with_control_strings]),
        }
        num_tokens += len(chunk.ids)
        num_sequences += len(chunk.lengths)


def _check(folder: Path, meta: dict) -> None:
    """ValueError if the arrays do not fit together, or a sample has ids outside the vocabulary."""
    check_shapes(folder, meta)
    arrays = MappedArrays(folder, meta["shapes"])
    counts = {name: meta["shapes"][name][1] for name in ARRAYS}
    same = {"masks": "ids", "lines": "record_ends", "hashes": "record_ends"}
    for name, of in (same | {"labels": "record_ends"}).items():
        if counts[name] != counts[of]:
            raise ValueError(f"{name}.bin: expected {counts[of]} items, got {counts[name]}")
    for name, of in (("ends", "ids"), ("record_ends", "ends")):
        last = int(arrays[name][-1]) if counts[name] else 0
        if last != counts[of]:
            raise ValueError(f"{name}.bin: expected it to end at {counts[of]}, got {last}")
    if counts["ids"]:
        check_ids(arrays["ids"], "ids.bin", meta["vocab_size"])
