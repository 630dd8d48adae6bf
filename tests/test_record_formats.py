"""What people's records say: read, or refused by name, or listed as not used; in every file format.

The messages that are right are written out by hand, beside each record.
"""

import csv
import gzip
import json
from pathlib import Path

import pytest

from dataset.conversations import read_conversations, to_conversation
from dataset.messages import BadConversation
from dataset.pairs import read_pairs, to_pair
from dataset.readers import read_texts
from dataset.records import Problems, Remarks
from tests.small_runs import make_inputs, run


def say(role, content, **more):
    return {"role": role, "content": content, **more}


Q, A, S = say("user", "q"), say("assistant", "a"), say("system", "s")
Q2, A2 = say("user", "q2"), say("assistant", "a2")
CALL = {"name": "add", "arguments": {"x": 1}}
CALLING = say("assistant", "", tool_calls=[CALL])
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]

CONVERSATIONS = {
    "messages": ({"messages": [Q, A]}, [Q, A]),
    "conversations": ({"conversations": [Q, A]}, [Q, A]),
    "conversation": ({"conversation": [Q, A]}, [Q, A]),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        [Q, A],
    ),
    "sharegpt, mixed words": (
        {"conversations": [{"from": "user", "content": "q"}, {"role": "gpt", "value": "a"}]},
        [Q, A],
    ),
    "sharegpt with calls": (
        {"conversations": [
            {"from": "system", "value": "s"}, {"from": "human", "value": "q"},
            {"from": "function_call", "value": json.dumps(CALL)},
            {"from": "observation", "value": "1"}, {"from": "gpt", "value": "a"},
        ]},
        [S, Q, CALLING, say("tool", "1"), A],
    ),
    "question and answer in one": (
        {"conversation": [{"human": "q", "assistant": "a"}, {"human": "q2", "assistant": "a2"}]},
        [Q, A, Q2, A2],
    ),
    "alpaca": ({"instruction": "q", "input": "", "output": "a"}, [Q, A]),
    "alpaca with input": (
        {"instruction": "q", "input": "x", "output": "a"}, [say("user", "q\nx"), A],
    ),
    "alpaca with history": (
        {"system": "s", "history": [["q", "a"], ["q3", "a3"]], "instruction": "q2", "output": "a2"},
        [S, Q, A, say("user", "q3"), say("assistant", "a3"), Q2, A2],
    ),
    "question, answer": ({"question": "q", "answer": "a"}, [Q, A]),
    "prompt, response": ({"prompt": "q", "response": "a"}, [Q, A]),
    "prompt, completion": ({"prompt": "q", "completion": "a"}, [Q, A]),
    "prompt, completion of messages": ({"prompt": [S, Q], "completion": [A]}, [S, Q, A]),
    "what a prompt says is not learned": (
        {"prompt": [Q, A, Q2], "completion": [A2]}, [Q, A | {"weight": 0}, Q2, A2],
    ),
    "system beside": ({"system": "s", "messages": [Q, A]}, [S, Q, A]),
    "system_prompt beside": ({"system_prompt": "s\n", "conversations": [Q, A]}, [S, Q, A]),
    "the same system twice": ({"system": "s", "messages": [say("system", "s\n"), Q, A]}, [S, Q, A]),
    "a blank system": ({"system": "", "messages": [say("system", " "), Q, A]}, [Q, A]),
    "developer": ({"messages": [say("developer", "s"), Q, A]}, [S, Q, A]),
    "weight": (
        {"messages": [Q, A | {"weight": 0}, Q2, A2 | {"weight": 1}]}, [Q, A | {"weight": 0}, Q2, A2]
    ),
    "text parts": (
        {"messages": [say("user", [{"type": "text", "text": "q"}, {"type": "text", "text": "2"}]),
                      say("assistant", [{"type": "text", "text": "a\n"}])]}, [Q2, A],
    ),
    "reasoning": ({"messages": [Q, A | {"reasoning": "r"}]}, [Q, A | {"reasoning_content": "r"}]),
    "thinking": ({"messages": [Q, A | {"thinking": "r"}]}, [Q, A | {"reasoning_content": "r"}]),
    "reasoning beside": (
        {"question": "q", "reasoning": "r", "answer": "a"}, [Q, A | {"reasoning_content": "r"}],
    ),
    "a leading think block": (
        {"messages": [Q, say("assistant", "<think>\n r\n</think>\n\na")]},
        [Q, A | {"reasoning_content": " r"}],
    ),
    "an empty think block": (
        {"messages": [Q, say("assistant", "<think>\n\n</think>\n\na")]}, [Q, A],
    ),
    "tool calls": (
        {"messages": [Q, say("assistant", None, tool_calls=[
            {"id": "1", "type": "function",
             "function": {"name": "add", "arguments": '{"x": 1}'}}]), say("tool", ""), A]},
        [Q, CALLING, say("tool", ""), A],
    ),
    "function_call": (
        {"messages": [Q, say("assistant", "", function_call={"name": "add",
                                                             "arguments": '{"x": 1}'}),
                      say("function", "1", name="add"), A]},
        [Q, CALLING, say("tool", "1"), A],
    ),
    "code keeps its indentation": (
        {"messages": [say("user", "f:\n"), say("assistant", "\n    return 1\r\n")]},
        [say("user", "f:"), say("assistant", "    return 1")],
    ),
    "think elsewhere is text": (
        {"messages": [say("user", "<think>x</think>"), say("assistant", "a <think>b</think>")]},
        [say("user", "<think>x</think>"), say("assistant", "a <think>b</think>")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CONVERSATIONS)
def test_formats_of_conversations(case):
    """Each record becomes exactly these messages."""
    record, messages = CONVERSATIONS[case]
    assert to_conversation(record) == (messages, None)


def test_tools_beside_and_inside():
    """tools and functions, as a value, as JSON text or a list of JSON texts, are the same tools."""
    with_tools = say("system", "", tools=json.dumps(TOOLS))
    for record in (
        {"messages": [Q, A], "tools": TOOLS},
        {"messages": [Q, A], "tools": json.dumps(TOOLS)},
        {"messages": [Q, A], "tools": [json.dumps(tool) for tool in TOOLS]},
        {"messages": [Q, A], "functions": TOOLS},
        {"messages": [with_tools, Q, A]},
        {"messages": [with_tools, Q, A], "tools": TOOLS},
        {"instruction": "q", "output": "a", "tools": TOOLS},
    ):
        assert to_conversation(record) == ([Q, A], TOOLS)
    kept = [{"name": "f", "parameters": {"default": None}}]
    assert to_conversation({"messages": [Q, A], "tools": kept}) == ([Q, A], kept)


BAD_CONVERSATIONS = {
    "two system prompts": ({"system": "other", "messages": [S, Q, A]}, "one system prompt"),
    "two systems": ({"system": "a", "system_prompt": "b", "messages": [Q, A]}, "system and"),
    "system of a number": ({"system": 3, "messages": [Q, A]}, "text as system, got a number"),
    "half a weight": ({"messages": [Q, A | {"weight": 0.5}]}, "0 or 1 as the weight of message 2"),
    "weight, text": ({"messages": [Q, A | {"weight": "0"}]}, "weight of message 2, got a string"),
    "nothing to learn": ({"messages": [Q, A | {"weight": 0}]}, "an assistant message to learn"),
    "an image": (
        {"messages": [say("user", [{"type": "image_url", "image_url": {}}]), A]}, "'image_url'",
    ),
    "input of a number": ({"instruction": "q", "input": 7, "output": "a"},
                          "text in input, got a number"),
    "no messages": ({"messages": []}, "a list with at least one message"),
    "an unlike role": ({"messages": [say("User", "q"), A]}, "did you mean 'user'?"),
    "an unlike field": ({"mesages": [Q, A]}, "did you mean 'messages'?"),
    "an unlike content": ({"messages": [{"role": "user", "contents": "q"}, A]}, "mean 'content'?"),
    "history of text": ({"instruction": "q", "output": "a", "history": "[1"}, "JSON as history"),
    "history of threes": ({"instruction": "q", "output": "a", "history": [["a", "b", "c"]]},
                          "pairs [question, answer] of text in history, got a list of 3"),
    "two answers": ({"question": "q", "answer": "a", "response": "b"}, "answer and response"),
    "a placeholder": ({"messages": [Q, say("assistant", "无")], "gt": ["4"]},
                      "the placeholder '无': data for reinforcement learning"),
    "another": ({"messages": [Q, say("assistant", "空\n")]}, "reinforcement learning"),
    "an empty one": ({"messages": [Q, say("assistant", "")], "gt": "4"}, '"gt" judges answers'),
    "no answer but a judge": ({"messages": [Q], "gt": ["4"]}, '"gt" judges answers'),
    "null before a judge": ({"messages": [Q, say("assistant", None)], "gt": 1}, '"gt" judges'),
    "a list of texts": ({"question": ["q"], "answer": "a"}, "question, got a list with a string"),
    "an empty question": ({"prompt": "", "completion": "a"}, "an empty text as the prompt"),
    "two reasonings": ({"messages": [Q, A | {"reasoning": "r", "thinking": "t"}]}, "they differ"),
    "reasoning twice": (
        {"messages": [Q, say("assistant", "<think>r</think>a", reasoning="other")]}, "one reasoning"
    ),
    "nothing behind the thoughts": (
        {"messages": [Q, say("assistant", "<think>r</think>\n")]}, "some content in message 2",
    ),
    "NaN in arguments": (
        {"messages": [Q, say("assistant", "", tool_calls='[{"name": "f", "arguments": '
                                                         '{"x": NaN}}]')]}, "JSON can hold",
    ),
    "arguments of text": (
        {"messages": [Q, say("assistant", "", tool_calls=[{"name": "f", "arguments": "[1]"}])]},
        "an object as arguments of the call in message 2, got a list",
    ),
    "a key twice in JSON text": (
        {"messages": [Q, A], "tools": '[{"name": "f", "name": "g"}]'}, "the key 'name' twice",
    ),
    "two lists of tools": (
        {"messages": [say("system", "", tools=TOOLS), Q, A], "tools": [{"name": "f"}]},
        "the same tools",
    ),
    "tools of text": ({"messages": [Q, A], "tools": [3]}, "an object for every tool"),
    "both kinds of calls": (
        {"messages": [Q, CALLING | {"function_call": CALL}]}, "one of tool_calls and function_call",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CONVERSATIONS)
def test_what_a_bad_conversation_is(case):
    """The error names the field, what came, and where there is one the nearest accepted name."""
    record, words = BAD_CONVERSATIONS[case]
    with pytest.raises(BadConversation) as error:
        to_conversation(record)
    assert words in str(error.value)


B = say("assistant", "b")
GPT_A, GPT_B = {"from": "gpt", "value": "a"}, {"from": "gpt", "value": "b"}
HUMAN = {"from": "human", "value": "q"}
HH = "\n\nHuman: q\n\nAssistant: a2\n\nHuman: q2\n\nAssistant: "
PAIRS = {
    "text": ({"prompt": "q", "chosen": "a", "rejected": "b"}, [Q]),
    "question": ({"question": "q", "chosen": "a", "rejected": "b"}, [Q]),
    "instruction": ({"instruction": "q", "input": "", "chosen": "a", "rejected": "b"}, [Q]),
    "instruction and input": (
        {"instruction": "q", "input": "x", "chosen": "a", "rejected": "b"}, [say("user", "q\nx")],
    ),
    "history": (
        {"history": [["q2", "a2"]], "instruction": "q", "chosen": "a", "rejected": "b"},
        [Q2, A2, Q],
    ),
    "system beside": ({"system": "s", "prompt": "q", "chosen": "a", "rejected": "b"}, [S, Q]),
    "system beside messages": (
        {"system_prompt": "s", "chosen": [Q, A], "rejected": [Q, B]}, [S, Q],
    ),
    "llama-factory": ({"conversations": [HUMAN], "chosen": GPT_A, "rejected": GPT_B}, [Q]),
    "sharegpt, whole": (
        {"prompt": "q", "chosen": [HUMAN, GPT_A], "rejected": [HUMAN, GPT_B]}, [Q],
    ),
    "ultrafeedback": (
        {"prompt": "q", "messages": [Q, A], "chosen": [Q, A], "rejected": [Q, B]}, [Q],
    ),
    "hh": ({"chosen": HH + "a", "rejected": HH + "b"}, [Q, A2, Q2]),
    "hh with a prompt": ({"prompt": HH, "chosen": "a", "rejected": "b"}, [Q, A2, Q2]),
    "weights count nothing": (
        {"chosen": [Q, A2 | {"weight": 0}, Q2, A], "rejected": [Q, A2, Q2, B | {"weight": 0}]},
        [Q, A2, Q2],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PAIRS)
def test_formats_of_pairs(case):
    """Each record is the pair of the answers a and b to exactly this prompt."""
    record, prompt = PAIRS[case]
    assert to_pair(record) == (prompt, [A], [B], None)


def test_pairs_bring_their_tools():
    """tools beside a pair belong to its prompt."""
    record = {"tools": json.dumps(TOOLS), "prompt": "q", "chosen": "a", "rejected": "b"}
    assert to_pair(record)[3] == TOOLS


BAD_PAIRS = {
    "equal but for line breaks": ({"prompt": "q", "chosen": "a", "rejected": "a\n"}, "same answer"),
    "equal but for a think block": (
        {"prompt": "q", "chosen": "<think>r</think>a",
         "rejected": [A | {"reasoning_content": "r"}]}, "same answer",
    ),
    "no prompt": ({"promt": "q", "chosen": "a", "rejected": "b"}, "did you mean 'prompt'?"),
    "no answer": ({"prompt": "q", "choosen": "a", "rejected": "b"}, "did you mean 'chosen'?"),
    "another prompt": ({"prompt": "x", "chosen": [Q, A], "rejected": [Q, B]}, "another prompt"),
    "another system": (
        {"system": "x", "chosen": [S, Q, A], "rejected": [S, Q, B]}, "one system prompt",
    ),
    "an empty answer": ({"prompt": "q", "chosen": [], "rejected": "b"}, "got an empty list"),
    "a number": ({"prompt": "q", "chosen": 3, "rejected": "b"}, "chosen, got a number"),
    "two prompts": ({"prompt": "q", "question": "x", "chosen": "a", "rejected": "b"}, "differ"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_PAIRS)
def test_what_a_bad_pair_is(case):
    """Answers are compared in the form that is trained; prompts are not chosen between."""
    record, words = BAD_PAIRS[case]
    with pytest.raises(BadConversation) as error:
        to_pair(record)
    assert words in str(error.value)


@pytest.mark.parametrize("text", ['[{"role": "admin", "name": "x"}]', '{"content": 1}', "[{", "{"])
def test_an_answer_of_json_stays_text(text):
    """An answer that is JSON, or begins like it, is no message unless it has a message's form."""
    messages, _ = to_conversation({"prompt": text, "completion": text})
    assert [message["content"] for message in messages] == [text, text]
    assert to_pair({"prompt": "q", "chosen": text, "rejected": "b"})[1][0]["content"] == text


# ---- the same records in every format of files


def write_records(path: Path, records: list[dict]):
    """Records in the format of the file's name; csv has JSON text where values are no text."""
    lines = "".join(json.dumps(record) + "\n" for record in records)
    name = path.name
    if name.endswith((".jsonl", ".ndjson.json")):
        path.write_text(lines)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    elif name.endswith(".json"):
        path.write_text(json.dumps(records, indent=1))
    elif name.endswith(".csv"):
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(records[0]))
            writer.writeheader()
            for record in records:
                writer.writerow({
                    k: v if isinstance(v, str) else json.dumps(v) for k, v in record.items()
                })  # fmt: skip
    else:
        import pyarrow
        from pyarrow import parquet

        if name.endswith(".zst"):
            path.write_bytes(pyarrow.compress(lines.encode(), codec="zstd", asbytes=True))
            return
        table = pyarrow.Table.from_pylist(records)
        if name.endswith(".parquet"):
            parquet.write_table(table, path)
        elif name.endswith(".file.arrow"):
            with pyarrow.ipc.new_file(path, table.schema) as writer:
                writer.write_table(table)
        elif name.endswith(".arrow"):
            with pyarrow.ipc.new_stream(path, table.schema) as writer:
                writer.write_table(table)
        else:
            from datasets import Dataset

            Dataset.from_list(records).save_to_disk(path, num_shards=min(2, len(records)))


FILES = ["a.jsonl", "a.ndjson.json", "a.jsonl.gz", "a.jsonl.zst", "a.json", "a.csv", "a.parquet",
         "a.arrow", "a.file.arrow", "saved"]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_every_file_format_means_the_same(tmp_path, name):
    """Conversations and pairs are those of jsonl, in Arrow's padded structs and in csv's texts."""
    for number, (record, messages) in enumerate(CONVERSATIONS.values()):
        folder = tmp_path / f"conversations {number}"
        folder.mkdir()
        write_records(folder / name, [record, record, record])
        read = list(read_conversations(folder / name))
        assert [c.messages for c in read] == [messages] * 3, record
        first = 2 if name.endswith("csv") else 1
        if not name.endswith(".json") or "ndjson" in name:
            assert [c.line for c in read] == [first, first + 1, first + 2]
    for number, (record, prompt) in enumerate(PAIRS.values()):
        folder = tmp_path / f"pairs {number}"
        folder.mkdir()
        write_records(folder / name, [record, record])
        assert [(p.prompt, p.chosen, p.rejected) for p in read_pairs(folder / name)] == [
            (prompt, [A], [B])
        ] * 2, record
    path = tmp_path / name
    write_records(path, [{"text": "one", "n": 1}, {"text": "two", "n": 2}, {"text": "3", "n": 3}])
    steps, problems = [], Problems()
    assert [t for t, _ in read_texts(path, "stop", problems, steps.append)] == ["one", "two", "3"]
    assert problems.lines() == [f"{path}: not used: n (3)"]
    files = list(path.glob("*.arrow")) if path.is_dir() else [path]
    assert sum(steps) == sum(file.stat().st_size for file in files)


# ---- what is said about records that are good


def test_what_nothing_reads_is_listed_once_a_file(tmp_path):
    """Fields of records, messages, parts and calls, each with its count; what is empty is not."""
    message = say("user", [{"type": "text", "text": "q", "lang": "en"}], name="me", tool_calls=None)
    call = {"id": "1", "type": "function", "function": CALL | {"strict": True}}
    answer = say("assistant", "", tool_calls=[call], weight=1)
    record = {"messages": [message, answer, say("tool", "1", tool_call_id="1"), A], "id": 0}
    record |= {"meta": {"k": 1}, "tags": [], "note": "", "source": None, "prompt": "q"}
    path = tmp_path / "a.jsonl"
    bad = {"messages": [], "never": "said"}
    write_records(path, [record, {"messages": [Q, A], "id": 1}, bad])
    problems = Problems()
    assert len(list(read_conversations(path, "skip", problems))) == 2
    skipped, problem, said = problems.lines()
    assert skipped == "skipped 1 bad record; the first:" and problem.startswith(f"{path}:3: ")
    head, names = said.split(": not used: ")
    assert head == str(path) and sorted(names.split(", ")) == sorted([
        "meta (1)", "id (2)", "prompt (1)", "messages[].name (1)", "messages[].content[].lang (1)",
        "messages[].tool_calls[].id (1)", "messages[].tool_calls[].function.strict (1)",
        "messages[].tool_call_id (1)",
    ])  # fmt: skip


def test_how_it_was_read_is_said(tmp_path):
    """Think blocks and turns in text are counted; keys made of data do not fill the memory."""
    path = tmp_path / "a.jsonl"
    think = {"messages": [Q, say("assistant", "<think>r</think>a")]}
    write_records(path, [think, think, {"messages": [Q, A]}])
    problems = Problems()
    list(read_conversations(path, problems=problems))
    assert problems.lines() == [f"{path}: 2 leading <think> blocks read as reasoning_content"]
    write_records(path, [{"chosen": HH + "a", "rejected": HH + "b"}])
    problems = Problems()
    list(read_pairs(path, problems=problems))
    assert "Human: … Assistant: …" in problems.lines()[0]
    write_records(path, [{"text": "t", f"key{i}": 1, "\x1b[31m": 1} for i in range(3000)])
    problems = Problems()
    list(read_texts(path, problems=problems))
    (line,) = problems.lines()
    assert len(line) < 2000 and "\x1b" not in line and "other fields (2,001)" in line


@pytest.mark.parametrize("script", ["full_sft", "lora", "dpo", "pretrain"])
def test_training_says_it_when_it_starts(tmp_path, tiny_tokenizer_dir, script):
    """Fields that nothing reads and records that were skipped, before the first step."""
    flags = make_inputs(tmp_path, tiny_tokenizer_dir)[script]
    path = Path(flags[flags.index("--data_path") + 1])
    records = [json.loads(line) | {"meta": 1} for line in path.read_text().splitlines()]
    write_records(path, [*records, {"nothing": "of use"}])
    more = ["--on_bad_record", "skip", "--max_steps", 1, "--eval_interval", 100]
    out = run(script, tmp_path / "out", *flags, *more)
    assert f"{path}: not used: meta ({len(records)})\n" in out
    assert "skipped 1 bad record" in out and f"{path}:{len(records) + 1}: expected " in out


def test_a_record_of_weight_0_is_not_learned():
    """Beside the messages a weight of 0 is a bad record; other numbers are something else's."""
    talk = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    with pytest.raises(BadConversation, match="a record to learn"):
        to_conversation(talk | {"weight": 0})
    for weight, unused in ((1, {}), (3.5, {"weight": 1})):
        remarks = Remarks()
        to_conversation(talk | {"weight": weight}, remarks)
        assert dict(remarks.not_used) == unused


def test_train_false_is_weight_0():
    """Some data say "train": false on a message in place of "weight": 0."""
    ask = {"role": "user", "content": "q"}
    bad, good = ({"role": "assistant", "content": "a", "train": train} for train in (False, True))
    messages, _ = to_conversation({"messages": [ask, bad, ask, good]})
    assert [m.get("weight") for m in messages] == [None, 0, None, None]
    with pytest.raises(BadConversation, match="both, and they differ"):
        to_conversation({"messages": [ask, good | {"weight": 0}]})
