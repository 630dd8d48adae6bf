"""scripts/show_data.py: what a person sees before training."""

import json
import re
import sys

import pytest

from scripts import show_data
from training import cli


def say(role, content):
    return {"role": role, "content": content}


@pytest.fixture
def show(monkeypatch, tmp_path, capsys, tiny_tokenizer_dir):
    """A function: records, flags → what is printed, and the file's path."""

    def run(records, *flags):
        path = tmp_path / "data.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        argv = [
            "show_data.py",
            "--data_path",
            path,
            "--tokenizer",
            tiny_tokenizer_dir,
            "--cache_dir",
            tmp_path / "cache",
            *flags,
        ]
        monkeypatch.setattr(sys, "argv", [str(x) for x in argv])
        cli.run(show_data.main)
        return capsys.readouterr().out, path

    return run


TURNS = [say("user", "Hi, 你好?"), say("assistant", "Good day."), say("user", "A sum?"),
         say("assistant", "2 + 2 = 4.")]  # fmt: skip


def test_marks_exactly_what_is_trained_on(show):
    """Between the marks stand the assistant's words and its stop tokens, and nothing else."""
    out, _ = show([{"conversations": TURNS}])
    marked = re.findall("⟦(.*?)⟧", out, re.S)
    assert marked == ["Good day.<|im_end|>", "2 + 2 = 4.<|im_end|>"]
    text = out.replace("⟦", "").replace("⟧", "")
    assert "<|im_start|>user\nHi, 你好?<|im_end|>\n<|im_start|>assistant\nGood day." in text
    assert "\033[" not in out


def test_colours_hold_the_same_text(show):
    """--color always: the same characters, with escape codes in place of the marks."""
    plain, _ = show([{"conversations": TURNS}])
    colored, _ = show([{"conversations": TURNS}], "--color", "always")
    assert "\033[32mGood day.\033[0m" in colored
    assert re.sub("\033\\[[0-9]+m", "", colored) == re.sub("[⟦⟧]", "", plain)


def test_cut_left_out_repeated_and_broken_are_counted(show):
    """What does not fit a row is shown and counted; a bad record is named by file and line."""
    long = [say("user", "Why? " * 40), say("assistant", "So.")]
    out, path = show(
        [{"conversations": TURNS}, {"conversations": TURNS * 9}, {"conversations": long},
         {"conversations": TURNS}, {"conversations": TURNS[1:]}],
        "--max_seq_len", 100,
    )  # fmt: skip
    assert out.count("✂ cut here") == 1 and out.count("✂ left out") == 1
    assert (
        "1 cut after an answer, 1 left out" in out and "1 exact duplicates, 0 with control" in out
    )
    assert "1 bad records" in out and f"{path}:5: expected" in out
    assert out.index(f"── {path}:1 ") < out.index(f"── {path}:2 ") < out.index(f"── {path}:3 ")


def test_sequences_of_a_conversation_that_thinks(show):
    """With thoughts in the data every answer is shown behind what a chat would ask with."""
    thinking = [*TURNS[:1], TURNS[1] | {"reasoning_content": "Greet."}, *TURNS[2:]]
    out, _ = show([{"conversations": thinking}])
    first, second = out.split("── ")[1:3]
    assert "sequence 1 of 2" in first and "sequence 2 of 2" in second
    assert "⟦<think>\nGreet.\n</think>\n\nGood day.<|im_end|>⟧" in first
    assert "assistant\nGood day.<|im_end|>" in second and "Greet." not in second
    assert "⟦<think>\n\n</think>\n\n2 + 2 = 4.<|im_end|>⟧" in second


def test_pairs(show):
    """A file of pairs shows the prompt once and both answers, and counts equal ones as bad."""
    pair = {"prompt": "Which?", "chosen": "This one.", "rejected": "No."}
    out, path = show([pair, pair | {"rejected": "This one."}])
    assert out.count("Which?") == 1
    assert "chosen: ⟦This one.<|im_end|>⟧" in out and "rejected: ⟦No.<|im_end|>⟧" in out
    assert f"{path}:2: expected two answers that differ" in out
    assert "the chosen one is longer in 100.0%" in out


def test_line_and_num_choose_what_is_printed(show):
    """--line 2 --num 1 prints the record of line 2 alone; the figures are of the whole file."""
    out, _ = show([{"conversations": TURNS}] * 3, "--line", 2, "--num", 1)
    assert re.findall(r"── .*?:(\d+) ·", out) == ["2"] and "3 conversations" in out


def test_judged_answers_are_shown_with_their_labels(show):
    """The answer alone is marked, behind its label; both kinds are counted."""
    out, path = show(
        [{"prompt": f"q{i}", "completion": f"Answer {i}.", "label": i % 3 > 0} for i in range(6)]
    )
    assert "undesirable: ⟦Answer 0.<|im_end|>⟧" in out and "\ndesirable: ⟦Answer 1." in out
    assert "4 desirable answers, 2 undesirable" in out and f"── {path}:1 " in out
    assert "0 left out" in out and "4 desirable and 2 undesirable answers in 1 rows" in out
