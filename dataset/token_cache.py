"""Tokenise a data file once; afterwards read the tokens from a memory-mapped file.

A cache is a folder (dataset/cache_folder.py) made from the data's content, the tokenizer and the
options:

    tokens.bin      uint16 (vocabulary up to 65,536) or uint32; every document ends with the eos id
    documents.bin   int64, where each document ends in tokens.bin, in tokens, its eos included
    hashes.bin      uint64, BLAKE2b of each document's text: equal texts have equal hashes
    meta.json       what it was made from, counts, sizes and checksums of the three files
"""

import contextlib
import itertools
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dataset.cache_folder import checksums, mapped, open_or_make
from dataset.content_hash import content_hash, hash_of_data
from dataset.oddities import ControlStrings, count_repeats, described, text_hash
from dataset.readers import check_path, files_of, format_of, read_texts
from dataset.records import Problems
from dataset.tokenizer import Tokenizer, dtype_of

FORMAT_VERSION = 3  # part of the key: raise it whenever the same data would give other files
BIN_FILES = ("tokens.bin", "documents.bin", "hashes.bin")
BATCH_CHARACTERS = 1_000_000  # of text handed to the tokenizer's threads at a time
SAMPLES = 64  # places of a reused cache at which ids are looked at


@dataclass(frozen=True)
class TokenFile:
    """The cached tokens of one data file. Cheap to send to a loader process: it carries no arrays.

    folder   the cache folder
    meta     the content of its meta.json
    """

    folder: Path
    meta: dict

    def __getstate__(self) -> dict:
        # A memory map would be sent to another process as a copy of all its data.
        return {"folder": self.folder, "meta": self.meta}

    @cached_property
    def tokens(self) -> np.ndarray:
        """uint16 or uint32 [num_tokens], memory-mapped: all documents, each followed by eos."""
        return mapped(self.folder / "tokens.bin", self.meta["dtype"], self.num_tokens)

    @cached_property
    def document_ends(self) -> np.ndarray:
        """int64 [num_documents], memory-mapped: one past the eos of each document."""
        return mapped(self.folder / "documents.bin", "<i8", self.num_documents)

    @cached_property
    def document_hashes(self) -> np.ndarray:
        """uint64 [num_documents], memory-mapped: a hash of each document's text."""
        return mapped(self.folder / "hashes.bin", "<u8", self.num_documents)

    @property
    def num_tokens(self) -> int:
        return self.meta["num_tokens"]

    @property
    def num_documents(self) -> int:
        return self.meta["num_documents"]

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of all texts."""
        return self.meta["num_bytes"]

    @property
    def skipped_records(self) -> int:
        """Bad records that were left out (0 unless on_bad_record was "skip")."""
        return self.meta["skipped_records"]

    @property
    def data_sha256(self) -> str:
        return self.meta["data_sha256"]

    @property
    def tokenizer_fingerprint(self) -> str:
        return self.meta["tokenizer_fingerprint"]

    @property
    def eos_id(self) -> int:
        return self.meta["eos_id"]


def cached_tokens(
    path: str | Path,
    tokenizer: Tokenizer,
    cache_dir: str | Path,
    on_bad_record: str = "stop",
    show_progress: bool | None = None,
    flag: str = "--data_path",
    text_field: str = "text",
) -> TokenFile:
    """The tokens of one field of the records of a data file, tokenised now or found in the cache.

    A cache that is damaged is reported on stderr and made anew. Several processes may call this at
    once. show_progress: True or False, or None for a bar when stderr is a terminal.

    Raises DataError for bad records (with `on_bad_record="stop"`; no cache is left behind), and
    ValueError for a file that cannot be read, has no text or changes meanwhile, or for a cache_dir
    that cannot be written to.
    """
    path, cache_dir = check_path(path, flag), Path(cache_dir)
    data_sha256 = hash_of_data(path, cache_dir, "token cache")
    made_from = {
        "format_version": FORMAT_VERSION,
        "data_sha256": data_sha256,
        "data_format": format_of(path),
        "text_field": text_field,
        "on_bad_record": on_bad_record,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.eos_id,
    }
    problems = Problems()
    show_progress = sys.stderr.isatty() if show_progress is None else show_progress

    def make(folder: Path) -> dict:
        return _tokenise(path, tokenizer, folder, made_from, problems, show_progress, flag)

    folder, meta = open_or_make(cache_dir, made_from, make, _check, "token cache")
    return _report(TokenFile(folder, meta), path)


def _report(file: TokenFile, path: Path) -> TokenFile:
    """Say once, on stderr, what is odd about the data, whether the cache is new or not."""
    if os.environ.get("RANK", "0") != "0":
        return file
    counts = (file.meta["num_repeats"], file.meta["num_with_control_strings"])
    if any(counts):
        print(f"{path}: {file.num_documents:,} texts, {described(*counts)}", file=sys.stderr)
    if file.skipped_records:
        print(f"{path}: skipped {file.skipped_records} bad records; the first:", file=sys.stderr)
        print("\n".join(file.meta["first_problems"]), file=sys.stderr)
    for line in file.meta["remarks"]:
        print(f"{path}: {line}", file=sys.stderr)
    return file


def _tokenise(
    path: Path,
    tokenizer: Tokenizer,
    folder: Path,
    made_from: dict,
    problems: Problems,
    show_progress: bool,
    flag: str,
) -> dict:
    """Write the three bin files of `path` into `folder`, synced; what meta.json says of them."""
    dtype = tokenizer.dtype
    eos = np.array([tokenizer.eos_id], dtype)
    control_strings = ControlStrings(tokenizer.control_tokens)
    num_tokens = num_documents = num_characters = num_bytes = num_with_control_strings = 0
    bar = tqdm(
        total=sum(file.stat().st_size for file in files_of(path)),
        desc=f"tokenising {path.name}",
        unit="B",
        unit_scale=True,
        disable=not show_progress,
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(bar)
        files = [stack.enter_context(open(folder / name, "wb")) for name in BIN_FILES]
        # One batch is tokenised, on all cores, while this thread writes the one before it and
        # reads the one after it.
        thread = stack.enter_context(ThreadPoolExecutor(1))
        batches = _batches(path, made_from, problems, bar.update, flag)
        pending = None
        for batch in itertools.chain(batches, [None]):
            encoded = batch and thread.submit(tokenizer.encode_texts, batch)
            if pending is not None:
                texts, result = pending
                documents = [np.array(ids, dtype) for ids in result.result()]
                raw_texts = [text.encode("utf-8") for text in texts]
                lengths = np.array([len(ids) + 1 for ids in documents], np.int64)
                ends = num_tokens + np.cumsum(lengths)
                hashes = np.array([text_hash(raw) for raw in raw_texts], "<u8")
                files[0].write(np.concatenate([x for ids in documents for x in (ids, eos)]).data)
                files[1].write(ends.astype("<i8").data)
                files[2].write(hashes.data)
                num_tokens = int(ends[-1])
                num_documents += len(texts)
                num_characters += sum(map(len, texts))
                num_bytes += sum(map(len, raw_texts))
                num_with_control_strings += sum(map(control_strings.are_in, texts))
            pending = (batch, encoded)
        for file in files:
            file.flush()
            os.fsync(file.fileno())
    if num_documents == 0:
        raise ValueError(f"{flag}: no text in {path}")
    if content_hash(path, folder.parent) != made_from["data_sha256"]:
        raise ValueError(f"{flag}: {path} was changed while it was read; start again")
    return {
        "data_name": path.name,
        "dtype": dtype.str,
        "num_tokens": num_tokens,
        "num_documents": num_documents,
        "num_characters": num_characters,
        "num_bytes": num_bytes,
        "num_repeats": count_repeats(np.memmap(folder / "hashes.bin", "<u8", mode="r")),
        "num_with_control_strings": num_with_control_strings,
        "skipped_records": problems.count,
        "first_problems": problems.first,
        "remarks": problems.remarks_of(str(path)).lines(),
        "files": checksums(folder),
    }


def _batches(
    path: Path, made_from: dict, problems: Problems, progress, flag: str
) -> Iterator[list[str]]:
    """The texts of a file in lists of about BATCH_CHARACTERS, or of one longer text."""
    batch: list[str] = []
    size = 0
    on_bad_record, text_field = made_from["on_bad_record"], made_from["text_field"]
    for text, _ in read_texts(path, on_bad_record, problems, progress, flag, text_field):
        # After a bad record nothing will be kept: the rest is read only to count the others.
        if problems.count and on_bad_record == "stop":
            continue
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _check(folder: Path, meta: dict) -> None:
    """ValueError if the counts do not fit the files, or a sample has ids outside the vocabulary."""
    if meta["dtype"] != (dtype := dtype_of(meta["vocab_size"]).str):
        raise ValueError(f"meta.json: expected dtype {dtype}, got {meta['dtype']}")
    file = TokenFile(folder, meta)
    item_bytes = (np.dtype(meta["dtype"]).itemsize, 8, 8)
    items = (file.num_tokens, file.num_documents, file.num_documents)
    for name, count, width in zip(BIN_FILES, items, item_bytes):
        size = meta["files"][name]["size"]
        if size != count * width or size == 0:
            raise ValueError(f"{name}: expected {count * width} bytes, got {size}")
    check_ids(file.tokens, "tokens.bin", meta["vocab_size"])
    if int(file.document_ends[-1]) != file.num_tokens:
        raise ValueError(f"documents.bin: the last document does not end at {file.num_tokens}")


def check_ids(ids: np.ndarray, name: str, vocab_size: int) -> None:
    """ValueError if one of some ids, at SAMPLES places, is outside the vocabulary."""
    starts = [(len(ids) - 1) * i // (SAMPLES - 1) for i in range(SAMPLES)]
    largest = max(int(ids[start : start + 1024].max()) for start in starts)
    if largest >= vocab_size:
        raise ValueError(f"{name}: expected ids below {vocab_size}, got {largest}")
