"""Rows are the documents joined and cut; the held-out documents are a function of the texts."""

import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset import packing
from dataset.packing import Rows, split_documents, whole_stream
from dataset.pretrain import PretrainDataset
from dataset.token_cache import TokenFile, cached_tokens

EOS = 9


class FakeFile:
    """A TokenFile held in memory: documents are (hash, tokens without eos)."""

    def __init__(self, documents, data_sha256="0"):
        tokens = [[*tokens, EOS] for _, tokens in documents]
        self.tokens = np.array([t for document in tokens for t in document], np.uint16)
        self.document_ends = np.cumsum([len(document) for document in tokens])
        self.document_hashes = np.array([hash for hash, _ in documents], np.uint64)
        self.num_tokens, self.num_documents = len(self.tokens), len(documents)
        self.eos_id, self.tokenizer_fingerprint, self.data_sha256 = EOS, "t", data_sha256


def joined(documents):
    return [token for _, tokens in documents for token in [*tokens, EOS]]


def rows_that_begin_with_documents(tokens, T, per_block):
    """The same for rows of which each block's first one begins with a document, if it can.

    Walks through the tokens: a row is cut, and what it has beyond the targets that count so far
    counts; where a block is through, a document's first token is looked for, backwards.
    """
    before, rows, counted = [EOS, *tokens], [], 0
    block = per_block * T - T // 4
    while counted < len(tokens):
        if counted % block == 0:
            start = counted
            for back in range(T // 4):  # X begins with token start - 1: is it a document's first?
                at = counted - back - 1
                if counted and at >= 0 and before[at] == EOS:
                    start = counted - back
                    break
        end = min(start + T, (counted // block + 1) * block, len(tokens))
        place = min(start, max(0, len(tokens) - T))
        Y = (tokens + [EOS] * T)[place : place + T]
        X = [before[place], *Y[:-1]]
        rows.append((X, Y, [int(counted <= i < end) for i in range(place, place + T)]))
        start, counted = start + T, end
    return rows


def rows_by_hand(tokens, T):
    """The rows written out: a list of (X, Y, mask) from one plain list of tokens."""
    before = [EOS, *tokens]
    rows = []
    for start in range(0, len(tokens), T):
        if start + T > len(tokens) >= T:  # the last row moves to the left
            late = start + T - len(tokens)
            start -= late
        else:
            late = 0
        missing = max(0, start + T - len(tokens))
        Y = tokens[start : start + T] + [EOS] * missing
        X = [before[start], *Y[:-1]]
        mask = [0] * late + [1] * (T - late - missing) + [0] * missing
        rows.append((X, Y, mask))
    return rows


# Hashes all over the range, and few enough that texts come back.
HASHES = st.integers(0, 40).map(lambda i: i * (2**64 - 1) // 40)
DOCUMENTS = st.lists(st.tuples(HASHES, st.lists(st.integers(0, 8), max_size=6)), min_size=1)
FILES = st.lists(DOCUMENTS, min_size=1, max_size=3)


@settings(max_examples=200, deadline=None)
@given(files=FILES, T=st.integers(1, 12), per_block=st.integers(1, 4))
def test_rows_are_the_documents_joined_and_cut(files, T, per_block):
    """Every row equals the one cut by hand from a plain list of all tokens of all files."""
    stream = whole_stream([FakeFile(documents, str(i)) for i, documents in enumerate(files)])
    tokens = [token for documents in files for token in joined(documents)]
    plain = Rows(stream, T, documents_first=False)
    by_hand = rows_by_hand(tokens, T)
    assert len(plain) == len(by_hand)
    for i, row in enumerate(by_hand):
        assert tuple(part.tolist() for part in plain.read(i)) == row
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "ROWS_IN_BLOCK", per_block)
        dataset = PretrainDataset(stream, T, documents_first=True)
    expected = rows_that_begin_with_documents(tokens, T, per_block)
    assert len(dataset) == len(expected)
    for i, (X, Y, loss_mask) in enumerate(dataset.__getitems__(range(len(dataset)))):
        assert (X.tolist(), Y.tolist(), loss_mask.tolist()) == expected[i]
        assert (str(X.dtype), str(Y.dtype)) == ("torch.int64", "torch.int64")
        assert str(loss_mask.dtype) == "torch.float32"
    rows = np.arange(-1, len(dataset))
    assert dataset.loss_tokens(rows).tolist() == [0] + [sum(mask) for _, _, mask in expected]
    assert dataset.loss_tokens(rows).sum() == len(tokens) == dataset.num_tokens
    X, Y, loss_mask = dataset[-1]
    assert X.tolist() == Y.tolist() == [EOS] * T and loss_mask.tolist() == [0] * T
    for i in (-2, len(dataset)):
        with pytest.raises(IndexError, match="expected a row from -1"):
            dataset[i]


@settings(max_examples=200, deadline=None)
@given(files=FILES, fraction=st.floats(0.001, 0.999), order=st.randoms(use_true_random=False))
def test_held_out_documents_are_those_with_the_smallest_hashes(files, fraction, order):
    """Split by hand: whole groups of equal texts in the order of their hash, until there is enough;
    never all; what is left, in order, is for training. The order of the files does not matter."""
    fakes = [FakeFile(documents, str(i)) for i, documents in enumerate(files)]
    everything = [document for documents in files for document in documents]
    total = sum(len(tokens) + 1 for _, tokens in everything)
    distinct = sorted({hash for hash, _ in everything})
    if len(distinct) == 1:
        with pytest.raises(ValueError, match=r"single distinct text.*--val_fraction 0"):
            split_documents(fakes, fraction)
        return
    held_out, count = set(), 0
    while count < fraction * total and len(held_out) < len(distinct) - 1:
        held_out.add(distinct[len(held_out)])
        count = sum(len(tokens) + 1 for hash, tokens in everything if hash in held_out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "CHUNK_DOCUMENTS", 3)
        order.shuffle(fakes)
        train, val = split_documents(fakes, fraction)
    for stream, inside in ((train, False), (val, True)):
        expected = joined([d for d in everything if (d[0] in held_out) == inside])
        assert stream.num_tokens == len(expected) > 0
        assert stream.read(-1, stream.num_tokens).tolist() == [EOS, *expected]
        for start in range(0, len(expected), 5):  # from any place, across spans
            assert stream.read(start, len(expected)).tolist() == expected[start:]
            assert stream.read(start, start).tolist() == []
    # Memory: one span for a held-out document at most, and the gaps between them.
    num_held_out = sum(hash in held_out for hash, _ in everything)
    assert len(val.spans) <= num_held_out and len(train.spans) <= num_held_out + len(files)


def test_no_fraction_means_no_held_out_stream():
    """val_fraction 0 keeps everything for training; fractions outside [0, 1) are errors."""
    file = FakeFile([(1, [1, 2]), (2, [3])])
    train, val = split_documents([file], 0)
    assert val is None and train.read(0, 5).tolist() == [1, 2, EOS, 3, EOS]
    for fraction in (-0.1, 1, 2.0, float("nan")):
        with pytest.raises(ValueError, match=r"--val_fraction: expected 0 <= fraction < 1"):
            split_documents([file], fraction)


def test_a_stream_of_everything_is_one_span_a_file():
    """Memory does not grow with the number of documents."""
    stream = whole_stream([FakeFile([(i, [1]) for i in range(1000)], str(j)) for j in range(2)])
    assert stream.spans.tolist() == [[0, 0, 2000], [1, 0, 2000]]


def test_rows_shorter_than_a_token_are_an_error():
    """max_seq_len is at least 1."""
    with pytest.raises(ValueError, match="--max_seq_len: expected at least 1 token, got 0"):
        PretrainDataset(whole_stream([FakeFile([(1, [1])])]), 0)


def test_every_token_of_real_files_is_a_target_once(tmp_path: Path, tiny_tokenizer):
    """Through files and cache: training and held-out targets together are all tokens, once."""
    texts = [f"Text number {i}, " + "long " * (i % 50) for i in range(300)]
    files = []
    for part in (0, 1):
        path = tmp_path / f"{part}.jsonl"
        path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts[part::2]))
        files.append(cached_tokens(path, tiny_tokenizer, tmp_path / "cache"))
    train, val = split_documents(files, 0.1)
    share = val.num_tokens / (train.num_tokens + val.num_tokens)
    assert 0.1 <= share < 0.12
    counted, decoded = Counter(), []
    for stream in (train, val):
        dataset = PretrainDataset(stream, 64)
        targets = [Y[mask > 0] for _, Y, mask in (dataset[i] for i in range(len(dataset)))]
        tokens = np.concatenate(targets)
        counted.update(tokens.tolist())
        decoded += tiny_tokenizer.decode(tokens).split("<|endoftext|>")[:-1]
    assert counted == Counter(t for file in files for t in file.tokens.tolist())
    assert Counter(decoded) == Counter(texts)


def test_the_fingerprint_follows_everything_the_rows_are_made_from(tmp_path, tiny_tokenizer):
    """Same data, split and length: same fingerprint, in any order; one changed: another."""
    files = []
    for i, texts in enumerate((["a", "b", "c"], ["d", "e"], ["a", "b", "x"])):
        path = tmp_path / f"{i}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        files.append(cached_tokens(path, tiny_tokenizer, tmp_path / "cache"))
    one, two, other = files

    def fingerprint(files, fraction=0.3, T=8, side=0):
        return PretrainDataset(split_documents(files, fraction)[side], T).fingerprint

    base = fingerprint([one, two])
    assert base == fingerprint([two, one])
    changed = [fingerprint([other, two]), fingerprint([one]), fingerprint([one, two], T=9)]
    changed += [fingerprint([one, two], 0), fingerprint([one, two], side=1)]
    assert len({base, *changed}) == 6


def test_documents_are_read_with_and_without_the_token_between_them(tmp_path, tiny_tokenizer):
    """Where documents are short every sixteenth row begins with one, as prompts elsewhere do."""
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(json.dumps({"text": "Once " + "word " * (i % 3)}) + "\n" for i in range(9000))
    )
    stream = whole_stream([cached_tokens(path, tiny_tokenizer, tmp_path / "cache")])
    dataset = PretrainDataset(stream, 64, documents_first=True)
    once = tiny_tokenizer.encode_text("Once")[0]
    begin = [int(dataset[i][0][0]) == once for i in range(len(dataset))]
    assert all(begin[16::16]) and len(begin) / 16 <= sum(begin) + 1
    masked = sum(64 - int(dataset[i][2].sum()) for i in range(len(dataset)))
    assert masked <= 0.017 * 64 * len(dataset)  # what is computed twice for it


def test_a_run_of_before_goes_on_with_its_rows(tmp_path, tiny_tokenizer):
    """The fingerprint of a checkpoint from before this layout of rows brings its rows back."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(500)))
    stream = whole_stream([cached_tokens(path, tiny_tokenizer, tmp_path / "cache")])
    before = PretrainDataset(stream, 16)
    now = PretrainDataset(stream, 16, documents_first=True)
    assert now.fingerprint != before.fingerprint
    for known, expected in ((before, before), (now, now)):
        again = PretrainDataset(stream, 16, True, going_on_from=known.fingerprint)
        assert again.fingerprint == expected.fingerprint and len(again) == len(expected)
        assert all(again[i][0].equal(expected[i][0]) for i in range(len(again)))


def test_a_dataset_is_sent_to_a_loader_process_without_its_tokens(tmp_path, tiny_tokenizer):
    """Pickling a dataset (what loader processes get on some systems) copies no tokens."""
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "word " * 50_000}))
    file = cached_tokens(path, tiny_tokenizer, tmp_path / "cache")
    assert isinstance(file, TokenFile)
    dataset = PretrainDataset(whole_stream([file]), 32)
    first = dataset[0][1].tolist()
    sent = pickle.dumps(dataset)
    assert len(sent) < 5000 and pickle.loads(sent)[0][1].tolist() == first
