"""Records of judged answers: the forms they come in, and what is wrong with others."""

import json

import pytest

from dataset.judged import read_judged, to_judged
from dataset.messages import BadConversation
from dataset.records import DataError, Problems

Q, A, Q2, A2 = (
    {"role": role, "content": text}
    for role, text in (("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b"))
)


def written(folder, *records):
    path = folder / "judged.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize(
    "record",
    [
        {"conversations": [Q, A, Q2, A2]},
        {"messages": [Q, A, Q2, A2]},
        {"prompt": [Q, A, Q2], "completion": [A2]},
        {"prompt": [Q, A, Q2], "completion": "b"},
        {"conversations": [Q, A | {"weight": 0}, Q2, A2 | {"weight": 1}]},
        {"instruction": "r", "output": "b", "history": [["q", "a"]]},
        {"prompt": "Human: q\n\nAssistant: a\n\nHuman: r\n\nAssistant:", "completion": "b"},
        {"conversations": json.dumps([Q, A, Q2, A2])},
    ],
)
@pytest.mark.parametrize("label", [True, False])
def test_forms_of_a_judged_answer(tmp_path, record, label):
    """Whatever the form: the last answer is judged, all before it is the prompt."""
    for value in (label, str(label).lower()):  # csv has text
        (judged,) = read_judged(written(tmp_path, record | {"label": value}))
        assert (judged.prompt, judged.answer, judged.label) == ([Q, A, Q2], [A2], label)
        assert judged.label is label


def test_calls_are_part_of_the_answer():
    """What an assistant does to answer, tools and all, is judged as one."""
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "add", "arguments": {}}]}
    back = {"role": "tool", "content": "3"}
    fields = {"messages": [Q, call, back, A], "tools": [tool], "label": True}
    assert to_judged(fields) == ([Q], [call, back, A], [tool], True)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"messages": [Q, A]}, "expected a field \"label\", got the fields 'messages'"),
        ({"messages": [Q, A], "labels": True}, "did you mean 'label'?"),
        ({"messages": [Q, A], "label": 1}, "expected true or false as the label, got 1"),
        ({"messages": [Q, A], "label": 0.0}, "got 0.0"),
        ({"messages": [Q, A], "label": "good"}, "got 'good'"),
        ({"messages": [Q, A], "label": "True"}, "got 'True'"),
        ({"messages": [Q, A], "label": None}, "got null"),
        ({"messages": [Q, A], "label": []}, "got an empty list"),
        ({"messages": [Q], "label": True}, "an assistant message at the end"),
        ({"prompt": "q", "completion": "", "label": True}, "got an empty text"),
        ({"messages": [Q, A, Q2, A2 | {"weight": 0}], "label": True}, "an answer that counts"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "label": True}, "an answer"),
    ],
)
def test_bad_records_name_file_and_line(tmp_path, record, expected):
    """Each is one line with file, line and what was expected."""
    path = written(tmp_path, {"messages": [Q, A], "label": True}, record)
    with pytest.raises(DataError, match=r"judged\.jsonl:2: ") as error:
        list(read_judged(path))
    assert expected in str(error.value)
    assert len(list(read_judged(path, "skip"))) == 1


def test_other_fields_are_counted(tmp_path):
    """The label is read; what nothing reads is told, once a file."""
    path = written(tmp_path, *[{"messages": [Q, A], "label": True, "rater": "x"}] * 3)
    problems = Problems()
    assert len(list(read_judged(path, problems=problems))) == 3
    assert problems.lines() == [f"{path}: not used: rater (3)"]


def test_equal_records_say_the_same(tmp_path):
    """Two records that differ in the label alone are not duplicates."""
    records = [{"messages": [Q, A], "label": label} for label in (True, True, False)]
    one, two, other = read_judged(written(tmp_path, *records))
    assert one.as_text() == two.as_text() != other.as_text()
    with pytest.raises(BadConversation):
        to_judged({})
