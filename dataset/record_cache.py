"""Encode conversations, pairs or judged answers once; afterwards map them from a cache.

One cache folder (dataset/cache_folder.py) holds the records of one file, in the arrays of
dataset/encoded.py. It is made from the file's content, the tokenizer with its chat template and
`on_bad_record`; not from the length of rows, for sequences are kept whole.
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
    key_of,
    open_or_make,
    write_arrays,
)
from dataset import conversations, judged, pairs
from dataset.chat import NO_THINKING, THINKING
from dataset.content_hash import content_hash
from dataset.encoded import ARRAYS, Encoded, EncodedFile
from dataset.encoding import (
    ConversationJob,
    EncodedChunk,
    JudgedJob,
    PairJob,
    ReasoningFound,
)
from dataset.readers import check_path, files_of, format_of
from dataset.record_chunks import work_through
from dataset.records import Problems
from dataset.token_cache import check_ids
from dataset.tokenizer import Tokenizer

# what encodes the records of a kind, and the fields that it looks at
JOBS = {
    "conversations": (ConversationJob, conversations.FIELDS),
    "pairs": (PairJob, pairs.FIELDS),
    "judged": (JudgedJob, judged.FIELDS),
}
FORMAT_VERSION = 1  # part of the key: raise it whenever the same data would give other files

Result = TypeVar("Result")


class _BadRecords(Exception):
    """A file has some; they are known, and no cache is made."""


def with_template(tokenizer: Tokenizer, encode: Callable[[], Result]) -> Result:
    """encode(), after giving a tokenizer the chat template of a model that is tuned on some data.

    The one it has, if it has one; but a model that is now taught to think gets the one that can
    say so: where the other meets a record with reasoning, `encode` begins anew.
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
    """The records of some files, encoded now or found in the cache.

    kind           "conversations", "pairs" or "judged"
    problems       gets what is worth telling about all of them; with on_bad_record="stop" bad
                   records are counted there, too, and the caller raises (`raise_if_any`): their
                   files are not among the encoded ones
    show_progress  True or False, or None for a bar when stderr is a terminal

    A cache that is damaged is reported on stderr and made anew. Several processes may call this at
    once. Raises ReasoningFound (see `with_template`), and ValueError for a file that cannot be read
    or changes meanwhile, for what the chat template cannot say, and for a cache_dir that cannot be
    written to.
    """
    problems = Problems() if problems is None else problems
    show_progress = sys.stderr.isatty() if show_progress is None else show_progress
    paths, files = [check_path(path, flag) for path in paths], []
    for path in paths:
        cache = _FileCache(kind, path, tokenizer, Path(cache_dir), on_bad_record, flag)
        try:
            files.append(cache.open_or_make(problems, show_progress))
        except _BadRecords:
            pass
    return Encoded(files, tokenizer.eos_id, tokenizer.fingerprint)


class _FileCache:
    """The cache of one file."""

    def __init__(self, kind, path, tokenizer, cache_dir, on_bad_record, flag):
        self.kind, self.path, self.tokenizer = kind, path, tokenizer
        self.cache_dir, self.on_bad_record, self.flag = cache_dir, on_bad_record, flag
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            data_sha256 = content_hash(path, cache_dir)
        except OSError as error:
            raise ValueError(f"cannot use the cache {cache_dir} for {path}: {error}") from None
        self.made_from = {
            "records": kind,
            "format_version": FORMAT_VERSION,
            "data_sha256": data_sha256,
            "data_format": format_of(path),
            "on_bad_record": on_bad_record,
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "special_tokens": tokenizer.special_tokens,
            "chat_template": hashlib.sha256(tokenizer.chat_template.encode()).hexdigest(),
        }

    def open_or_make(self, problems: Problems, show_progress: bool) -> EncodedFile:
        found = Problems()

        def make(folder: Path) -> dict:
            return self._encode(folder, found, show_progress)

        try:
            folder, meta = open_or_make(
                self.cache_dir, self.made_from, make, _check, f"cache of {self.kind}"
            )
        except _BadRecords:
            problems.merge(found)
            raise
        if meta["stopped_at_reasoning"]:
            raise ReasoningFound(f"{self.path} has answers with their reasoning")
        path = str(self.path)
        problems.merge(Problems.from_json(path, meta["problems"]))
        return EncodedFile(
            MappedArrays(folder, meta["shapes"]),
            path,
            key_of(self.made_from),
            meta["num_with_control_strings"],
        )

    def _encode(self, folder: Path, problems: Problems, show_progress: bool) -> dict:
        """Write the arrays of the file; what meta.json says of them."""
        counts = {"num_with_control_strings": 0, "stopped_at_reasoning": False}
        bar = tqdm(
            total=sum(file.stat().st_size for file in files_of(self.path)),
            desc=f"encoding {self.path.name}",
            unit="B",
            unit_scale=True,
            disable=not show_progress,
        )
        with bar:
            try:
                shapes = write_arrays(folder, self._pieces(problems, bar.update, counts))
            except ReasoningFound:  # known from now on without reading so far
                counts["stopped_at_reasoning"] = True
                shapes = write_arrays(folder, [_nothing(self.tokenizer)])
        if problems.count and self.on_bad_record == "stop":
            raise _BadRecords
        if content_hash(self.path, self.cache_dir) != self.made_from["data_sha256"]:
            raise ValueError(f"{self.flag}: {self.path} was changed while it was read; start again")
        about = problems.to_json(str(self.path))
        return counts | {"problems": about, "shapes": shapes, "files": checksums(folder)}

    def _pieces(self, problems: Problems, progress, counts: dict) -> Iterator[dict]:
        """The arrays, chunk by chunk."""
        job, wanted = JOBS[self.kind]
        chunks = work_through(
            self.path, job(self.tokenizer), problems, progress, self.flag, wanted,
            on_bad_record=self.on_bad_record,
        )  # fmt: skip
        num_tokens = num_sequences = 0
        yield _nothing(self.tokenizer)
        for chunk in chunks:
            if problems.count and self.on_bad_record == "stop":
                continue  # nothing will be kept: the rest is read only to count the others
            yield _arrays(chunk, num_tokens, num_sequences)
            num_tokens += len(chunk.ids)
            num_sequences += len(chunk.lengths)
            counts["num_with_control_strings"] += chunk.num_with_control_strings


def _arrays(chunk: EncodedChunk, num_tokens: int, num_sequences: int) -> dict[str, np.ndarray]:
    """The arrays of a chunk that comes behind so many tokens and sequences."""
    return {
        "ids": chunk.ids,
        "masks": chunk.masks,
        "ends": num_tokens + np.cumsum(chunk.lengths, dtype=np.int64),
        "record_ends": num_sequences + np.cumsum(chunk.counts, dtype=np.int64),
        "lines": chunk.lines,
        "hashes": chunk.hashes,
        "labels": chunk.labels,
    }


def _nothing(tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    ids = np.uint16 if tokenizer.vocab_size <= 65536 else np.uint32
    return {name: np.zeros(0, dtype or ids) for name, dtype in ARRAYS.items()}


def _check(folder: Path, meta: dict) -> None:
    """ValueError if the arrays do not fit together, or a sample has ids outside the vocabulary."""
    check_shapes(folder, meta, ARRAYS)
    arrays = MappedArrays(folder, meta["shapes"])
    counts = {name: meta["shapes"][name][1] for name in ARRAYS}
    for name, of in (("masks", "ids"), ("lines", "record_ends"), ("hashes", "record_ends"),
                     ("labels", "record_ends")):  # fmt: skip
        if counts[name] != counts[of]:
            raise ValueError(f"{name}.bin: expected {counts[of]} items, got {counts[name]}")
    for name, of in (("ends", "ids"), ("record_ends", "ends")):
        last = int(arrays[name][-1]) if counts[name] else 0
        if last != counts[of]:
            raise ValueError(f"{name}.bin: expected it to end at {counts[of]}, got {last}")
    if counts["ids"]:
        check_ids(arrays["ids"], "ids.bin", meta["vocab_size"])
