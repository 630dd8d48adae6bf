"""Mutated records through every reader: accepted, or refused with file and line; nothing else.

What is accepted is in the checked form, whatever was written.
"""

import csv
import json
import random

import pytest

from dataset.chat import encode_conversation
from dataset.conversations import read_conversations
from dataset.messages import check_messages
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
    "texts": [{"text": "Once upon a time."}, {"text": "Twice.", "meta": {"id": [1]}}],
    "chats": [
        {"conversations": TURNS},
        {"messages": TURNS[1:], "tools": [{"name": "sum"}]},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}]},
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"system": "Be kind.", "history": [["Hi", "Yes"]], "instruction": "Add.", "output": "3"},
        {"prompt": ASK, "completion": TURNS[-1:]},
        {"question": "1 + 2?", "answer": "<think>a sum</think>3", "gt": "3"},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]},
                      {"role": "assistant", "content": "Yes", "weight": 0}, *ASK,
                      {"role": "assistant", "content": "No", "weight": 1, "thinking": "hm"}],
         "system_prompt": "Be kind.", "functions": '[{"name": "sum"}]'},
        {"messages": [*ASK, {"role": "assistant", "content": None,
                             "function_call": {"name": "sum", "arguments": '{"a": 1}'}},
                      {"role": "function", "name": "sum", "content": "1"}, TURNS[-1]]},
        {"conversations": [{"from": "human", "value": "Hi"},
                           {"from": "function_call", "value": '{"name": "sum", "arguments": {}}'},
                           {"from": "observation", "value": ""}, {"from": "gpt", "value": "1"}],
         "tools": '[{"name": "sum"}]'},
        {"conversation": [{"human": "Hi", "assistant": "Yes"}]},
    ],
    "pairs": [
        {"chosen": [*ASK, TURNS[-1]], "rejected": [*ASK, {"role": "assistant", "content": "No"}]},
        {"prompt": "Hi", "chosen": "Yes", "rejected": "No"},
        {"prompt": ASK, "chosen": TURNS[-1:], "rejected": [{"role": "assistant", "content": "No"}]},
        {"conversations": [{"from": "human", "value": "Hi"}], "system": "Be kind.",
         "chosen": {"from": "gpt", "value": "Yes"}, "rejected": {"from": "gpt", "value": "No"}},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi\n\nAssistant: No"},
        {"instruction": "Add.", "input": "1 2", "history": [["Hi", "Yes"]], "chosen": "3",
         "rejected": "4", "tools": [{"name": "sum"}]},
    ],
}  # fmt: skip
STRANGE = ("[{", '[{"role": "user"}]', "<think></think>", "无", "\n", 1, 0.5, float("nan"), [["a"]],
           {"type": "text", "text": 1}, {"from": "human"}, "\n\nHuman: a\n\nAssistant:", None,
           True, 0, -1, 1e308, "", " ", "\x00", "<|im_end|>", "\ud800", "[", "{}", [], {}, [[]],
           [None], {"role": "user"}, "assistant", "tool", "system", 10**30)  # fmt: skip


NAMES = ("role", "content", "value", "x", "", "from", "weight", "thinking", "tool_calls", "system",
         "function_call", "arguments", "history", "tools", "text", "messages", "input")  # fmt: skip


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
            copy[rng.choice(NAMES)] = copy.pop(key)
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


def assert_checked(messages: list[dict], tools: list | None):
    """The messages are in the form that training relies on, and checking them changes nothing."""
    assert check_messages(messages)[0] == messages
    for message in messages:
        assert message["role"] in ("system", "user", "assistant", "tool")
        texts = [message["content"], *([message["reasoning_content"]]
                                       if "reasoning_content" in message else [])]  # fmt: skip
        for text in texts:
            assert isinstance(text, str) and text == text.strip("\r\n")
        allowed = {"role", "content"}
        if message["role"] == "assistant":
            allowed |= {"reasoning_content", "tool_calls", "weight"}
            assert message.get("weight", 0) == 0 and message["content"].strip() + str(
                message.get("tool_calls", "")
            )
            for call in message.get("tool_calls", []):
                assert call.keys() == {"name", "arguments"} and isinstance(call["arguments"], dict)
        assert message.keys() <= allowed
    json.dumps([messages, tools], allow_nan=False, ensure_ascii=False).encode("utf-8")


def read_all(kind: str, path, tokenizer, on_bad_record: str, problems: Problems) -> int:
    """Read and encode a file of one kind; the number of records that were accepted."""
    if kind == "texts":
        accepted = [tokenizer.encode_text(t) for t, _ in read_texts(path, on_bad_record, problems)]
    elif kind == "chats":
        accepted = list(read_conversations(path, on_bad_record, problems))
        for c in accepted:
            assert_checked(c.messages, c.tools)
            encode_conversation(tokenizer, c.messages, c.tools)
            assert any(m["role"] == "assistant" and "weight" not in m for m in c.messages)
    else:
        accepted = list(read_pairs(path, on_bad_record, problems=problems))
        for pair in accepted:
            assert pair.chosen != pair.rejected and pair.prompt
            for answer in (pair.chosen, pair.rejected):
                assert_checked(pair.prompt + answer, pair.tools)
                encode_conversation(tokenizer, pair.prompt + answer, pair.tools)
    assert all(len(line) < 1000 and line.isprintable() for line in problems.lines())
    return len(accepted)


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


def write_as(extension: str, path, record: dict) -> bool:
    """Write a record, three times, in another format; False where that cannot hold it."""
    try:
        if extension == ".csv":
            with open(path, "w", newline="", encoding="utf-8") as file:
                rows = csv.writer(file)
                rows.writerow(record)
                rows.writerows(
                    [[v if isinstance(v, str) else json.dumps(v) for v in record.values()]] * 3
                )
        elif extension == ".json":
            path.write_text(json.dumps([record] * 3), encoding="utf-8")
        else:
            import pyarrow
            from pyarrow import parquet

            table = pyarrow.Table.from_pylist([record] * 3)
            if extension == ".parquet":
                parquet.write_table(table, path)
            else:
                with pyarrow.ipc.new_stream(path, table.schema) as writer:
                    writer.write_table(table)
    except (ValueError, TypeError, OverflowError, NotImplementedError, csv.Error):
        return False  # mixed types, lone surrogates, numbers too large for Arrow
    return True


def check_files(kind: str, count: int, tmp_path, tokenizer):
    """Mutated records as csv, json, parquet and Arrow files of three equal records each."""
    rng, read = random.Random(kind), 0
    for number in range(count):
        record = mutate(rng.choice(RECORDS[kind]), rng)
        extension = (".csv", ".json", ".parquet", ".arrow")[number % 4]
        path = tmp_path / f"{number}{extension}"
        if not isinstance(record, dict) or not record or not write_as(extension, path, record):
            continue
        problems = Problems()
        try:
            accepted = read_all(kind, path, tokenizer, "stop", problems)
        except DataError:
            assert problems.count == 3 and len(problems.first) == 1
        except ValueError as error:  # the whole file is refused
            assert str(path) in str(error) and len(str(error).splitlines()) == 1
        else:
            assert accepted == 3 and not problems.count
            read += 1
        path.unlink()
    assert read


@pytest.mark.parametrize("kind", RECORDS)
def test_damaged_records_in_other_formats(kind, tmp_path, tiny_tokenizer):
    """400 mutated records in csv, json, parquet and Arrow: accepted or refused, three times."""
    check_files(kind, 400, tmp_path, tiny_tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("kind", RECORDS)
def test_many_damaged_records_are_named(kind, tmp_path, tiny_tokenizer):
    """The same for over 100,000 records."""
    check(kind, 34_000, tmp_path, tiny_tokenizer)
    check_files(kind, 10_000, tmp_path, tiny_tokenizer)
