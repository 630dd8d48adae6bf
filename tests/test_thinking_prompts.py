"""--enable_thinking of the scripts that learn from rewards: prompts that let a model think."""

import json
import sys

import pytest

import train_full_sft
import train_grpo
import train_ppo
from tests.small_runs import COMMON, figures, make_inputs

SCRIPTS = {"full_sft": train_full_sft, "grpo": train_grpo, "ppo": train_ppo}
SMALL = ["--max_new_tokens", 12, "--num_generations", 2, "--eval_generations", 0, "--max_steps", 1,
         "--reward", "think_format"]  # fmt: skip


def train(monkeypatch, script, out_dir, *flags):
    argv = [f"train_{script}.py", "--out_dir", str(out_dir), *map(str, flags)]
    monkeypatch.setattr(sys, "argv", argv)
    SCRIPTS[script].main()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_tokenizer_dir):
    """Questions, the base model, and one that was taught to think before it answers, in one way."""
    folder = tmp_path_factory.mktemp("thinking")
    inputs = make_inputs(folder, tiny_tokenizer_dir)
    thought = {"role": "assistant", "reasoning_content": "A cat.", "content": "It sat."}
    lines = {"questions": [], "thoughts": []}
    for i in range(40):
        ask = f"What is {i}?"
        lines["questions"].append({"question": ask, "answer": str(i)})
        lines["thoughts"].append({"messages": [{"role": "user", "content": ask}, thought]})
    for name, records in lines.items():
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(text)
    with pytest.MonkeyPatch.context() as monkeypatch:
        train(monkeypatch, "full_sft", folder / "taught", "--data_path", folder / "thoughts.jsonl",
              *inputs["full_sft"][2:], "--dropout", 0, "--max_steps", 60, "--learning_rate", 2e-2,
              "--eval_interval", 60)  # fmt: skip
    return folder


@pytest.fixture
def flags(folder, tmp_path):
    """Those of a tiny run on questions, from the model that was taught."""
    return ["--data_path", folder / "questions.jsonl", "--init_from", folder / "taught", *COMMON,
            "--cache_dir", tmp_path / "cache", "--max_seq_len", 160, "--dropout", 0,
            "--val_fraction", 0.2, *SMALL]  # fmt: skip


def test_the_reward_is_given_where_it_is_deserved(monkeypatch, tmp_path, flags):
    """A thought is had with the flag, in training and held out; without it none is begun."""
    for script in ("grpo", "ppo"):
        for more, expected in (["--enable_thinking"], 1), ([], 0):
            out = tmp_path / f"{script}{expected}"
            train(monkeypatch, script, out, *flags, *more)
            before, step, *_ = figures(out)
            assert before["val_reward"] == expected
            assert step["reward"] == pytest.approx(expected, abs=0.2)


def test_it_is_part_of_what_a_run_keeps(monkeypatch, tmp_path, flags):
    """A run is not continued with the other kind of prompts, and the message tells the flag."""
    train(monkeypatch, "grpo", tmp_path / "run", *flags, "--enable_thinking")
    with pytest.raises(ValueError, match="--enable_thinking was True, is False: give --enable_"):
        train(monkeypatch, "grpo", tmp_path / "run", *flags, "--max_steps", 2)
    train(monkeypatch, "grpo", tmp_path / "run", *flags, "--enable_thinking", "--max_steps", 2)
    assert (tmp_path / "run/step-00000002").is_dir()


@pytest.mark.parametrize("script", ["grpo", "ppo"])
def test_a_model_that_cannot_think_is_told_so(monkeypatch, tmp_path, folder, flags, script):
    """One clear line, before anything is written."""
    with pytest.raises(ValueError, match=r"--enable_thinking: .*base was not taught to think"):
        base = ["--init_from", folder / "base"]
        train(monkeypatch, script, tmp_path / "run", *flags, *base, "--enable_thinking")
    assert not [*tmp_path.glob("run/*.jsonl"), *tmp_path.glob("run/step-*")]
