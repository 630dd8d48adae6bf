"""Numbers that no script can compute with are refused, each with a line that names its flag."""

import argparse
import subprocess
import sys

import pytest
from test_repository import PARSERS

import train_pretrain
from tests.small_runs import make_inputs, run
from training import cli

USED = [name for name in PARSERS if not name.startswith("benchmarks/")]
REQUIRED = {
    "train_tokenizer.py": ["--data_path", "x", "--out_dir", "y"],
    "scripts/validate_data.py": ["--data_path", "x"],
}


def parser_of(monkeypatch, script: str) -> argparse.ArgumentParser:
    """The parser that a script's parse_args makes."""
    found = []
    with monkeypatch.context() as patch:
        patch.setattr("sys.argv", [script, *REQUIRED.get(script, [])])
        parse = argparse.ArgumentParser.parse_args
        patch.setattr(
            argparse.ArgumentParser, "parse_args",
            lambda self, *given: found.append(self) or parse(self, *given),
        )  # fmt: skip
        PARSERS[script]()
    return found[0]


def numbers(monkeypatch, script: str) -> dict[str, bool]:
    """Every flag of a script that takes a number; whether that has to be whole."""
    found = {}
    for action in parser_of(monkeypatch, script)._actions:
        if action.type is int or getattr(action.type, "__name__", "") == "whole_number":
            found[action.option_strings[0]] = True
        elif action.type is float or getattr(action.type, "__name__", "") == "number":
            found[action.option_strings[0]] = False
    return found


@pytest.mark.parametrize("script", USED)
def test_numbers_out_of_range_are_refused(monkeypatch, capsys, script):
    """1e20 and its digits, nan, infinities and numbers that float32 rounds to 0: status 2."""
    for flag, is_whole in numbers(monkeypatch, script).items():
        for value in ("99999999999999999999", "1e20", "nan", "inf", "-inf", "-1", "1e-39"):
            monkeypatch.setattr("sys.argv", [script, *REQUIRED.get(script, []), f"{flag}={value}"])
            with pytest.raises(SystemExit) as stopped:
                PARSERS[script]()
            assert stopped.value.code == 2
            error = capsys.readouterr().err.splitlines()[-1]
            assert flag in error and value in error, error
        if not is_whole:
            monkeypatch.setattr("sys.argv", [script, *REQUIRED.get(script, []), f"{flag}=-0.0"])
            try:
                value = getattr(PARSERS[script](), flag.removeprefix("--"))
            except SystemExit:  # 0 is too small, too
                assert "expected" in capsys.readouterr().err
            else:
                value = value[0] if isinstance(value, list) else value
                assert str(value) == "0.0", flag


@pytest.mark.parametrize("script", ["train_pretrain.py", "eval_model.py"])
def test_the_largest_seed_is_a_seed(monkeypatch, script):
    """2⁶³ - 1 is taken, by torch's and numpy's generators too."""
    import numpy as np
    import torch

    seed = 2**63 - 1
    monkeypatch.setattr("sys.argv", [script, "--seed", str(seed)])
    assert PARSERS[script]().seed == seed
    torch.manual_seed(seed)
    torch.Generator().manual_seed(seed)
    np.random.PCG64([seed, 0])


def test_numbers_that_no_memory_holds_end_in_one_line(monkeypatch, capsys, tmp_path):
    """A model of 2 TB is refused on a CPU, as on a GPU, with what was asked for."""
    flags = ["--intermediate_size", "2147483647", "--device", "cpu", "--out_dir", tmp_path / "out"]
    monkeypatch.setattr("sys.argv", ["train_pretrain.py", *map(str, flags)])
    with pytest.raises(SystemExit) as stopped:
        cli.run(train_pretrain.main)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    assert error.startswith("error: out of memory") and "tried to allocate" in error


def test_the_demo_corpus_takes_any_seed(tmp_path):
    """A seed of 20 digits writes another corpus; a word is refused in one line."""
    command = [sys.executable, "-m", "dataset.demo", "--out_dir", tmp_path, "--seed"]
    done = subprocess.run([*command, "9" * 20], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([*command, "many"], capture_output=True, text=True)
    assert done.returncode == 2 and "--seed" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "command",
    [
        "train_dpo.py --label_smoothing 0.2",
        "train_dpo.py --loss orpo --simpo_gamma 1",
        "train_pretrain.py --decay_fraction 0.5",
    ],
)
def test_a_number_that_means_nothing_is_refused(command, tmp_path, tiny_tokenizer_dir):
    """A flag of another loss or schedule would be dropped in silence: one line names both."""
    script, *flags = command.split()
    stage = script.removeprefix("train_").removesuffix(".py")
    inputs = make_inputs(tmp_path, tiny_tokenizer_dir)[stage]
    output = run(stage, tmp_path / "run", *inputs, *flags, expect=2)
    flag = next(word for word in reversed(flags) if word.startswith("--"))
    assert f"{flag}: belongs to --" in output and "Traceback" not in output
