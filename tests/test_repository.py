"""The promises that hold for the tree as a whole."""

import re
import shlex
from pathlib import Path

import pytest

import eval_model
import train_pretrain
import train_tokenizer

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [p for p in ROOT.rglob("*.py") if not {".venv", "tests", "out"} & set(p.parts)]
PARSERS = {
    "train_pretrain.py": train_pretrain.parse_args,
    "eval_model.py": eval_model.parse_args,
    "train_tokenizer.py": lambda: train_tokenizer.parse_args(None),
}
FORBIDDEN = (
    r"torch\.load\(|\bpickle\b|(?<![\w.])(eval|exec)\(|shell=True|trust_remote_code *= *True"
)


def test_no_pickle_no_shell_no_remote_code():
    """Nothing in the tree reads or writes pickles, evaluates text or runs a shell."""
    assert SOURCES
    for path in SOURCES:
        found = re.findall(FORBIDDEN, path.read_text(encoding="utf-8"))
        assert not found, f"{path}: {found}"


def commands() -> list[str]:
    """Every command line of this project's scripts in the README and in docs/."""
    found = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for block in re.findall(r"```(?:bash|sh)\n(.*?)```", page.read_text(), re.S):
            for line in block.replace("\\\n", " ").splitlines():
                if re.search(r"\b(train_|eval_)\w+\.py", line):
                    found.append(line.split(" #")[0].strip())
    return found


@pytest.mark.parametrize("command", commands())
def test_documented_commands_parse(monkeypatch, command):
    """Every command in the README and docs names a script that is there and flags that it has."""
    words = shlex.split(command)
    at = next(i for i, word in enumerate(words) if word.endswith(".py"))
    assert (ROOT / words[at]).is_file()
    monkeypatch.setattr("sys.argv", words[at:])
    PARSERS[words[at]]()


def test_step_sequence_is_in_order():
    """train_pretrain.py names the 19 steps of the training sequence, in order."""
    lines = (ROOT / "train_pretrain.py").read_text().splitlines()
    comments = " ".join(line.partition("#")[2] for line in lines)
    numbers = [int(n) for n in re.findall(r"\((\d+)\)", comments)]
    assert numbers == list(range(1, 20))


def test_every_flag_is_read(monkeypatch):
    """No script accepts a flag that no line of code reads."""
    code = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    for name, parse in PARSERS.items():
        required = ["--data_path", "x", "--out_dir", "y"] if name == "train_tokenizer.py" else []
        monkeypatch.setattr("sys.argv", [name, *required])
        for flag in vars(parse()):
            assert re.search(rf"\bargs\.{flag}\b|\barguments\.{flag}\b", code), f"{name} --{flag}"
