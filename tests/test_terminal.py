"""Terminals that cannot show what is printed, and lines that are no text, end nothing."""

import io
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import make_inputs, start

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPTS = [
    *sorted(p.name for p in REPOSITORY.glob("*.py")),
    *(f"scripts/{p.name}" for p in sorted((REPOSITORY / "scripts").glob("[!_]*.py"))),
    *(f"benchmarks/{p.name}" for p in sorted((REPOSITORY / "benchmarks").glob("bench_*.py"))),
    "dataset/demo.py",
]
# A C locale without Python's own remedies (PEP 538, PEP 540), and two encodings of Windows.
OLD_UNIX = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
ENCODINGS = [{"PYTHONIOENCODING": "cp1252"}, {"PYTHONIOENCODING": "gbk"}, OLD_UNIX]


def run_on_ascii(monkeypatch, script: str, *flags) -> tuple[int, str]:
    """Exit status and stdout of a script that is run as __main__ on a terminal that knows ascii."""
    stdout = io.TextIOWrapper(io.BytesIO(), "ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(sys, "stderr", stdout)
    monkeypatch.setattr(sys, "argv", [script, *map(str, flags)])
    monkeypatch.setattr(sys, "path", [str(REPOSITORY), *sys.path])
    status = 0
    try:
        runpy.run_path(str(REPOSITORY / script), run_name="__main__")
    except SystemExit as end:
        status = end.code or 0
    return status, stdout.buffer.getvalue().decode("ascii")


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_shown_on_any_terminal(monkeypatch, script):
    """--help ends with status 0 on a terminal that knows only ascii."""
    status, shown = run_on_ascii(monkeypatch, script, "--help")
    assert status == 0 and "usage:" in shown


def test_data_is_shown_on_any_terminal(monkeypatch, tmp_path):
    """Reports about Chinese data arrive, with escapes for what the terminal cannot show."""
    chats = tmp_path / "对话.jsonl"
    turns = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好！"}]
    broken = {"conversations": [{"role": "老师", "content": "x"}]}
    lines = [json.dumps(r, ensure_ascii=False) for r in ({"conversations": turns}, broken)]
    chats.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for script, flags, expected in (
        ("scripts/validate_data.py", [], 1),
        ("scripts/show_data.py", [], 0),
        ("train_tokenizer.py", ["--out_dir", tmp_path / "分词", "--vocab_size", "300"], 0),
    ):
        status, shown = run_on_ascii(monkeypatch, script, "--data_path", chats, *flags)
        assert status == expected and "\\u5bf9\\u8bdd.jsonl" in shown, (script, shown)
    status, shown = run_on_ascii(monkeypatch, "dataset/demo.py", "--out_dir", tmp_path / "d",
                                 "--show", "40")  # fmt: skip
    assert status == 0 and "Once upon a time" in shown


def talk(folder: Path, typed: bytes, environment: dict, *flags) -> subprocess.CompletedProcess:
    command = [sys.executable, "eval_model.py", "--model", folder, "--temperature", "0",
               "--max_new_tokens", "4", "--device", "cpu", *flags]  # fmt: skip
    return subprocess.run(
        [str(word) if isinstance(word, Path) else word for word in command], input=typed,
        cwd=REPOSITORY, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True, timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_tokenizer_dir) -> Path:
    """A tiny pretraining run on an ascii terminal, to which it prints an arrow at step 4."""
    folder = tmp_path_factory.mktemp("terminal")
    flags = make_inputs(folder, tiny_tokenizer_dir)["pretrain"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONIOENCODING", "ascii")
        process = start("pretrain", folder / "out", *flags, "--max_steps", "4")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "\\u27f6" in output and "done:" in output
    return folder / "out"


@pytest.mark.parametrize("environment", ENCODINGS)
def test_a_chat_goes_on(trained, environment):
    """Text of another encoding and bytes that are no text are a message; the chat goes on."""
    done = talk(trained, "小兔子 ⟶\n".encode() + b"\xff\xfe\x81\n" + b"The cat\n", environment)
    shown = done.stdout.decode("latin-1")
    assert done.returncode == 0, done.stderr
    assert shown.count("> ") == 4 and shown.index("no text in") < shown.index("> The cat")


def test_flags_are_read_as_utf8_or_refused(monkeypatch, trained):
    """A --prompt in UTF-8 is understood in a C locale, too; bytes that are no text are refused."""
    model = ["--model", trained, "--temperature", "0", "--max_new_tokens", "4", "--device", "cpu"]
    status, usual = run_on_ascii(monkeypatch, "eval_model.py", *model, "--prompt", "小兔子")
    in_c_locale = talk(trained, b"", OLD_UNIX, "--prompt", "小兔子".encode())
    assert status == in_c_locale.returncode == 0
    assert in_c_locale.stdout.decode("ascii") == usual
    for flag in ("--prompt", "--system"):
        no_text = os.fsdecode(b"\xff\xfe")  # as Python reads such bytes on a command line
        status, shown = run_on_ascii(monkeypatch, "eval_model.py", *model, flag, no_text)
        assert status == 2 and shown.startswith(f"error: {flag}: no text"), shown
