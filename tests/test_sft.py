"""Conversations → rows: formats, masks, packing, truncation."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.best_fit import best_fit
from dataset.chat import THINKING, encode_conversation, training_sequences
from dataset.chat_turns import TRAINED
from dataset.conversations import Conversation, read_conversations, to_conversation
from dataset.encoded import HELD_OUT, Part
from dataset.records import DataError
from dataset.sft import SFTDataset
from model.config import LMConfig
from model.model import MiniMindLM
from tests.encode import encode
from training.losses import masked_cross_entropy

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
SHIPPED = Path(__file__).resolve().parent.parent / "model" / "tokenizer"
QUESTION, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    "record",
    [
        {"conversations": [QUESTION, ANSWER]},
        {"messages": [QUESTION, ANSWER]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"instruction": "q", "input": "", "output": "a"},
    ],
)
def test_four_formats_mean_the_same(record):
    """conversations, messages, ShareGPT and Alpaca records become the same messages."""
    assert to_conversation(record) == ([QUESTION, ANSWER], None)


def test_tools_and_calls_may_be_json_text():
    """tools beside or on the system message and tool_calls, as JSON text or as values."""
    tools = [{"name": "add"}]
    call = {"name": "add", "arguments": {"a": 1}}
    system = {"role": "system", "content": ""}
    answer = {"role": "assistant", "content": ""}
    expected = ([QUESTION, answer | {"tool_calls": [call]}], tools)  # an empty prompt is none
    variants = [
        ({"tools": json.dumps(tools)}, {}, json.dumps([call])),
        ({}, {"tools": tools}, [{"type": "function", "function": call}]),
        ({"tools": tools}, {}, [call | {"arguments": json.dumps(call["arguments"])}]),
    ]
    for on_system, beside, calls in variants:
        messages = [system | on_system, QUESTION, answer | {"tool_calls": calls}]
        assert to_conversation({"conversations": messages} | beside) == expected


BAD = {
    "two users": [QUESTION, QUESTION, ANSWER],
    "assistant first": [ANSWER],
    "late system": [QUESTION, ANSWER, {"role": "system", "content": "s"}],
    "unknown role": [{"role": "robot", "content": "x"}, ANSWER],
    "no answer": [QUESTION],
    "content not text": [{"role": "user", "content": 3}, ANSWER],
    "empty": [],
    "not a list": "hello",
    "empty answer": [QUESTION, {"role": "assistant", "content": " "}],
    "tools not JSON": [{"role": "system", "content": "", "tools": "[{"}, QUESTION, ANSWER],
    "calls not a list": [QUESTION, {"role": "assistant", "content": "", "tool_calls": "3"}],
}


@pytest.mark.parametrize("case", BAD)
def test_bad_conversations_name_file_and_line(tmp_path, case):
    """Each is reported with file and line; skipped records are counted, never lost silently."""
    path = tmp_path / "data.jsonl"
    good, bad = ({"conversations": c} for c in ([QUESTION, ANSWER], BAD[case]))
    path.write_text(json.dumps(good) + "\n" + json.dumps(bad) + "\n")
    with pytest.raises(DataError, match=r"data\.jsonl:2: expected "):
        list(read_conversations(path))
    assert len(list(read_conversations(path, "skip"))) == 1


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=60))
def test_best_fit_keeps_items_whole(lengths):
    """Every item is in one bin, no bin overflows, and no two bins could be one."""
    items, ends = best_fit(np.array(lengths, np.int64), 50)
    bins = [row.tolist() for row in np.split(items, ends[:-1]) if lengths]
    assert sorted(i for row in bins for i in row) == list(range(len(lengths)))
    sums = sorted(sum(lengths[i] for i in row) for row in bins)
    assert all(0 < total <= 50 for total in sums)
    assert len(sums) < 2 or sums[0] + sums[1] > 50


def conversations(tokenizer, count=40):
    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        messages = []
        for turn in range(rng.integers(1, 4)):
            messages += [
                {"role": "user", "content": f"Question {i}.{turn}?"},
                {"role": "assistant", "content": "The cat. " * int(rng.integers(1, 6))},
            ]
        made.append(Conversation(messages, None, "data.jsonl", i + 1))
    return made


def test_rows_hold_exactly_the_supervised_tokens(tiny_tokenizer):
    """Unpacking the rows gives every conversation's ids and supervised targets, token by token."""
    made = conversations(tiny_tokenizer)
    dataset = SFTDataset(encode("conversations", made, tiny_tokenizer), 160)
    found = []
    for X, Y, loss_mask, document_ids in dataset:
        assert loss_mask.sum() > 0
        for number in range(1, int(document_ids.max()) + 1):
            inside = document_ids == number
            ids = [int(X[inside][0]), *Y[inside].tolist()]
            found.append((ids, [0, *loss_mask[inside].int().tolist()]))
        padding = document_ids == 0
        assert loss_mask[padding].sum() == 0 and (X[padding] == tiny_tokenizer.eos_id).all()
    expected = [encode_conversation(tiny_tokenizer, c.messages) for c in made]
    assert sorted(found) == sorted((list(ids), list(mask)) for ids, mask in expected)
    targets = dataset.loss_tokens(np.arange(len(dataset)))
    assert targets.tolist() == [int(row[2].sum()) for row in dataset]
    assert dataset.loss_tokens(np.array([-1])) == 0 and dataset[-1][2].sum() == 0
    documents = [len(row[3].unique_consecutive()) for row in dataset]
    assert max(documents) <= dataset.documents_per_row <= max(documents) + 1


def test_sequences_of_a_conversation_stay_together(tiny_tokenizer):
    """Where the template changes earlier turns, each answer is in one sequence, every sequence in
    one row, and a conversation is held out, or taken twice, as a whole."""
    thinking = copy.copy(tiny_tokenizer)
    thinking.chat_template = THINKING
    made = conversations(tiny_tokenizer)
    encoded = encode("conversations", made, thinking)
    expected = [
        (ids, [m & TRAINED for m in mask])
        for c in made
        for ids, mask in training_sequences(thinking, c.messages)
    ]
    assert encoded.num_sequences == len(expected) > encoded.num_records == len(made)
    for i, (ids, mask) in enumerate(expected):
        assert encoded.sequence(i)[0].tolist() == ids
        assert (encoded.sequence(i)[1] & TRAINED).tolist() == mask
    answers = sum(m["role"] == "assistant" for c in made for m in c.messages)
    assert len(expected) == answers  # there are no thoughts: every answer has its own sequence
    dataset = SFTDataset(encoded, 160)
    assert sorted(dataset.items["sequence"].tolist()) == list(range(len(expected)))
    train, val = (
        set(SFTDataset(encoded, 160, part=Part(side, 0.3)).items["record"].tolist())
        for side in ("train", HELD_OUT)
    )
    assert train.isdisjoint(val) and len(val) > 0
    assert train | val == set(range(len(made)))
    half = SFTDataset(encoded, 160, weights=[0.5]).items
    kept = set(half["record"].tolist())
    assert len(kept) == len(made) // 2
    record_of = dict(zip(dataset.items["sequence"].tolist(), dataset.items["record"].tolist()))
    of_kept = [i for i in range(len(expected)) if record_of[i] in kept]
    assert sorted(half["sequence"].tolist()) == of_kept


def test_packed_equals_unpacked(tiny_tokenizer):
    """The same conversations give the same loss and gradients, packed or one to a row."""
    encoded = encode("conversations", conversations(tiny_tokenizer, 12), tiny_tokenizer)
    results = []
    for packing in (True, False):
        torch.manual_seed(0)
        model = MiniMindLM(LMConfig(
            vocab_size=512, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, intermediate_size=64, initializer_range=0.2,
        ))  # fmt: skip
        dataset = SFTDataset(encoded, 200, packing)
        X, Y, loss_mask, document_ids = map(torch.stack, zip(*dataset))
        loss = masked_cross_entropy(model(X, document_ids)[0], Y, loss_mask)
        loss.backward()
        results.append((len(dataset), loss, [p.grad for p in model.parameters()]))
    (rows, loss, grads), (more_rows, other_loss, other_grads) = results
    assert rows < more_rows
    torch.testing.assert_close(loss, other_loss, rtol=1e-5, atol=0)
    for a, b in zip(grads, other_grads):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_long_conversations_are_cut_at_an_answer(tiny_tokenizer):
    """What does not fit loses whole turns from the end, is counted, and never half an answer."""
    roles = ("user", "assistant") * 3
    turns = [{"role": role, "content": f"{role} {i} " * 5} for i, role in enumerate(roles)]
    made = [Conversation(turns, None, "f", 1), Conversation(turns[:2], None, "f", 2)]
    two = len(encode_conversation(tiny_tokenizer, turns[:4])[0])
    encoded = encode("conversations", made, tiny_tokenizer)
    dataset = SFTDataset(encoded, two - 1)
    assert dataset.facts["num_cut"] == 1 and dataset.facts["num_too_long"] == 0
    first, _ = dataset.first_sequences(1)[0]
    assert first.tolist() == encode_conversation(tiny_tokenizer, turns[:4])[0]
    short = len(encode_conversation(tiny_tokenizer, turns[:2])[0]) - 2
    with pytest.raises(ValueError, match=f"--max_seq_len {short} .2 are too long"):
        SFTDataset(encoded, short)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real text is not here")
def test_packing_wastes_little_of_real_instructions():
    """At least 95% of the packed positions hold real tokens on real instructions at 768."""
    from dataset.tokenizer import load_tokenizer

    path = SHARED / "sft_alpaca_en_zh.jsonl"
    dataset = SFTDataset(encode("conversations", path, load_tokenizer(SHIPPED)), 768)
    assert dataset.efficiency >= 0.95
