"""What is computed over all sequences of some files: in pieces, within a bounded memory."""

import tracemalloc

import numpy as np
import pytest

from dataset import encoded as encoded_module
from dataset.chat_turns import MAY_END, TRAINED
from dataset.encoded import HELD_OUT, Encoded, EncodedFile, Part
from dataset.sft import SFTDataset


def random_file(rng, num_records: int, mean_length: int) -> EncodedFile:
    """Records of one to three sequences; each ends with a token behind which it may be cut."""
    counts = rng.integers(1, 4, num_records)
    ends = np.cumsum(rng.integers(2, 2 * mean_length, counts.sum()))
    masks = rng.choice(np.array([0, TRAINED, TRAINED | MAY_END], np.uint8), ends[-1])
    masks[ends - 1] = TRAINED | MAY_END
    arrays = {
        "ids": rng.integers(0, 500, ends[-1]).astype(np.uint16),
        "masks": masks,
        "ends": ends,
        "record_ends": np.cumsum(counts),
        "lines": np.arange(1, num_records + 1, dtype=np.uint32),
        "hashes": rng.integers(0, 1 << 60, num_records).astype(np.uint64),
        "labels": np.zeros(num_records, np.uint8),
        "control_strings": np.zeros(1, np.int64),
    }
    return EncodedFile(arrays, "data.jsonl", "key")


@pytest.mark.parametrize("sequences_together", [1, 3, 1000])
@pytest.mark.parametrize("together", [1, 50])
def test_pieces_are_what_sequences_are(monkeypatch, together, sequences_together):
    """Contents and numbers of targets are those of one sequence after the other, over two files."""
    monkeypatch.setattr(encoded_module, "TOGETHER", together)
    monkeypatch.setattr(encoded_module, "SEQUENCES_TOGETHER", sequences_together)
    rng = np.random.default_rng(sequences_together)
    encoded = Encoded([random_file(rng, n, 12) for n in (17, 1, 30)], 0, "tokenizer")
    chosen = np.flatnonzero(rng.random(encoded.num_sequences) < 0.6)
    kept = rng.integers(1, encoded.lengths()[chosen] + 1)
    one_by_one = [
        (ids[:n], mask[:n]) for (ids, mask), n in zip(map(encoded.sequence, chosen), kept)
    ]
    ids = [np.frombuffer(bytes(b), "<i4") for b in encoded.contents("ids", chosen, kept)]
    masks = [bytes(b) for b in encoded.contents("masks", chosen, kept)]
    assert len(ids) == len(masks) == len(chosen)
    for (want_ids, want_mask), got_ids, got_mask in zip(one_by_one, ids, masks):
        assert got_ids.tolist() == want_ids.tolist()
        assert list(got_mask) == [int(m) & 1 for m in want_mask]
    targets = [sum(int(m) & 1 for m in mask) for _, mask in one_by_one]
    assert encoded.num_trained(chosen, kept).tolist() == targets


def test_making_rows_takes_75_bytes_a_sequence(monkeypatch):
    """Beside the records themselves, so that ten million conversations are packed within 1 GiB."""
    monkeypatch.setattr(encoded_module, "TOGETHER", 1 << 16)  # as few beside the sequences
    monkeypatch.setattr(encoded_module, "SEQUENCES_TOGETHER", 1 << 14)  # as in large data
    encoded = Encoded([random_file(np.random.default_rng(0), 100_000, 8)], 0, "tokenizer")
    for part in (Part("train", 0.1), Part(HELD_OUT, 0.1)):
        tracemalloc.start()
        dataset = SFTDataset(encoded, 64, part=part)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(dataset) > 100
        assert peak < 75 * encoded.num_sequences
