"""--compile of the scripts that learn from rewards and from a teacher, to machine code."""

import json

import pytest

from tests.small_runs import figures, make_inputs, run
from tests.test_distillation import make_teacher

REWARD = """
def score(completions):
    return [sum(i < 100 for i in c.ids) / 8 + 0.01 * len(c.ids) for c in completions]
"""


@pytest.fixture
def flags(tmp_path, tiny_tokenizer_dir):
    """The flags of a tiny run of each script."""
    inputs = make_inputs(tmp_path, tiny_tokenizer_dir)
    questions = tmp_path / "questions.jsonl"
    records = [{"question": f"What is {i}? " * (i % 4 + 1), "answer": f"{i}"} for i in range(20)]
    questions.write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "my.py").write_text(REWARD)
    sampled = ["--data_path", questions, *inputs["dpo"][2:], "--max_new_tokens", 10,
               "--num_generations", 4, "--reward", f"{tmp_path / 'my.py'}:score"]  # fmt: skip
    teacher = make_teacher(tmp_path / "teacher", tiny_tokenizer_dir)
    return inputs | {
        "grpo": [*sampled, "--beta", 0.1, "--inner_updates", 2],
        "ppo": [*sampled, "--ppo_epochs", 2],
        "distillation": [*inputs["full_sft"], "--teacher", teacher, "--alpha", 0.3],
    }


@pytest.mark.slow
@pytest.mark.parametrize("script", ["reward", "distillation", "grpo", "ppo"])
def test_compiled_runs(tmp_path, flags, script):
    """A compiled run trains and measures to its end, and its figures are the other one's.

    Of an update with one optimizer step the ratio is 1: nothing is clipped, and what was sampled is
    as likely under the compiled policy.
    """
    more = [
        *flags[script],
        "--dropout",
        0,
        "--max_steps",
        2,
        "--eval_interval",
        2,
        "--batch_size",
        2,
    ]
    once = {"grpo": ["--inner_updates", 1], "ppo": ["--ppo_epochs", 1]}.get(script, [])
    run(script, tmp_path / "plain", *more)
    run(script, tmp_path / "compiled", *more, "--compile", timeout=900)
    found, expected = figures(tmp_path / "compiled"), figures(tmp_path / "plain")
    assert [line["step"] for line in found] == [0, 1, 2, 2]
    for a, b in zip(found, expected, strict=True):
        assert a == pytest.approx(b, rel=1e-2, abs=1e-4)
    if once:
        run(script, tmp_path / "once", *more, *once, "--compile", "--max_steps", 1, timeout=900)
        line = figures(tmp_path / "once")[1]
        assert line["clipped"] == 0 and line["gap"] < 1e-5
        assert line.get("drift", 0) == 0 and abs(line.get("kl", 0)) < 1e-6
