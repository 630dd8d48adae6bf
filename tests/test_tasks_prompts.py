"""tasks/prompts.py: every form of record, and what the model is asked."""

import csv
import json
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from dataset.chat import NO_THINKING, THINKING
from dataset.demo import demo_records
from dataset.messages import BadConversation
from dataset.records import DataError, Problems
from dataset.tokenizer import load_tokenizer
from tasks.multiple_choice import right_letter
from tasks.number import right_number
from tasks.prompts import KNOWN, read_prompts, to_prompt
from tasks.rewards import check_prompts
from tasks.text import right_text

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
TOOL = {"name": "add", "description": "Add.", "parameters": {"type": "object", "properties": {}}}
CALL = {"name": "add", "arguments": {"a": 1, "b": 2}}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def system(text, **more):
    return {"role": "system", "content": text, **more}


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir):
    """The tokenizer of a chat model that does not think."""
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    tokenizer.chat_template = NO_THINKING
    return tokenizer


@pytest.fixture
def read(tmp_path, tokenizer):
    """A function: the prompts of some records, read from a file."""

    def read(*records, **more):
        path = tmp_path / "records.jsonl"
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        path.write_text("".join(lines), encoding="utf-8")
        return read_prompts(path, tokenizer, **more)

    return read


Q = [user("What is 1 + 2?")]
# record, messages, answer, calls
FORMS = [
    ({"question": Q[0]["content"], "answer": "3"}, Q, "3", None),
    ({"problem": Q[0]["content"], "solution": r"so \boxed{3}"}, Q, r"so \boxed{3}", None),
    ({"prompt": Q[0]["content"], "gt": ["3", "three"]}, Q, ["3", "three"], None),
    ({"prompt": Q[0]["content"], "gt": 3}, Q, "3", None),
    ({"question": Q[0]["content"], "answer": True}, Q, "true", None),
    ({"problem": Q[0]["content"], "solution": "1 + 2 = 3", "answer": "3"}, Q, "3", None),
    ({"instruction": "What is", "input": "1 + 2?", "output": "3"}, [user("What is\n1 + 2?")], "3",
     None),
    ({"prompt": Q, "reward_model": {"style": "rule", "ground_truth": "3"}}, Q, "3", None),
    ({"prompt": Q, "completion": [assistant("3")]}, Q, "3", None),
    ({"query": Q[0]["content"]}, Q, None, None),
    ({"question": Q[0]["content"], "answer": "3", "system": "Be short."},
     [system("Be short."), *Q], "3", None),
    ({"question": Q[0]["content"], "history": [["Hi", "Hello"]], "answer": "3"},
     [user("Hi"), assistant("Hello"), *Q], "3", None),
    ({"messages": [*Q, assistant("It is 3.")], "answer": "3"}, Q, "3", None),
    ({"conversations": [*Q, assistant("")], "gt": ["3"]}, Q, ["3"], None),
    ({"conversations": [*Q, assistant("无")]}, Q, None, None),
    ({"conversations": [*Q, {"role": "assistant", "content": None}], "gt": ["3"]}, Q, ["3"], None),
    ({"conversations": [*Q, assistant("")], "gt": "无"}, Q, "无", None),
    ({"conversations": [*Q, assistant("Three.\n#### 3")]}, Q, "Three.\n#### 3", None),
    ({"conversations": [*Q, assistant("<think>\nsimple\n</think>\n\n3")]}, Q, "3", None),
    ({"conversations": [{"from": "human", "value": Q[0]["content"]}, {"from": "gpt", "value": ""}],
      "answer": "3"}, Q, "3", None),
    ({"conversations": [user("Hi"), assistant("Hello", weight=0)], "question": Q[0]["content"],
      "answer": "3"}, [user("Hi"), assistant("Hello"), *Q], "3", None),
    ({"messages": [*Q, assistant("1 + 2 = 3")], "problem": Q[0]["content"], "answer": "3"}, Q, "3",
     None),
    ({"chosen": [*Q, assistant("3")], "rejected": [*Q, assistant("4")]}, Q, None, None),
    ({"prompt": Q[0]["content"], "chosen": "3", "rejected": "4"}, Q, None, None),
    ({"question": Q[0]["content"], "answer": CALL, "tools": [TOOL]}, Q, CALL, [CALL]),
    ({"conversations": [system("s", tools=json.dumps([TOOL])), *Q, assistant("")], "gt": ["3"]},
     [system("s"), *Q], ["3"], None),
    ({"conversations": [*Q, assistant("", tool_calls=json.dumps([CALL])),
                        {"role": "tool", "content": "3"}, assistant("It is 3.")],
      "tools": [TOOL]}, Q, "It is 3.", [CALL]),
    ({"conversations": [*Q, assistant("", tool_calls=[CALL])], "tools": [TOOL]}, Q, CALL, [CALL]),
    ({"conversations": [*Q, assistant("", tool_calls=[CALL, CALL])], "tools": [TOOL]}, Q,
     [CALL, CALL], [CALL, CALL]),
    ({"conversations": [*Q, assistant("3")], "tools": [TOOL]}, Q, "3", []),
    ({"conversations": [*Q, assistant("", tool_calls=[CALL]), {"role": "tool", "content": "3"},
                        assistant("")], "gt": ["3"], "tools": [TOOL]},
     [*Q, assistant("", tool_calls=[CALL]), {"role": "tool", "content": "3"}], ["3"], None),
]  # fmt: skip


@pytest.mark.parametrize(("record", "messages", "answer", "calls"), FORMS)
def test_every_form_of_record(read, record, messages, answer, calls):
    """Messages, right answer and right calls of one record of every form, written down by hand."""
    (prompt,) = read(record)
    assert (prompt.messages, prompt.answer, prompt.calls) == (messages, answer, calls)
    has_tools = "tools" in record or "tools" in json.dumps(record)
    assert prompt.tools == ([TOOL] if has_tools else None)
    assert prompt.text == next(m["content"] for m in messages[::-1] if m["role"] == "user")


CHOICES = ["10", "12", "14", "15"]
MULTIPLE = [
    ({"choices": CHOICES, "answer": "C"}, "C"), ({"choices": CHOICES, "answer": "c"}, "C"),
    ({"choices": CHOICES, "answer": "(C)"}, "C"), ({"choices": CHOICES, "answer": 2}, "C"),
    ({"choices": CHOICES, "answer": "2"}, "C"), ({"choices": CHOICES, "answer": "14"}, "C"),
    ({"options": ["1", "2", "3"], "answer": "2"}, "B"), ({"options": ["1", "2"], "answer": 1}, "B"),
    ({"choices": [10, 12, 14], "answer": 14}, "C"), ({"choices": [0, 1, 2], "answer": 1}, "B"),
    ({"choices": {"label": ["1", "2"], "text": ["no", "yes"]}, "answerKey": "2"}, "B"),
    ({"choices": {"label": ["A", "B"], "text": ["no", "yes"]}, "answerKey": "B"}, "B"),
    ({"options": {"A": "no", "B": "yes"}, "answer": "yes"}, "B"),
    ({"options": ["A) no", "B) yes"], "answer": "B"}, "B"),
    ({"choices": json.dumps(CHOICES), "answer": "B"}, "B"), ({"choices": CHOICES}, None),
    ({"choices": ["A. no", "B. yes"], "answer": "B. yes"}, "B"),
    ({"choices": ["A) no", "B) yes"], "answer": "B. yes"}, "B"),
    ({"choices": ["no", "yes"], "answer": "B. yes"}, "B"),
    ({"choices": ["no", "yes"], "answer": "（Ｂ）"}, "B"),
    ({"choices": ["no", "yes"], "gt": ["B"]}, "B"),
    ({"choices": ["no", "yes"], "gt": '["yes"]'}, "B"),
    ({"A": "10", "B": "12", "C": "14", "D": "15", "answer": "C"}, "C"),
    ({"A": 1, "B": 2, "answer": "B"}, "B"), ({"A": "no", "B": "yes", "C": ""}, None),
]  # fmt: skip


@pytest.mark.parametrize(("record", "letter"), MULTIPLE)
def test_every_form_of_multiple_choice(read, record, letter):
    """A letter, a label, a choice or an index from 0; the choices stand behind the question."""
    (prompt,) = read({"question": "Which?"} | record)
    assert prompt.answer == letter
    question, blank, *lines = prompt.messages[-1]["content"].split("\n")
    assert (question, blank) == ("Which?", "")
    assert [line[:3] for line in lines] == ["A. ", "B. ", "C. ", "D. "][: len(lines)]
    assert not {line[3:] for line in lines} - {*CHOICES, "0", "1", "2", "3", "no", "yes"}
    if letter:
        assert right_letter(prompt) == letter


BAD = [
    ({"text": "once"}, 'expected a field "conversations" or "messages", or a question, got the'),
    ({"qestion": "q", "answer": "a"}, "did you mean 'question'?"),
    ({"question": "", "answer": "a"}, "an empty text as the question"),
    ({"question": 7, "answer": "a"}, "expected text or messages as the question, got a number"),
    ({"conversations": "hello"}, "expected JSON as conversations"),
    ({"conversations": [system("s")], "gt": ["a"]}, "a system message alone"),
    ({"conversations": [user("q"), user("r")]}, "'user' after 'user'"),
    ({"conversations": [assistant("")], "gt": ["a"]}, "expected a list with at least one message"),
    ({"question": "q", "tools": "[{"}, "expected JSON as tools"),
    ({"question": "q", "choices": ["a"], "answer": "A"}, "expected a list of 2 to 26 choices"),
    ({"question": "q", "choices": ["a", ""], "answer": "A"}, "expected text as every choice"),
    ({"question": "q", "choices": ["a", "b"], "answer": "C"}, "'C', which is 0 of them"),
    ({"question": "q", "choices": ["a", "a"], "answer": "a"}, None),
    ({"question": "q", "choices": ["A. x", "B. y"], "answer": "A. y"}, "'A. y', which is 0"),
    ({"question": "q", "A": "x", "B": "y", "answer": "D"}, "'D', which is 0 of them"),
    ({"question": "q", "gt": '["2", "plus"'}, "expected JSON as gt"),
    ({"question": "q", "reward_model": '{"ground_truth": '}, "expected JSON as reward_model"),
    ({"question": "q", "choices": ["a", "b"], "answer": 2}, "2, which is 0 of them"),
    ({"question": "q", "choices": [2, 1, 0], "answer": 2}, "2, which is 2 of them"),
    ({"question": "q", "choices": ["x", "x"], "answer": "x"}, "'x', which is 2 of them"),
    ({"chosen": [*Q, assistant("3")], "rejected": [*Q, assistant("3")]}, "two answers that differ"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "words"), BAD)
def test_bad_records_are_named(read, record, words):
    """File and line, what was expected and what came, in a line; skipped and counted on request."""
    if words is None:  # a choice's label is also the text of both
        assert read(record)[0].answer == "A"
        return
    with pytest.raises(DataError) as raised:
        read({"question": "q", "answer": "a"}, record)
    first = str(raised.value).splitlines()[1]
    assert "records.jsonl:2: expected " in first and words in first
    problems = Problems()
    good = read({"question": "q", "answer": "a"}, record, on_bad_record="skip", problems=problems)
    assert len(good) == 1 and problems.count == 1


def test_wrong_files_name_the_flag(read, tmp_path, tokenizer):
    """A missing file, an empty one and a record without a needed answer: one line, the flag."""
    with pytest.raises(ValueError, match=r"^--val_data_path: no such file"):
        read_prompts(tmp_path / "none.jsonl", tokenizer, "--val_data_path")
    with pytest.raises(ValueError, match=r"^--data_path: expected at least one record"):
        read()
    for answer, got in ((None, "the fields 'question'"), ("blue", "'blue'")):
        record = {"question": "q", "answer": answer} if answer else {"question": "q"}
        with pytest.raises(DataError, match=f"a number as the right answer, got {got}"):
            read(record, right=right_number)


def test_what_nothing_reads_is_said(read):
    """Fields that are not read are counted by name, as everywhere."""
    problems = Problems()
    read({"question": "q", "answer": "a", "solution": "s", "skill": "x"}, problems=problems)
    (line,) = problems.lines()
    assert line.endswith("not used: solution (1), skill (1)")

    problems = Problems()
    read(
        {"messages": [*Q, assistant("A1")], "answer": "A2"}, {"messages": [*Q, assistant("A1")]},
        {"messages": [*Q, assistant("A1")], "answer": "A1"}, {"messages": Q, "answer": "A2"},
        {"question": "q", "answer": "a", "reward_model": "rm"},
        {"question": "q", "reward_model": {"style": "rule"}}, {"question": "q", "A": "a"},
        {"question": "q", "A": "a", "B": "b", "D": "d"}, problems=problems,
    )  # fmt: skip
    (line,) = problems.lines()
    assert line.endswith(
        "not used: reward_model (2), the last answer in messages (1), A (1), D (1)"
    )


def as_text(value):
    """What a cell holds."""
    return value if isinstance(value, str) else json.dumps(value)


ROWS = [  # what csv holds, and what is right: lists and objects as JSON text
    ({"gt": '["2", "plus"]'}, ["2", "plus"], None),
    ({"gt": "[2, 3]"}, [2, 3], None),
    ({"gt": '{"a": [1]}'}, {"a": [1]}, None),
    ({"gt": "[0, 1)"}, "[0, 1)", None),
    ({"gt": "[]", "answer": "3"}, "3", None),
    ({"gt": "2"}, "2", None),
    ({"ground_truth": '["2", "plus"]'}, ["2", "plus"], None),
    ({"ground_truth": "[0, 1]"}, "[0, 1]", None),
    ({"answer": '["a"]'}, '["a"]', None),
    ({"reward_model": '{"style": "rule", "ground_truth": "3"}'}, "3", None),
    ({"reward_model": '{"ground_truth": ["3", "4"]}'}, ["3", "4"], None),
    ({"reward_model": {"ground_truth": '["3", "4"]'}}, ["3", "4"], None),
    ({"reward_model": '{"ground_truth": "[0, 1]"}'}, "[0, 1]", None),
    ({"reward_model": "rm-7b", "answer": "3"}, "3", None),
    ({"completion": json.dumps([assistant("3")])}, "3", None),
    ({"answer": json.dumps(CALL)}, json.dumps(CALL), [CALL]),
    ({"gt": json.dumps([CALL, CALL])}, [CALL, CALL], [CALL, CALL]),
]


@pytest.mark.parametrize(("row", "answer", "calls"), ROWS)
def test_a_right_answer_may_be_json_text(read, tmp_path, tokenizer, row, answer, calls):
    """In csv and in jsonl alike, as in prompt and choices; what only looks like JSON stays text."""
    path = tmp_path / "records.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([["prompt", *row], [json.dumps(Q), *map(as_text, row.values())]])
    for prompt in (*read_prompts(path, tokenizer), *read({"prompt": Q} | row)):
        assert (prompt.messages, prompt.answer, prompt.calls) == (Q, answer, calls)


@pytest.mark.parametrize("template", [THINKING, NO_THINKING])
def test_ids_are_those_of_transformers(tmp_path, tiny_tokenizer_dir, template):
    """Every form's ids equal apply_chat_template's with a generation prompt, thinking or not."""
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    tokenizer.chat_template = template
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    tokenizer.save(folder)
    theirs = AutoTokenizer.from_pretrained(folder)
    path = tmp_path / "forms.json"
    path.write_text(json.dumps([form[0] for form in FORMS]))
    for thinking in (True, False):
        for prompt in read_prompts(path, tokenizer, enable_thinking=thinking):
            messages = [m | {"tool_calls": [{"type": "function", "function": call}
                                            for call in m.get("tool_calls", [])]}
                        for m in prompt.messages]  # fmt: skip
            ids = theirs.apply_chat_template(messages, tools=prompt.tools, tokenize=True,
                                             add_generation_prompt=True, return_dict=False,
                                             enable_thinking=thinking)  # fmt: skip
            assert prompt.ids == ids


def test_a_base_model_is_asked_in_lines(read, tokenizer):
    """Without a chat format a question is text, a line a message."""
    (prompt,) = read({"question": "q?", "history": [["a", "b"]], "answer": "x"}, chat=False)
    assert prompt.ids == tokenizer.encode_text("a\nb\nq?\n")


def test_the_demos_questions(tmp_path, tokenizer):
    """All are read, each with a text as its answer; arithmetic has the number of its sum."""
    records = demo_records(0)
    for name in ("questions", "multi_turn_questions", "lora_questions"):
        path = tmp_path / f"{name}.jsonl"
        lines = [json.dumps(record) + "\n" for record in records[path.name]]
        path.write_text("".join(lines))
        prompts = read_prompts(path, tokenizer, "--questions", right=right_text)
        assert [p.text for p in prompts] == [record["question"] for record in records[path.name]]
        for prompt, record in zip(prompts, records[path.name]):
            turns = record.get("conversations", [])
            assert prompt.messages == [*turns, user(record["question"])]
            if record["skill"] == "arithmetic":
                a, operator, b = record["answer"].split(" = ")[0].split()
                a, b = int(a), int(b)
                value = {"+": a + b, "-": a - b, "×": a * b}[operator]
                assert right_number(prompt).value == value


texts = st.text(max_size=5) | st.sampled_from(["A", "2", "无", "q", "[]", '{"a": 1}', "[{"])
roles = st.sampled_from(["system", "user", "assistant", "tool", "human", "gpt", "cat"])
messages = st.fixed_dictionaries(
    {"role": roles, "content": st.none() | texts},
    optional={"weight": st.integers(0, 2), "tool_calls": st.sampled_from([[CALL], "[", None, 3]),
              "tools": st.sampled_from(["[]", [TOOL], 3])},
)  # fmt: skip
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
anything = (
    texts | junk | st.lists(messages, max_size=4) | st.lists(texts, min_size=2, max_size=4)
    | st.fixed_dictionaries({"label": st.lists(texts, max_size=3), "text": junk})
)  # fmt: skip
likely = ["question", "conversations", "answer", "choices", "gt", "system", "tools", "prompt"]


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(likely) | st.sampled_from(KNOWN), anything, max_size=5))
def test_any_record_is_a_prompt_or_a_bad_record(tokenizer, fields):
    """Whatever stands in the fields: a prompt that ends before an answer, or what was expected."""
    try:
        prompt = to_prompt(tokenizer, True, False, None, None, fields)
    except BadConversation as bad:
        assert bad.expected and bad.got
        return
    assert prompt.messages[-1]["role"] in ("user", "tool") and prompt.ids
    assert prompt.calls is None or all(
        call.keys() == {"name", "arguments"} for call in prompt.calls
    )


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the real data files")
def test_real_files(tokenizer):
    """GSM8K has the number behind ####, tool data its calls, pairs a prompt each."""
    prompts = read_prompts(DATA / "sft_gsm8k_train.jsonl", tokenizer)
    assert len(prompts) == 7473 and check_prompts(["number"], prompts) == []
    for prompt in prompts:
        behind = prompt.answer.split("#### ")[1].replace(",", "")
        assert right_number(prompt).value == Decimal(behind)
    prompts = read_prompts(DATA / "sft_tools_zh.jsonl", tokenizer)
    assert len(prompts) == 300 and all(p.messages[-1]["role"] == "user" for p in prompts)
    with_tools = [p for p in prompts if p.tools]
    assert len(with_tools) == 200 and all(p.calls is not None for p in with_tools)
    prompts = read_prompts(DATA / "dpo_zh.jsonl", tokenizer)
    assert len(prompts) == 300 and not any(p.answer for p in prompts)
    assert len(read_prompts(DATA / "sft_alpaca_en_zh.jsonl", tokenizer)) == 1999
