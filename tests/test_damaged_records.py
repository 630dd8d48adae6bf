"""Mutated records through every reader: accepted, or refused with file and line; nothing else."""

import json
import random

import pytest

from dataset.chat import encode_conversation
from dataset.conversations import read_conversations
from dataset.pairs import read_pairs
from dataset.readers import read_texts
from dataset.records import DataError, Problems

TURNS = [
    {"role": "system", "content": "Be kind.", "tools": '[{"name": "sum"}]'},
    {"role": "user", "content": "What is 1 + 2?"},
    {"role": "assistant", "content": "", "reasoning_content": "a sum",
     "tool_calls": [{"name": "sum", "arguments": {"a": 1, "b": 2}}]},
    {"role": "tool", "content": "3"},
    {"role": "assistant", "content": "It is 3."},
]  # fmt: skip
ASK = [{"role": "user", "content": "Hi"}]
RECORDS = {
    "texts": [{"text": "Once upon a time."}],
    "chats": [
        {"conversations": TURNS},
        {"messages": TURNS[1:], "tools": [{"name": "sum"}]},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}]},
        {"instruction": "Add.", "input": "1 2", "output": "3"},
    ],
    "pairs": [
        {"chosen": [*ASK, TURNS[-1]], "rejected": [*ASK, {"role": "assistant", "content": "No"}]},
        {"prompt": "Hi", "chosen": "Yes", "rejected": "No"},
        {"prompt": ASK, "chosen": TURNS[-1:], "rejected": [{"role": "assistant", "content": "No"}]},
    ],
}  # fmt: skip
STRANGE = (None, True, 0, -1, 1e308, "", " ", "\x00", "<|im_end|>", "\ud800", "[", "{}", [], {},
           [[]], [None], {"role": "user"}, "assistant", "tool", "system", 10**30)  # fmt: skip


def mutate(value, rng: random.Random):
    """A copy of a JSON value with one thing in it replaced, left out, doubled or renamed."""
    if rng.random() < 0.25 or not isinstance(value, dict | list) or not value:
        return rng.choice(STRANGE)
    if isinstance(value, dict):
        key, copy = rng.choice(list(value)), dict(value)
        action = rng.random()
        if action < 0.6:
            copy[key] = mutate(value[key], rng)
        elif action < 0.8:
            del copy[key]
        else:
            copy[rng.choice(("role", "content", "value", "x", ""))] = copy.pop(key)
        return copy
    place, copy = rng.randrange(len(value)), list(value)
    action = rng.random()
    if action < 0.6:
        copy[place] = mutate(value[place], rng)
    elif action < 0.8:
        del copy[place]
    else:
        copy.insert(rng.randrange(len(copy) + 1), rng.choice((value[place], *STRANGE)))
    return copy


def mutated_line(record, rng: random.Random) -> bytes:
    """One line of a file: a mutated record, sometimes with damaged bytes as well."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        record = mutate(record, rng)
    line = bytearray(json.dumps(record, ensure_ascii=rng.random() < 0.5).encode("utf-8", "replace"))
    if rng.random() < 0.2:
        for _ in range(rng.randrange(1, 4)):
            if line:
                line[rng.randrange(len(line))] = rng.randrange(256)
    return bytes(line).replace(b"\n", b" ") + b"\n"


def read_all(kind: str, path, tokenizer, on_bad_record: str, problems: Problems) -> int:
    """Read and encode a file of one kind; the number of records that were accepted."""
    if kind == "texts":
        accepted = [tokenizer.encode_text(t) for t, _ in read_texts(path, on_bad_record, problems)]
    elif kind == "chats":
        accepted = [
            encode_conversation(tokenizer, c.messages, c.tools)
            for c in read_conversations(path, on_bad_record, problems)
        ]
    else:
        accepted = [
            encode_conversation(tokenizer, pair.prompt + answer, pair.tools)
            for pair in read_pairs(path, on_bad_record, problems=problems)
            for answer in (pair.chosen, pair.rejected)
        ]
    return len(accepted) // (2 if kind == "pairs" else 1)


def check(kind: str, count: int, tmp_path, tokenizer):
    rng, per_file = random.Random(kind), 500
    accepted = refused = 0
    for number in range(-(-count // per_file)):
        lines = [mutated_line(rng.choice(RECORDS[kind]), rng) for _ in range(per_file)]
        lines.append(json.dumps(RECORDS[kind][0]).encode() + b"\n")  # one that is good
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(b"".join(lines))
        problems = Problems()
        accepted += read_all(kind, path, tokenizer, "skip", problems)
        blank = sum(not line.strip() for line in lines)
        refused += problems.count + blank
        assert problems.first and all(p.startswith(f"{path}:") for p in problems.first)
        with pytest.raises(DataError, match=f"{problems.count} bad records"):
            read_all(kind, path, tokenizer, "stop", Problems())
        path.unlink()
    # nothing is lost: every line was accepted, or refused, or blank
    assert accepted + refused == -(-count // per_file) * (per_file + 1)
    assert accepted and refused
    print(f"{kind}: {accepted:,} accepted, {refused:,} refused")


@pytest.mark.parametrize("kind", RECORDS)
def test_damaged_records_are_named(kind, tmp_path, tiny_tokenizer):
    """3,000 mutated records: each is accepted or refused with file and line."""
    check(kind, 1_000, tmp_path, tiny_tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("kind", RECORDS)
def test_many_damaged_records_are_named(kind, tmp_path, tiny_tokenizer):
    """The same for over 100,000 records."""
    check(kind, 34_000, tmp_path, tiny_tokenizer)
