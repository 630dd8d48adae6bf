"""Documents to rows of a fixed length, without padding, truncation or lost tails.

T  tokens in a row
N  tokens in a stream

A *stream* is documents joined, each ending with eos. Rows are cut from it wherever documents end,
but every sixteenth begins with a document if one is near; each token is a target exactly once.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dataset.token_cache import TokenFile

ROWS_IN_BLOCK = 16
HASH_BUCKETS = 1 << 16
CHUNK_DOCUMENTS = 1 << 20  # looked at together: bounds memory, not results


@dataclass(frozen=True)
class TokenStream:
    """Some documents of some token files, in order, as one long sequence of N tokens.

    files   the token files
    spans   int64 [S, 3]: (index into files, first token, one past the last token); whole documents,
            and neighbours share one span, so a stream of everything has one span a file
    """

    files: tuple[TokenFile, ...]
    spans: np.ndarray

    @cached_property
    def _span_starts(self) -> np.ndarray:
        """int64 [S + 1]: where each span starts in the stream; the last entry is N."""
        lengths = self.spans[:, 2] - self.spans[:, 1]
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])

    @property
    def num_tokens(self) -> int:
        """N, the eos of every document included."""
        return int(self._span_starts[-1])

    @property
    def eos_id(self) -> int:
        return self.files[0].eos_id

    def place(self, position: int) -> str:
        """Where token number `position` comes from: "a.jsonl document 17", counted from 1."""
        span = int(np.searchsorted(self._span_starts, position, side="right")) - 1
        index, first, _ = self.spans[span].tolist()
        file = self.files[index]
        token = first + position - int(self._span_starts[span])
        document = int(np.searchsorted(file.document_ends, token, side="right")) + 1
        return f"{file.meta['data_name']} document {document}"

    def document_starts(self, positions: np.ndarray) -> np.ndarray:
        """int64 [len(positions)]: where in the stream the document of each of its tokens begins."""
        span = np.searchsorted(self._span_starts, positions, side="right") - 1
        files, firsts = self.spans[span, 0], self.spans[span, 1]
        shift = self._span_starts[span] - firsts  # from a place in the file to one in the stream
        starts = np.empty(len(positions), np.int64)
        for i, file in enumerate(self.files):
            here = np.flatnonzero(files == i)
            tokens = positions[here] - shift[here]
            documents = np.searchsorted(file.document_ends, tokens, side="right")
            starts[here] = _starts_and_ends(file, documents)[0] + shift[here]
        return starts

    def read(self, start: int, stop: int) -> np.ndarray:
        """int64 [stop - start]: the tokens from start to stop, -1 <= start <= stop <= N.

        Token -1 is a virtual eos, so that the first document too begins after one.
        """
        assert -1 <= start <= stop <= self.num_tokens, (start, stop, self.num_tokens)
        tokens = np.empty(stop - start, np.int64)
        filled = 0
        if start == -1 and stop > start:
            tokens[0] = self.eos_id
            filled = 1
        span = int(np.searchsorted(self._span_starts, start + filled, side="right")) - 1
        while filled < len(tokens):
            file, first, end = self.spans[span].tolist()
            begin = first + start + filled - int(self._span_starts[span])
            count = min(end - begin, len(tokens) - filled)
            tokens[filled : filled + count] = self.files[file].tokens[begin : begin + count]
            filled += count
            span += 1
        return tokens


def whole_stream(files: Sequence[TokenFile]) -> TokenStream:
    """All documents of the files. Their order does not depend on the order they are given in."""
    files = _in_fixed_order(files)
    spans = [(i, 0, file.num_tokens) for i, file in enumerate(files)]
    return TokenStream(files, np.array(spans, np.int64))


def split_documents(
    files: Sequence[TokenFile], val_fraction: float
) -> tuple[TokenStream, TokenStream | None]:
    """Split the documents into (training stream, held-out stream).

    Held out are the documents whose text has the smallest hash, until they have `val_fraction` of
    all tokens: at least one text, never all, and the same ones in whatever order the files come.
    Equal texts fall on the same side. With `val_fraction` 0 the held-out stream is None.

    Raises ValueError for a fraction outside [0, 1) and for data with a single distinct text.
    """
    if not 0 <= val_fraction < 1:
        raise ValueError(f"--val_fraction: expected 0 <= fraction < 1, got {val_fraction}")
    if val_fraction == 0:
        return whole_stream(files), None
    files = _in_fixed_order(files)
    limit = _held_out_limit(files, val_fraction)
    train: list[np.ndarray] = []
    held_out: list[np.ndarray] = []
    for i, file in enumerate(files):
        documents = np.concatenate(
            [first + np.flatnonzero(hashes <= limit) for first, hashes in _chunks(file)]
        )
        starts, ends = _starts_and_ends(file, documents)
        # What lies between the held-out documents is for training.
        train.append(_spans(i, np.append(0, ends), np.append(starts, file.num_tokens)))
        held_out.append(_spans(i, starts, ends))
    return tuple(TokenStream(files, np.concatenate(spans)) for spans in (train, held_out))


def _in_fixed_order(files: Sequence[TokenFile]) -> tuple[TokenFile, ...]:
    assert files, "expected at least one token file"
    assert len({(file.tokenizer_fingerprint, file.eos_id) for file in files}) == 1
    return tuple(sorted(files, key=lambda file: (file.data_sha256, file.num_tokens)))


def _chunks(file: TokenFile):
    """(number of the first document, uint64 hashes) of runs of documents: flat memory."""
    for first in range(0, file.num_documents, CHUNK_DOCUMENTS):
        yield first, np.asarray(file.document_hashes[first : first + CHUNK_DOCUMENTS])


def _starts_and_ends(file: TokenFile, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where some documents start and end in their file, in tokens."""
    ends = np.asarray(file.document_ends[documents])
    starts = np.where(documents > 0, file.document_ends[np.maximum(documents - 1, 0)], 0)
    return starts, ends


def _spans(file: int, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """int64 [S, 3] from sorted spans: empty ones left out, those that touch joined."""
    starts, ends = starts[starts < ends], ends[starts < ends]
    is_gap = starts[1:] > ends[:-1]
    starts = starts[np.append(True, is_gap)] if len(starts) else starts
    ends = ends[np.append(is_gap, True)] if len(ends) else ends
    return np.stack([np.full(len(starts), file, np.int64), starts, ends], axis=1)


def _held_out_limit(files: Sequence[TokenFile], val_fraction: float) -> np.uint64:
    """The largest hash that is held out.

    Two passes, so that the hashes of all documents need not be sorted: the first adds up the tokens
    by the hash's first 16 bits, the second looks closely only at documents up to the bucket where
    the wanted number of tokens is reached.
    """
    bucket_tokens = np.zeros(HASH_BUCKETS)
    for file in files:
        for first, hashes in _chunks(file):
            starts, ends = _starts_and_ends(file, np.arange(first, first + len(hashes)))
            buckets = (hashes >> np.uint64(48)).astype(np.int64)
            bucket_tokens += np.bincount(buckets, ends - starts, HASH_BUCKETS)
    num_tokens = sum(file.num_tokens for file in files)
    wanted = val_fraction * num_tokens
    last_bucket = int(np.searchsorted(np.cumsum(bucket_tokens), wanted))

    candidate_hashes, candidate_tokens = [], []
    for file in files:
        for first, hashes in _chunks(file):
            chosen = np.flatnonzero((hashes >> np.uint64(48)) <= last_bucket)
            starts, ends = _starts_and_ends(file, first + chosen)
            candidate_hashes.append(hashes[chosen])
            candidate_tokens.append(ends - starts)
    distinct, group = np.unique(np.concatenate(candidate_hashes), return_inverse=True)
    tokens = np.cumsum(np.bincount(group, np.concatenate(candidate_tokens)))
    last = int(np.searchsorted(tokens, wanted))
    if tokens[last] == num_tokens:  # something must be left to train on
        last -= 1
    if last < 0:
        raise ValueError(
            f"--val_fraction {val_fraction}: the data is a single distinct text, which cannot be "
            f"split; pass --val_fraction 0, or --val_data_path with a file of its own"
        )
    return distinct[last]


def held_out_items(contents: Iterable[bytes], val_fraction: float) -> np.ndarray:
    """bool [items]: those with the smallest hashes of their content, up to the fraction of them.

    Equal contents fall on one side; with a fraction above 0 at least one item is held out. Raises
    ValueError if nothing would be left to train on.
    """
    digests = (hashlib.blake2b(content, digest_size=8).digest() for content in contents)
    hashes = np.fromiter((int.from_bytes(digest, "big") for digest in digests), np.uint64)
    count = math.ceil(val_fraction * len(hashes))
    if count == 0:
        return np.zeros(len(hashes), bool)
    held_out = hashes <= np.partition(hashes, count - 1)[count - 1]
    if held_out.all():
        raise ValueError(
            f"--val_fraction {val_fraction}: nothing would be left to train on; "
            "pass --val_fraction 0, or --val_data_path with a file of its own"
        )
    return held_out


class Rows:
    """Where the rows of T tokens lie in a stream of N, and which of their targets count.

    Row i predicts the tokens from its start on, T of them. Rows follow one another in blocks of
    ROWS_IN_BLOCK. The first row of a block begins with the first token of a document where one
    begins at most T / 4 tokens earlier than it must: such a document is read without an eos before
    it, as most tools give a prompt to a model. Targets that the row before has, too, count there.
    The last row begins earlier than its turn, so that nothing is padded; only a stream shorter than
    T is filled up.

    documents_first=False: every row begins where the row before ends.
    """

    def __init__(self, stream: TokenStream, max_seq_len: int, documents_first: bool = True) -> None:
        self.stream, self.T, self.N = stream, max_seq_len, stream.num_tokens
        self.documents_first = documents_first
        slack = max_seq_len // 4 if documents_first else 0
        self.per_block = ROWS_IN_BLOCK if slack else max(1, -(-self.N // max_seq_len))
        self.block = self.per_block * max_seq_len - slack  # targets that count in a block
        self.firsts = np.arange(
            0, self.N, self.block, dtype=np.int64
        )  # a block's first row's start
        if slack and len(self.firsts) > 1:
            bases = self.firsts[1:]
            starts = 1 + stream.document_starts(bases - 1)  # from s on is read behind token s - 1
            self.firsts[1:] = np.where(bases - starts < slack, starts, bases)

    def __len__(self) -> int:
        last = -(-(self.N - int(self.firsts[-1])) // self.T)
        return (len(self.firsts) - 1) * self.per_block + last

    def places(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(start, first target that counts, one past the last) of rows, int64 [len(rows)] each."""
        block, k = np.divmod(np.asarray(rows, np.int64), self.per_block)
        start = self.firsts[block] + k * self.T
        begin = np.maximum(start, block * self.block)
        end = np.minimum(np.minimum(start + self.T, (block + 1) * self.block), self.N)
        return np.minimum(start, max(self.N - self.T, 0)), begin, end

    def loss_tokens(self, rows: np.ndarray) -> np.ndarray:
        """int64 [len(rows)]: how many targets of each row count. The filler row -1 has none."""
        rows = np.asarray(rows, np.int64)
        _, begin, end = self.places(np.maximum(rows, 0))
        return np.where(rows < 0, 0, end - begin)

    def read(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """X int64 [T], Y int64 [T] (X one token further), loss_mask float32 [T] of one row.

        Row -1 is a filler with an all-zero mask.
        """
        assert -1 <= row < len(self), (row, len(self))
        T, loss_mask = self.T, np.zeros(self.T, np.float32)
        if row == -1:
            tokens = np.full(T + 1, self.stream.eos_id, np.int64)
        else:
            start, begin, end = (int(place[0]) for place in self.places(np.array([row])))
            tokens = self.stream.read(start - 1, min(start + T, self.N))
            padding = np.full(T + 1 - len(tokens), self.stream.eos_id, np.int64)
            tokens = np.concatenate([tokens, padding])
            loss_mask[begin - start : end - start] = 1
        return tokens[:-1], tokens[1:], loss_mask
