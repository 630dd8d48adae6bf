"""scripts/validate_data.py: every problem with file and line, before training."""

import json
import sys

import pytest

from dataset import record_chunks
from scripts import validate_data
from training import cli


def report(monkeypatch, capsys, *flags) -> tuple[int, str]:
    """(exit status, what was printed)."""
    monkeypatch.setattr(sys, "argv", ["validate_data.py", *map(str, flags)])
    status = 0
    try:
        cli.run(validate_data.main)
    except SystemExit as stopped:
        status = stopped.code
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def test_problems_duplicates_and_control_strings_are_counted(monkeypatch, capsys, tmp_path):
    """Bad lines by number; equal records and texts with control strings by count."""
    texts = tmp_path / "texts.jsonl"
    good = [{"text": "one"}, {"text": "two <|im_end|>"}, {"text": "one"}]
    bad = ['{"text": 3}', "{broken", '{"text": " "}']
    texts.write_text("\n".join([*map(json.dumps, good), *bad]) + "\n")
    status, out = report(monkeypatch, capsys, "--data_path", texts)
    assert status == 1
    assert "(text): 3 good records, 3 bad, 1 exact duplicates, 1 with control strings" in out
    for line in (4, 5, 6):
        assert f"{texts}:{line}: expected" in out
    assert "more (--show)" not in out
    assert "… and 2 more" in report(monkeypatch, capsys, "--data_path", texts, "--show", 1)[1]


@pytest.mark.parametrize(
    ("record", "kind", "status"),
    [
        ({"messages": [{"role": "user", "content": "q"}]}, "chat", 1),
        ({"instruction": "q", "output": "a"}, "chat", 0),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "pairs", 1),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "pairs", 0),
        ({"text": "a"}, "text", 0),
        ({"text": "a", "label": 1}, "text", 0),
        ({"prompt": "q", "completion": "a", "label": True}, "judged", 0),
        ({"prompt": "q", "completion": "a", "label": 1}, "judged", 1),
    ],
)
def test_the_kind_is_recognised(monkeypatch, capsys, tmp_path, record, kind, status):
    """Conversations, pairs, judged answers and texts: judged by what training would ask of them."""
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(record) + "\n")
    got, out = report(monkeypatch, capsys, "--data_path", path)
    assert (got, f"({kind})" in out) == (status, True)


def test_a_file_of_bad_lines_is_reported(monkeypatch, capsys, tmp_path):
    """Even where no line can be read, each is named."""
    path = tmp_path / "bad.jsonl"
    path.write_text("{\n[]\n")
    status, out = report(monkeypatch, capsys, "--data_path", path)
    assert status == 1 and "0 good records, 2 bad" in out and f"{path}:2: expected" in out


def test_a_missing_file_is_a_mistake(monkeypatch, capsys, tmp_path):
    """No report, one line, exit status 2."""
    status, out = report(monkeypatch, capsys, "--data_path", tmp_path / "none.jsonl")
    assert status == 2 and out.startswith("error: --data_path: no such file")


def test_fields_that_nothing_reads_are_listed(monkeypatch, capsys, tmp_path):
    """By every kind, one line a file with a count; --text_field reads another field."""
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    for name, record in (
        ("texts", {"text": "a", "meta": 1}),
        ("chats", {"messages": chat, "meta": 1}),
        ("pairs", {"prompt": "q", "chosen": "a", "rejected": "b", "meta": 1}),
    ):
        path = tmp_path / f"{name}.jsonl"
        path.write_text((json.dumps(record) + "\n") * 20)
        status, out = report(monkeypatch, capsys, "--data_path", path)
        assert status == 0 and f"{path}: not used: meta (20)\n" in out
    flags = ("--data_path", tmp_path / "pairs.jsonl", "--text_field", "prompt")
    status, out = report(monkeypatch, capsys, *flags)
    assert status == 0 and "(text): 20 good records" in out and "chosen (20)" in out


def test_equal_problems_are_one_line(monkeypatch, capsys, tmp_path):
    """A file of one fault is one line with a count, whatever --show is."""
    path = tmp_path / "texts.jsonl"
    path.write_text('{"txt": "a"}\n' * 400 + '{"text": "a"}\n')
    status, out = report(monkeypatch, capsys, "--data_path", path, "--kind", "text")
    assert status == 1 and out.count("expected") == 1 and "(400 such records" in out
    assert "more (--show)" not in out and "did you mean --text_field txt?" in out


def test_one_refused_file_does_not_hide_the_others(monkeypatch, capsys, tmp_path):
    """What can be read is reported; the refusal comes last, with exit status 2."""
    broken, good = tmp_path / "a.csv", tmp_path / "b.jsonl"
    broken.write_text('text\n"open\nb\nc\n')
    good.write_text('{"text": "a"}\n')
    status, out = report(monkeypatch, capsys, "--data_path", broken, good)
    assert status == 2 and f"{good} (text): 1 good records" in out
    assert f"error: {broken}:2: expected a quote that is closed" in out


@pytest.mark.parametrize("kind", ["text", "chat", "pairs", "judged"])
def test_the_report_is_the_same_from_any_number_of_processes(monkeypatch, capsys, tmp_path, kind):
    """Good and bad records, kinds of problems, fields not used, repeats: word for word."""
    path = tmp_path / "data.jsonl"
    with open(path, "w") as file:
        for i in range(900):
            record = {"text": f"t{i % 50}", "prompt": "q", "chosen": "a", "rejected": f"b{i % 70}"}
            record |= {
                "completion": "<think>" * (i % 9),
                "label": i % 4 > 0 or 1,
                f"meta{i % 80}": 1,
            }
            file.write(json.dumps(record) + "\n" if i % 13 else "{" * (i % 3 + 1) + "\n")
    reports = []
    for chunk_bytes, cores in ((1 << 20, 2), (900, 1), (900, 2), (5000, 3)):
        monkeypatch.setattr(record_chunks, "SMALL", 1)
        monkeypatch.setattr(record_chunks, "CHUNK_BYTES", chunk_bytes)
        monkeypatch.setattr(record_chunks, "num_cores", lambda cores=cores: cores)
        flags = ("--data_path", path, "--kind", kind, "--show", 3)
        reports.append(report(monkeypatch, capsys, *flags))
    assert reports[1:] == reports[:1] * 3 and "expected" in reports[0][1]
    assert f"({kind}): " in reports[0][1] and "more fields" in reports[0][1]


def test_a_label_that_judges_nothing_is_a_field_like_others(tmp_path, capsys):
    """A subject in "label" makes no judged answers of conversations; true and false do."""
    chat = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    for label, kind in (("math", "chat"), (["a"], "chat"), (None, "chat"), (True, "judged"),
                        ("false", "judged")):  # fmt: skip
        path = tmp_path / "data.jsonl"
        path.write_text(json.dumps(chat | {"label": label}) + "\n")
        assert validate_data.validate(str(path), "auto", 10, ()) == 0
        assert f"({kind}): 1 good records, 0 bad" in capsys.readouterr().out
