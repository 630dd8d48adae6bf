"""Tokenise a data file once; afterwards read the tokens from a memory-mapped file.

A cache is a folder `cache_dir/<key>/`, where the key is made of the data's content, the tokenizer
and the options, so that it can never serve other data than it was made from:

    tokens.bin      uint16 (vocabulary up to 65,536) or uint32; every document ends with the eos id
    documents.bin   int64, where each document ends in tokens.bin, in tokens, its eos included
    hashes.bin      uint64, BLAKE2b of each document's text: equal texts have equal hashes
    meta.json       what it was made from, counts, sizes and checksums of the three files

It is written under another name, synced and renamed, so a folder with a valid name is complete.
"""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dataset.content_hash import content_hash
from dataset.content_hash import new_name as _new_name
from dataset.content_hash import sha256_of as _sha256
from dataset.content_hash import write_synced as _write_synced
from dataset.oddities import ControlStrings, count_repeats, described, text_hash
from dataset.readers import check_path, files_of, format_of, read_texts
from dataset.records import Problems
from dataset.tokenizer import Tokenizer
from model.json_file import read_json

FORMAT_VERSION = 3  # part of the key: raise it whenever the same data would give other files
BIN_FILES = ("tokens.bin", "documents.bin", "hashes.bin")
BATCH_CHARACTERS = 1_000_000  # of text handed to the tokenizer's threads at a time
SAMPLED_BLOCKS = 64  # of each file are checked when a cache is reused,
BLOCK_BYTES = 4096  # evenly spread, the first and the last among them


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
        return _mapped(self.folder / "tokens.bin", self.meta["dtype"], self.num_tokens)

    @cached_property
    def document_ends(self) -> np.ndarray:
        """int64 [num_documents], memory-mapped: one past the eos of each document."""
        return _mapped(self.folder / "documents.bin", "<i8", self.num_documents)

    @cached_property
    def document_hashes(self) -> np.ndarray:
        """uint64 [num_documents], memory-mapped: a hash of each document's text."""
        return _mapped(self.folder / "hashes.bin", "<u8", self.num_documents)

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


def _mapped(file: Path, dtype: str, count: int) -> np.ndarray:
    """The [count] items of a file, memory-mapped; nobody may write to them.

    torch maps it, not numpy: numpy's maps keep a file handle each, and a system gives a process
    about a thousand.
    """
    import torch  # only here: making a cache needs no model

    dtype = np.dtype(dtype)
    size = count * dtype.itemsize
    items = torch.from_file(str(file), shared=False, size=size, dtype=torch.uint8).numpy()
    items.flags.writeable = False
    return items.view(dtype)


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
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        data_sha256 = content_hash(path, cache_dir)
    except OSError as error:
        raise ValueError(f"cannot use the token cache {cache_dir} for {path}: {error}") from None
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
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:32]
    folder = cache_dir / key
    if folder.exists():
        try:
            return _report(_open_checked(folder, made_from), path)
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            print(f"the token cache {folder} is damaged ({error}); making it anew", file=sys.stderr)

    _remove_old_leftovers(cache_dir)
    if show_progress is None:
        show_progress = sys.stderr.isatty()
    problems = Problems()
    temporary = _new_name(cache_dir, f".making-{key}")
    try:
        temporary.mkdir()
        _tokenise(path, tokenizer, temporary, made_from, problems, show_progress, flag)
        _put_in_place(temporary, folder, made_from)
    except OSError as error:  # most likely a full disk, or no permission to write
        raise ValueError(f"cannot make the token cache {folder} of {path}: {error}") from None
    finally:  # also after Ctrl-C; nothing is left of it when the renaming succeeded
        shutil.rmtree(temporary, ignore_errors=True)
    return _report(_open_checked(folder, made_from), path)


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
) -> None:
    """Write the three bin files and meta.json of `path` into `folder`, synced to the disk."""
    dtype = _dtype(tokenizer.vocab_size)
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
    meta = {
        **made_from,
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
        "files": {name: _checksums(folder / name) for name in BIN_FILES},
    }
    _write_synced(folder / "meta.json", json.dumps(meta, indent=2))
    _sync_folder(folder)


def _dtype(vocab_size: int) -> np.dtype:
    return np.dtype("<u2" if vocab_size <= 65536 else "<u4")


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


def _put_in_place(temporary: Path, folder: Path, made_from: dict) -> None:
    """Rename a finished cache to its valid name, where another process may have been faster."""
    for _ in range(10):
        try:
            temporary.rename(folder)
            _sync_folder(folder.parent)
            return
        except OSError:
            if not folder.exists():
                raise
        with contextlib.suppress(Exception):
            _open_checked(folder, made_from)
            return
        # What is there is damaged. It leaves its name in one step, then it is deleted.
        grave = _new_name(folder.parent, ".damaged")
        with contextlib.suppress(FileNotFoundError):  # another process may have moved it
            folder.rename(grave)
        shutil.rmtree(grave, ignore_errors=True)
    raise ValueError(f"cannot replace the damaged token cache {folder}; delete it")


def _open_checked(folder: Path, made_from: dict) -> TokenFile:
    """Open a cache; raises (most likely ValueError) saying what is wrong with a damaged one.

    Compares what it was made from, the sizes, and a checksum of sampled blocks, and looks for ids
    outside the vocabulary in a sample: a few milliseconds, however large the files are.
    """
    meta = read_json(folder / "meta.json")
    for name, value in (made_from | {"dtype": _dtype(made_from["vocab_size"]).str}).items():
        if meta[name] != value:
            raise ValueError(f"meta.json: expected {name} {value}, got {meta[name]}")
    file = TokenFile(folder, meta)
    item_bytes = (np.dtype(meta["dtype"]).itemsize, 8, 8)
    items = (file.num_tokens, file.num_documents, file.num_documents)
    for name, count, width in zip(BIN_FILES, items, item_bytes):
        size = (folder / name).stat().st_size
        if size != count * width or size == 0:
            raise ValueError(f"{name}: expected {count * width} bytes, got {size}")
        if _sample_crc32(folder / name) != meta["files"][name]["sample_crc32"]:
            raise ValueError(f"{name}: its content is not what was written")
    starts = [(file.num_tokens - 1) * i // (SAMPLED_BLOCKS - 1) for i in range(SAMPLED_BLOCKS)]
    largest = max(int(file.tokens[start : start + 1024].max()) for start in starts)
    if largest >= meta["vocab_size"]:
        raise ValueError(f"tokens.bin: expected ids below {meta['vocab_size']}, got {largest}")
    if int(file.document_ends[-1]) != file.num_tokens:
        raise ValueError(f"documents.bin: the last document does not end at {file.num_tokens}")
    return file


def _checksums(file: Path) -> dict:
    return {
        "size": file.stat().st_size,
        "sha256": _sha256(file),
        "sample_crc32": _sample_crc32(file),
    }


def _sample_crc32(file: Path) -> int:
    """CRC-32 of SAMPLED_BLOCKS blocks spread over the file (of all of it when it is small)."""
    size, crc = file.stat().st_size, 0
    last = max(0, size - BLOCK_BYTES)
    with open(file, "rb") as stream:
        for i in range(SAMPLED_BLOCKS):
            stream.seek(last * i // (SAMPLED_BLOCKS - 1))
            crc = zlib.crc32(stream.read(BLOCK_BYTES), crc)
    return crc


def _remove_old_leftovers(cache_dir: Path) -> None:
    """Delete what processes that were killed more than a day ago left unfinished."""
    for pattern in (".making-*", ".damaged-*", ".content_hashes-*"):
        for leftover in cache_dir.glob(pattern):
            with contextlib.suppress(OSError):
                if time.time() - leftover.stat().st_mtime > 24 * 3600:
                    if leftover.is_dir():
                        shutil.rmtree(leftover, ignore_errors=True)
                    else:
                        leftover.unlink()


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder as durable as the files; not possible on Windows, nor needed."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
