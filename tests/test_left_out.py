"""What does not fit a row is said, and with which --max_seq_len it would."""

import json
from pathlib import Path

import numpy as np
import pytest

import train_dpo
import train_full_sft
import train_lora
from dataset.dpo import DPODataset
from dataset.left_out import left_out_warning
from dataset.sft import SFTDataset
from tests.encode import encode

REAL = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def test_the_warning_counts_and_suggests():
    """100 records: nothing is said of 2 short ones; of 10, how many, and what keeps 99."""
    needed = np.arange(1, 101)
    assert left_out_warning("pairs", needed, np.where(needed > 100, 0, needed), 100) is None
    few = np.full(100, 10)
    kept = few.copy()
    kept[:2] = 0
    assert left_out_warning("pairs", few, kept, 9) is None
    kept[2] = 0
    assert "3 of 100 pairs (3% of all tokens) do not fit" in left_out_warning("pairs", few, kept, 9)
    line = left_out_warning("pairs", needed * 10, np.where(needed > 90, 0, needed * 10), 900)
    assert "10 of 100 pairs (19% of all tokens) do not fit --max_seq_len 900" in line
    assert "--max_seq_len 1024 keeps 99%" in line and "\n" not in line  # 990, in steps of 64
    assert "left out;" in line
    line = left_out_warning("conversations", needed * 10, np.minimum(needed * 10, 800), 900)
    assert "left out or cut after an answer;" in line


def test_two_records_with_many_tokens_are_worth_a_warning():
    """2% of the records may hold more than 5% of the tokens."""
    needed = np.array([10] * 98 + [1000] * 2)
    kept = np.where(needed > 10, 0, needed)
    assert "2 of 100 pairs (67% of all tokens)" in left_out_warning("pairs", needed, kept, 512)
    kept[-2:] = 999  # cut after an answer, all but one token kept
    assert left_out_warning("conversations", needed, kept, 999) is None


def test_pairs_that_do_not_fit_have_a_line_of_their_own(tmp_path, tiny_tokenizer):
    """DPO's summary ends with the warning, and the suggested length keeps what it says."""
    path = tmp_path / "pairs.jsonl"
    pairs = [{"prompt": "q", "chosen": "yes " * (i + 1), "rejected": "no"} for i in range(60)]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))

    def summary(max_seq_len: int) -> list[str]:
        return DPODataset(encode("pairs", path, tiny_tokenizer), max_seq_len).summary().splitlines()

    _, warning = summary(60)
    assert warning.startswith("warning: ") and " of 60 pairs (" in warning
    enough = int(warning.split("; --max_seq_len ")[1].split()[0])
    (line,) = summary(enough)
    assert int(line.split("% of the positions used; ")[1].split()[0]) <= 0.01 * 60


@pytest.mark.skipif(not REAL.is_dir(), reason="needs real conversations and pairs")
def test_defaults_keep_real_data():
    """Of Alpaca's conversations and of real pairs, the default rows leave out at most 1%."""
    from dataset.tokenizer import load_tokenizer

    tokenizer = load_tokenizer("model/tokenizer")
    assert train_full_sft.SEQ_LEN == train_lora.SEQ_LEN
    encoded = encode("conversations", REAL / "sft_alpaca_en_zh.jsonl", tokenizer)
    facts = SFTDataset(encoded, train_full_sft.SEQ_LEN).facts
    assert facts["num_cut"] + facts["num_too_long"] <= 0.01 * facts["num_conversations"]
    pairs = DPODataset(encode("pairs", REAL / "dpo_zh.jsonl", tokenizer), train_dpo.SEQ_LEN)
    assert pairs.facts["num_too_long"] <= 0.01 * pairs.total
