"""Duplicates and control strings are counted once, by one code, wherever data is read."""

import json

import numpy as np
import pytest

from dataset import oddities, token_cache
from dataset.conversations import read_conversations
from dataset.dpo import DPODataset
from dataset.encoded import ALL, HELD_OUT, Part
from dataset.oddities import ControlStrings, count_repeats, described
from dataset.sft import SFTDataset
from dataset.token_cache import cached_tokens
from scripts.validate_data import validate
from tests.encode import encode

ASK = {"role": "user", "content": "Hi"}


def answer(text: str) -> dict:
    return {"role": "assistant", "content": text}


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("together", [1, 7, 100, 1 << 24])
def test_repeats_are_counted_in_any_number_of_parts(monkeypatch, together):
    """n - number of distinct hashes, however few are sorted at a time."""
    monkeypatch.setattr(oddities, "SORTED_TOGETHER", together)
    rng = np.random.default_rng(0)
    for size, values in ((0, 5), (1, 5), (50, 5), (300, 200)):
        hashes = rng.integers(0, values, size).astype(np.uint64)
        assert count_repeats(hashes) == size - len(np.unique(hashes))
    assert count_repeats(np.array([0, 2**64 - 1, 2**64 - 1], np.uint64)) == 1


def test_control_strings_are_found_as_they_are_written(tiny_tokenizer):
    """The exact name anywhere in the text; a part of one is nothing."""
    control = ControlStrings(tiny_tokenizer.control_tokens)
    for text in ("<|im_end|>", "a<think>b", "< <|endoftext|>"):
        assert control.are_in(text)
    for text in ("", "a < b", "<|im_en|>", "im_end", "<THINK>"):
        assert not control.are_in(text)
    assert not ControlStrings([]).are_in("<|im_end|>")


def test_pretraining_says_so_at_every_start(tmp_path, tiny_tokenizer, capsys, monkeypatch):
    """One line on stderr, the same whether the cache is new or found, from the first rank alone."""
    texts = ["one", "two <|im_end|>", "one", "three", "one"]
    data = write(tmp_path / "data.jsonl", [{"text": text} for text in texts])
    said = []
    for _ in range(2):
        file = cached_tokens(data, tiny_tokenizer, tmp_path / "cache")
        said.append(capsys.readouterr().err)
    assert said[0] == said[1] == f"{data}: 5 texts, {described(2, 1)}\n"
    assert (file.meta["num_repeats"], file.meta["num_with_control_strings"]) == (2, 1)
    assert not set(file.tokens.tolist()) & {tiny_tokenizer.control_id("<|im_end|>")}
    monkeypatch.setenv("RANK", "1")
    cached_tokens(data, tiny_tokenizer, tmp_path / "cache")
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    cached_tokens(write(data, [{"text": "one"}]), tiny_tokenizer, tmp_path / "cache")
    assert capsys.readouterr().err == "", "nothing odd, nothing said"


def test_batches_make_no_difference(tmp_path, tiny_tokenizer, monkeypatch):
    """Equal texts are found though they were tokenised in different batches."""
    monkeypatch.setattr(token_cache, "BATCH_CHARACTERS", 1)
    data = write(tmp_path / "data.jsonl", [{"text": text} for text in "abca"])
    assert cached_tokens(data, tiny_tokenizer, tmp_path / "cache").meta["num_repeats"] == 1


def test_conversations_are_counted_as_they_are_meant(tmp_path, tiny_tokenizer):
    """The same messages in another format are the same; summary() says it, also after a split."""
    chat = [ASK, answer("Yes")]
    records = [
        {"conversations": chat},
        {"messages": chat, "note": "another field"},
        {"instruction": "Hi", "output": "Yes"},
        {"conversations": [ASK, answer("No <think>")]},
        {"conversations": [ASK, answer("Yes"), ASK, answer("Yes")]},
    ]
    path = write(tmp_path / "chats.jsonl", records)
    encoded = encode("conversations", path, tiny_tokenizer)
    assert described(2, 1) == encoded.oddities()
    for part in (ALL, Part("train", 0.2), Part(HELD_OUT, 0.2)):
        assert SFTDataset(encoded, 100, part=part).summary().endswith(described(2, 1))


def test_pairs_are_counted(tmp_path, tiny_tokenizer):
    """A pair is the same when prompt and both answers are; the reverse pair is another one."""
    one, other = [ASK, answer("Yes")], [ASK, answer("No <|im_end|>")]
    records = [
        {"chosen": one, "rejected": other},
        {"prompt": "Hi", "chosen": "Yes", "rejected": "No <|im_end|>"},
        {"chosen": other, "rejected": one},
        {"prompt": "Hello", "chosen": "Yes", "rejected": "No"},
    ]
    path = write(tmp_path / "pairs.jsonl", records)
    encoded = encode("pairs", path, tiny_tokenizer)
    assert described(1, 3) == encoded.oddities()
    assert DPODataset(encoded, 100, Part("train", 0.2)).summary().endswith(described(1, 3))


def test_validation_reports_what_training_will(tmp_path, tiny_tokenizer, capsys):
    """scripts/validate_data.py and the start of training give the same two numbers."""
    texts = write(tmp_path / "t.jsonl", [{"text": t, "id": i} for i, t in enumerate("aab")])
    chats = write(tmp_path / "c.jsonl", [{"conversations": [ASK, answer("<think>")]}] * 3)
    pair = {"prompt": "Hi", "chosen": "Yes", "rejected": "No"}
    pairs = write(tmp_path / "p.jsonl", [pair, pair])
    meta = cached_tokens(texts, tiny_tokenizer, tmp_path / "cache").meta
    expected = [
        described(meta["num_repeats"], meta["num_with_control_strings"]),
        encode("conversations", chats, tiny_tokenizer).oddities(),
        encode("pairs", pairs, tiny_tokenizer).oddities(),
    ]
    assert expected == [described(1, 0), described(2, 3), described(1, 0)]
    capsys.readouterr()
    for path, counts in zip((texts, chats, pairs), expected):
        assert validate(str(path), "auto", 10, tiny_tokenizer.control_tokens) == 0
        assert capsys.readouterr().out.strip().endswith(counts)


def test_a_surrogate_in_json_text_is_a_bad_record(tmp_path):
    """An escape inside tools or arguments given as text is found by file and line."""
    call = [{"name": "f", "arguments": {"a": "\ud800"}}]
    message = {"role": "assistant", "content": "", "tool_calls": json.dumps(call)}
    path = write(tmp_path / "c.jsonl", [{"conversations": [ASK, message]}])
    with pytest.raises(ValueError, match=r"c\.jsonl:1: .*tool_calls.*a lone surrogate"):
        list(read_conversations(path))
