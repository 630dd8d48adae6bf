"""csv, parquet and Arrow: what a parser's error costs, and which columns cost nothing."""

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from dataset.conversations import read_conversations
from dataset.pairs import read_pairs
from dataset.readers import read_records, read_texts
from dataset.records import DataError, Problems
from tests.conftest import ROOT

FAULTS = ROOT.parent / "shared" / "faults"
US, FAR = pyarrow.timestamp("us"), 2**62


def write_table(path: Path, columns: dict):
    table = pyarrow.table(columns)
    if path.suffix == ".parquet":
        parquet.write_table(table, path)
    else:
        with pyarrow.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    return path


def chat(answer: dict) -> list[dict]:
    return [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"} | answer]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_columns_that_nobody_reads_cost_nothing(tmp_path, name):
    """Dates beyond Python's, unknown time zones, nanoseconds, bytes: the texts are good."""
    rows = {
        "text": ["one", "two"],
        "far": pyarrow.array([FAR, 0], US),
        "day": pyarrow.array([2**30, 0], pyarrow.date32()),
        "mars": pyarrow.array([0, 0], pyarrow.timestamp("us", "Mars/Olympus")),
        "nanoseconds": pyarrow.array([1, 2], pyarrow.timestamp("ns")),
        "raw": pyarrow.array([b"\xff", b""], pyarrow.binary()),
    }
    path, problems = write_table(tmp_path / name, rows), Problems()
    assert [text for text, _ in read_texts(path, problems=problems)] == ["one", "two"]
    names = ", ".join(f"{name} (2)" for name in list(rows)[1:])
    assert problems.lines() == [f"{path}: not used: {names}"]
    # read as the text they are bad records, each with the reason
    for field in list(rows)[1:]:
        with pytest.raises(DataError, match=rf"{name}:1: expected .*{field}.*, got "):
            list(read_texts(path, text_field=field))
    with pytest.raises(DataError, match="2 bad records") as error:
        list(read_texts(path, text_field="txt"))
    assert "the fields 'text', 'far'" in str(error.value) and "--text_field text" in str(
        error.value
    )


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_one_value_that_cannot_be_read_is_one_bad_record(tmp_path, name):
    """The rows beside it stay, whatever batch it is in."""
    texts = pyarrow.array([{"text": "a", "when": 0}] * 300 + [{"text": "b", "when": FAR}] * 2,
                          pyarrow.struct({"text": pyarrow.string(), "when": US}))  # fmt: skip
    path, problems = write_table(tmp_path / name, {"text": texts}), Problems()
    records = list(read_records(path, "skip", problems))
    assert len(records) == 300 and problems.count == 2
    assert problems.first[0].startswith(f"{path}:301: expected a value of text that can be read")


def test_padding_of_structs_is_absent_and_null_on_purpose_stays(tmp_path):
    """Arguments and schemas have the members that were written, in Arrow and in jsonl."""
    calls = [{"name": "clock", "arguments": {"zone": "UTC"}},
             {"name": "weather", "arguments": {"city": "Bonn", "days": [1, None]}}]  # fmt: skip
    tools = [{"name": "clock", "parameters": {"zone": {"type": "string"}}},
             {"name": "weather", "parameters": {"city": {"type": "string"}}}]  # fmt: skip
    chats = [chat({"content": None, "tool_calls": [call]}) for call in calls]
    table = {"messages": chats, "tools": [tools, tools]}
    for name in ("a.parquet", "a.arrow"):
        read = list(read_conversations(write_table(tmp_path / name, table)))
        assert [c.messages[1]["tool_calls"] for c in read] == [[call] for call in calls]
        assert [c.tools for c in read] == [tools, tools]
    path = tmp_path / "a.jsonl"
    call = {"name": "clock", "arguments": {"zone": None}}
    tools = [{"name": "clock", "parameters": {"default": None}}]
    path.write_text(json.dumps({"messages": chat({"tool_calls": [call]}), "tools": tools}))
    (conversation,) = read_conversations(path)
    assert conversation.messages[1]["tool_calls"] == [call] and conversation.tools == tools


@pytest.mark.parametrize(
    "value", [datetime.datetime(2024, 1, 1), datetime.date(2024, 1, 1), b"x", float("nan")]
)
def test_arguments_that_json_cannot_hold_are_bad_records(tmp_path, value):
    """A date or NaN in a tool call, or a date as a content, is named, never a traceback."""
    call = {"name": "clock", "arguments": {"when": value}}
    table = {"messages": [chat({"tool_calls": [call]}), chat({})]}
    problems = Problems()
    path = write_table(tmp_path / "a.parquet", table)
    assert len(list(read_conversations(path, "skip", problems))) == 1
    assert ":1: expected values that JSON can hold as arguments" in problems.first[0]
    if not isinstance(value, float):
        path = write_table(tmp_path / "b.parquet", {"question": ["q"], "answer": [value]})
        with pytest.raises(
            DataError, match=r"b\.parquet:1: expected text or messages as the answer"
        ):
            list(read_conversations(path))


def test_a_map_is_an_object(tmp_path):
    """Arguments of Arrow's map type are read; a key that comes twice is a bad record."""
    arguments = pyarrow.map_(pyarrow.string(), pyarrow.int64())
    call = pyarrow.struct({"name": pyarrow.string(), "arguments": arguments})
    message = pyarrow.struct(
        {"role": pyarrow.string(), "content": pyarrow.string(), "tool_calls": pyarrow.list_(call)}
    )
    chats = [chat({"tool_calls": [{"name": "f", "arguments": pairs}]})
             for pairs in ([("a", 1)], [("a", 1), ("a", 2)])]  # fmt: skip
    path = write_table(
        tmp_path / "a.parquet", {"messages": pyarrow.array(chats, pyarrow.list_(message))}
    )
    problems = Problems()
    (conversation,) = read_conversations(path, "skip", problems)
    assert conversation.messages[1]["tool_calls"] == [{"name": "f", "arguments": {"a": 1}}]
    assert problems.count == 1 and ":2: expected a value of messages" in problems.first[0]


def test_an_open_quote_costs_more_than_one_row(tmp_path):
    """A csv file in which a quote takes other rows with it is refused, in both modes, by line."""
    rows = [f"{i},row number {i}" for i in range(40)]
    for broken, until in (('1,"never closed', 41), ('1,"closed much later', 30)):
        lines = ["id,text", rows[0], broken, *rows[2:]]
        if until == 30:
            lines[29] = '28,"a quoted text"'
        path = tmp_path / "a.csv"
        path.write_text("\n".join(lines) + "\n")
        for mode in ("stop", "skip"):
            with pytest.raises(ValueError, match=rf"a\.csv:3: .* line 3 to line {until} "):
                list(read_texts(path, mode))
    path.write_text("id;text\n1;a\n")
    with pytest.raises(
        ValueError, match=r"a\.csv:1: expected commas between columns, got 'id;text'"
    ):
        list(read_texts(path, "skip"))
    path.write_text('id,text\n1,"two\nlines",x\n2,b\n')
    problems = Problems()
    assert [text for text, _ in read_texts(path, "skip", problems)] == ["b"]
    assert "3 columns, in a row from line 2 to line 3" in problems.first[0]


def test_damaged_files_are_refused(tmp_path):
    """Cut off or altered zstd and Arrow files, and folders that are not what was saved, by name."""
    lines = b"".join(b'{"text": "number %d"}\n' % i for i in range(5000))
    packed = pyarrow.compress(lines, codec="zstd", asbytes=True)
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(packed + packed)  # two frames, as parallel compressors write
    assert len(list(read_texts(path))) == 10_000
    for content in (packed[:-3], packed[: len(packed) // 2], lines[:100]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.jsonl\.zst: expected a complete zstd file"):
            list(read_texts(path, "skip"))
    whole = write_table(tmp_path / "a.arrow", {"text": ["some text"] * 1000}).read_bytes()
    for content in (whole[:100], whole[:-600], b"ARROW1 not really", b"x" * 100):
        (tmp_path / "a.arrow").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.arrow"):
            list(read_texts(tmp_path / "a.arrow"))
    folder = tmp_path / "saved"
    folder.mkdir()
    with pytest.raises(ValueError, match="got the folder"):
        read_texts(folder)
    (folder / "a.arrow").write_bytes(whole)
    for names, words in (
        (["a.arrow", "b.arrow"], "no such file: b.arrow"), (["../a.arrow"], "expected .arrow"),
        ([], "expected .arrow"), ([3], "expected .arrow"),
    ):  # fmt: skip
        (folder / "state.json").write_text(
            json.dumps({"_data_files": [{"filename": name} for name in names]})
        )
        with pytest.raises(ValueError, match=words):
            read_texts(folder)
    (tmp_path / "dict" / "train").mkdir(parents=True)
    (tmp_path / "dict" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    (tmp_path / "dict" / "train" / "state.json").write_text("{}")
    with pytest.raises(ValueError, match=r"one split of a data set.*dict.train"):
        read_texts(tmp_path / "dict")


def test_offsets_of_an_arrow_file_are_not_trusted(tmp_path):
    """Altered bytes anywhere end in good records, bad ones or a refusal; never in a crash."""
    table = {"text": [f"text number {i}" for i in range(50)], "messages": [chat({})] * 50}
    whole = write_table(tmp_path / "a.arrow", table).read_bytes()
    code = """
import random, sys
from pathlib import Path
from dataset.conversations import read_conversations
from dataset.readers import read_texts
path, rng = Path(sys.argv[1]), random.Random(0)
whole = path.read_bytes()
for number in range(600):
    content = bytearray(whole)
    for _ in range(rng.randrange(1, 4)):
        content[rng.randrange(len(content))] = rng.choice((0, 1, 127, 255, rng.randrange(256)))
    path.write_bytes(content)
    for read in (read_texts, read_conversations):
        try:
            list(read(path, "skip"))
        except ValueError:
            pass
"""
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.arrow")], cwd=ROOT, capture_output=True,
        text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    assert whole


# file: (good, bad, words of the first bad one or of a refusal), as shared/faults/README.md says
FAULT_FILES = {
    "alpaca_history.jsonl": (20, 0, ""),
    "alpaca_input_number.jsonl": (0, 3, "text in input, got a number"),
    "chat_json_string.csv": (20, 0, ""),
    "chat_system_prompt_top.jsonl": (20, 0, ""),
    "chat_system_top.jsonl": (20, 0, ""),
    "chat_tools_padded.parquet": (20, 0, ""),
    "chat_tools_ts.parquet": (0, 20, "JSON can hold"),
    "date_far.parquet": (40, 0, ""),
    "dup_keys.jsonl": (0, 40, "the key 'text' twice"),
    "indent.jsonl": (10, 0, ""),
    "ndjson.json": (40, 0, ""),
    "pairs_dict.jsonl": (10, 0, ""),
    "pairs_instruction.jsonl": (10, 0, ""),
    "pairs_question.jsonl": (10, 0, ""),
    "pairs_sharegpt_whole.jsonl": (10, 0, ""),
    "pairs_system.jsonl": (10, 0, ""),
    "pairs_whitespace.jsonl": (0, 12, "the same answer twice"),
    "parts.jsonl": (20, 0, ""),
    "think_inline.jsonl": (20, 0, ""),
    "tool_result_empty.jsonl": (1, 0, ""),
    "ts_us_one.parquet": (40, 0, ""),
    "tz_unknown.parquet": (40, 0, ""),
    "weights.jsonl": (20, 0, ""),
}


@pytest.mark.skipif(not FAULTS.is_dir(), reason="the files of faults are not here")
@pytest.mark.parametrize("name", FAULT_FILES)
def test_files_that_people_have(name):
    """Each is read, or refused by name; as many good and bad records as there are."""
    good, bad, words = FAULT_FILES[name]
    texts = ("dup_keys.jsonl", "ndjson.json", "date_far.parquet", "ts_us_one.parquet",
             "tz_unknown.parquet")  # fmt: skip
    read = read_pairs if name.startswith("pairs") else read_conversations
    problems = Problems()
    records = (read_texts if name in texts else read)(FAULTS / name, problems=problems)
    if bad:
        with pytest.raises(DataError, match=words):
            list(records)
        assert problems.count == bad
    else:
        assert len(list(records)) == good


@pytest.mark.skipif(not FAULTS.is_dir(), reason="the files of faults are not here")
def test_what_is_read_from_files_that_people_have():
    """System prompt, history, weight, reasoning and calls are in the records."""

    def first(name):
        return next(read_conversations(FAULTS / name)).messages

    assert first("chat_system_top.jsonl")[0]["content"].startswith("TOPLEVELSYSTEM")
    assert [m["content"][:9] for m in first("alpaca_history.jsonl")] == [
        "Be short.", "HISTQUEST", "HISTREPLY", "HISTQUEST", "HISTREPLY", "And what ", "HISTANSWE",
    ]  # fmt: skip
    assert [m.get("weight") for m in first("weights.jsonl")] == [None, 0, None, None]
    assert first("think_inline.jsonl")[1] == {
        "role": "assistant", "content": "The answer is 0.", "reasoning_content": "Add them: 0.",
    }  # fmt: skip
    assert first("indent.jsonl")[1]["content"] == "    return x + 0"
    calls = [m["tool_calls"] for m in first("chat_tools_padded.parquet") if "tool_calls" in m]
    assert calls == [[{"name": "clock", "arguments": {"zone": "UTC"}}]]
    pair = next(read_pairs(FAULTS / "pairs_system.jsonl"))
    assert pair.prompt[0] == {"role": "system", "content": "TOPLEVELSYSTEM be polite"}
    with pytest.raises(ValueError, match=r"unclosed2\.csv:3"):
        list(read_texts(FAULTS / "unclosed2.csv", "skip"))
    problems = Problems(most_shown=20)
    assert len(list(read_conversations(FAULTS / "orders.jsonl", "skip", problems))) == 2
    assert any(":8: expected a list with at least one message" in line for line in problems.first)
