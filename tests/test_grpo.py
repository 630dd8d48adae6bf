"""train_grpo.py from the outside: tiny runs, alone and in several processes."""

import json
import signal
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, GenerationConfig

import train_grpo
from model.config import LMConfig
from model.hf_format import save_model, weights_sha256
from model.model import MiniMindLM
from tests.processes import in_two_processes
from tests.small_runs import make_inputs, start
from tests.test_finetuning import assert_same, gradients
from tests.test_interruptions import check_interrupted_runs
from training import cli
from training.run_log import SPEEDS

REWARD = """
def score(completions):
    '''How many of the first tokens are small ones: every completion gets a number of its own.'''
    return [sum(i < 100 for i in c.ids) / 8 + 0.01 * len(c.ids) for c in completions]
"""


@pytest.fixture
def flags(tmp_path, tiny_tokenizer_dir):
    """The flags of a tiny run; rewards by a function of a file, which tells completions apart."""
    inputs = make_inputs(tmp_path, tiny_tokenizer_dir)
    questions = tmp_path / "questions.jsonl"
    records = [{"question": f"What is {i}? " * (i % 4 + 1), "answer": f"{i}"} for i in range(20)]
    questions.write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "my.py").write_text(REWARD)
    _, _, *tuning = inputs["dpo"]  # but for --data_path
    return {
        "grpo": ["--data_path", str(questions), "--reward", f"{tmp_path / 'my.py'}:score",
                 "--max_new_tokens", "10", "--num_generations", "4", *tuning],
    }  # fmt: skip


def train(monkeypatch, out_dir, *flags):
    argv = ["train_grpo.py", "--out_dir", str(out_dir), *map(str, flags)]
    monkeypatch.setattr(sys, "argv", argv)
    train_grpo.main()


def metrics(out_dir):
    lines = map(json.loads, (out_dir / "metrics.jsonl").read_text().splitlines())
    lines = (line for line in lines if "event" not in line)
    return [{k: v for k, v in line.items() if k not in SPEEDS} for line in lines]


@pytest.mark.parametrize("loss", train_grpo.LOSSES)
def test_one_update_however_it_is_shared_out(monkeypatch, tmp_path, flags, loss):
    """1 × 8 prompts and accumulation 4 × 2 have one gradient, whatever lengths completions have."""
    run = [*flags["grpo"], *ONE_UPDATE, "--loss", loss, "--beta", 0.1]
    train(monkeypatch, tmp_path / "one", *run, "--batch_size", 8)
    train(monkeypatch, tmp_path / "four", *run, "--batch_size", 2, "--accumulation_steps", 4)
    one, four = (gradients(tmp_path / name / "step-00000001") for name in ("one", "four"))
    assert_same(one, four, rtol=1e-3)
    assert max(g.abs().max() for g in one.values()) > 1e-4
    assert metrics(tmp_path / "one")[0] == pytest.approx(
        metrics(tmp_path / "four")[0], rel=1e-4, abs=1e-6
    )


ONE_UPDATE = ("--max_steps", 1, "--val_fraction", 0, "--grad_clip", 0, "--dropout", 0)


@pytest.mark.parametrize("more", [[], pytest.param(["--lora_rank", 4], marks=pytest.mark.slow)])
def test_two_ranks_learn_what_one_does(monkeypatch, tmp_path, flags, more):
    """Two ranks × 4 prompts, as DDP and as FSDP: the gradient and the figures of 1 × 8."""
    run = [*flags["grpo"], *ONE_UPDATE, *more, "--beta", 0.1]
    train(monkeypatch, tmp_path / "one", *run, "--batch_size", 8)
    in_two_processes("train_grpo.py", tmp_path / "ddp", *run, "--batch_size", 4)
    in_two_processes("train_grpo.py", tmp_path / "fsdp", *run, "--batch_size", 4, "--fsdp")
    one = gradients(tmp_path / "one" / "step-00000001")
    for name in ("ddp", "fsdp"):
        assert_same(one, gradients(tmp_path / name / "step-00000001"), rtol=1e-3)
        assert metrics(tmp_path / name)[0] == pytest.approx(
            metrics(tmp_path / "one")[0], rel=1e-4, abs=1e-6
        )


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_run_ends_like_an_undisturbed_one(tmp_path, flags, processes):
    """Killed at random moments and started again: equal bits and figures, sampling included."""
    more = {"grpo": [*flags["grpo"], "--inner_updates", "2", "--beta", "0.1"]}
    number = signal.SIGKILL
    assert check_interrupted_runs(tmp_path, more, "grpo", processes, number, runs=1, kills=2)


def test_a_stopped_run_goes_on(tmp_path, flags):
    """SIGTERM between inner updates finishes the update and saves it, status 143."""
    run = [*flags["grpo"], "--inner_updates", 3, "--max_steps", 10**6, "--eval_interval", 10**6]
    process = start("grpo", tmp_path / "run", *run)
    for line in process.stdout:
        if "step" in line and "reward" in line and "val_reward" not in line:
            process.send_signal(signal.SIGTERM)
            break
    rest, _ = process.communicate(timeout=300)
    assert process.returncode == 143 and "stopped by SIGTERM after step" in rest, rest


@pytest.mark.parametrize(
    "more",
    [
        ["--learning_rate", 1e-2],
        ["--learning_rate", 1e-2, "--loss", "cispo", "--inner_updates", 2],
        ["--learning_rate", 2e-2, "--lora_rank", 8, "--loss", "dapo", "--temperature", 0.1],
    ],
)
def test_it_learns(monkeypatch, tmp_path, flags, more):
    """Rewarded tokens become likelier: the mean reward of training and held-out prompts rises."""
    train(monkeypatch, tmp_path / "run", *flags["grpo"], "--dropout", 0, "--max_steps", 40,
          "--eval_interval", 40, "--save_interval", 40, "--batch_size", 4, *more)  # fmt: skip
    first, *lines, last = metrics(tmp_path / "run")
    assert lines[0]["clipped"] == 0 or "--inner_updates" in more
    assert lines[0]["gap"] < 1e-5 and lines[0]["length"] > 3 and lines[0]["reward_std"] > 0
    assert sum(line["reward"] for line in lines[-4:]) > 4 * lines[0]["reward"] + 0.2
    for name in ("val_reward", "sampled_reward"):
        assert last[name] > first[name] + 0.3, name
    assert {"pass@1", "pass@4", "greedy"} <= last.keys()


def test_a_run_that_learns_nothing_says_so(monkeypatch, tmp_path, flags, capsys):
    """Where all completions deserve the same no weight changes, and "done" is not the last word."""
    told = "nothing was learned: the gradient of every update was 0"
    run = [*flags["grpo"], "--batch_size", 4, "--save_interval", 1, "--max_steps"]
    (tmp_path / "fair.py").write_text("def score(some):\n    return [0.1] * len(some)\n")
    train(monkeypatch, tmp_path / "fair", *run, 2, "--reward", f"{tmp_path / 'fair.py'}:score")
    assert told in capsys.readouterr().out
    assert weights_sha256(tmp_path / "fair/step-00000002") == weights_sha256(tmp_path / "base")
    train(monkeypatch, tmp_path / "run", *run, 2)
    (tmp_path / "my.py").write_text("def score(some):\n    return [0.1] * len(some)\n")
    train(monkeypatch, tmp_path / "run", *run, 3, "--allow_changes")  # it had learned before
    assert told not in capsys.readouterr().out


def test_inner_updates_clip(monkeypatch, tmp_path, flags):
    """The first inner update has ratio 1, later ones have not: some are clipped."""
    run = [*flags["grpo"], "--dropout", 0, "--max_steps", 2, "--batch_size", 4, "--warmup_steps", 0,
           "--learning_rate", 1e-2, "--val_fraction", 0]  # fmt: skip
    for inner in (1, 3):
        train(monkeypatch, tmp_path / f"{inner}", *run, "--inner_updates", inner)
    one, three = (metrics(tmp_path / f"{inner}") for inner in (1, 3))
    assert one[0]["clipped"] == one[1]["clipped"] == 0 < three[0]["clipped"]
    assert one[0]["prompts"] == three[0]["prompts"] == 4 and [x["step"] for x in three] == [1, 2]
    for name in ("reward", "length", "truncated", "gap"):
        assert one[0][name] == pytest.approx(three[0][name], rel=1e-5), name


def test_the_reference_is_the_model_it_began_with(monkeypatch, tmp_path, flags):
    """A resumed run's KL is still to the starting model, not to its checkpoint."""
    run = [*flags["grpo"], "--dropout", 0, "--beta", 0.1, "--learning_rate", 1e-2, "--batch_size",
           4, "--warmup_steps", 0, "--val_fraction", 0, "--save_interval", 1]  # fmt: skip
    for steps in (2, 4):  # the second goes on from the first
        train(monkeypatch, tmp_path / "run", *run, "--max_steps", steps)
    kl = [line["kl"] for line in metrics(tmp_path / "run")]
    assert kl[0] == pytest.approx(0, abs=1e-6) and min(kl[1:]) > 1e-4


def test_experts(monkeypatch, tmp_path, flags, tiny_tokenizer):
    """A mixture of experts learns: sampler and trainer agree, its auxiliary loss is logged."""
    torch.manual_seed(0)
    config = LMConfig(
        vocab_size=512, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=64, use_moe=True, num_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=16, initializer_range=0.1,
    )  # fmt: skip
    save_model(MiniMindLM(config), tmp_path / "base", tiny_tokenizer.eos_id)
    train(monkeypatch, tmp_path / "run", *flags["grpo"], "--dropout", 0, "--max_steps", 2,
          "--batch_size", 2, "--accumulation_steps", 2, "--val_fraction", 0)  # fmt: skip
    lines = metrics(tmp_path / "run")
    assert len(lines) == 2 and all(line["gap"] < 1e-5 for line in lines)
    assert all(line["aux_loss"] > 0 and 0.25 <= line["max_expert_load"] <= 1 for line in lines)


def test_lora_leaves_the_base_alone(monkeypatch, tmp_path, flags):
    """The run's folder holds an adapter, and the base's folder keeps its bits."""
    base = tmp_path / "base"
    before = weights_sha256(base)
    train(monkeypatch, tmp_path / "run", *flags["grpo"], "--lora_rank", 4, "--max_steps", 1)
    folder = tmp_path / "run" / "step-00000001"
    assert weights_sha256(base) == before and not (folder / "model.safetensors").exists()
    assert all(t.abs().sum() > 0 for t in load_file(folder / "adapter_model.safetensors").values())


@pytest.mark.parametrize("what", ["reward", "tool"])
def test_what_it_learns_by_is_part_of_the_run(monkeypatch, tmp_path, flags, capsys, what):
    """A function or table of the user's that has changed is named; --allow_changes goes on."""
    table = tmp_path / "prices.csv"
    table.write_text("name,value\nfig,3\n")
    more = ["--max_position_embeddings", 1024, "--max_seq_len", 800, "--batch_size", 2]
    run = [*flags["grpo"], *more, "--tools", table, "--max_steps"]
    train(monkeypatch, tmp_path / "run", *run, 1)
    file = {"reward": tmp_path / "my.py", "tool": table}[what]
    file.write_text(file.read_text().replace("3", "4") + "\n")
    with pytest.raises(ValueError, match="what it learns by has changed") as raised:
        train(monkeypatch, tmp_path / "run", *run, 2)
    assert str(file) in str(raised.value)
    train(monkeypatch, tmp_path / "run", *run, 2, "--allow_changes")
    assert "going on although what it learns by has changed" in capsys.readouterr().out


def test_prompts_left_out_are_counted_and_judged(monkeypatch, tmp_path, flags, capsys):
    """Of held-out prompts, too: those that are too long, and those without a right answer."""
    held_out = tmp_path / "held_out.jsonl"
    records = [{"question": "What is 1?" * n, "answer": answer}
               for n, answer in ((1, "1"), (1, "one"), (99, "1"))]  # fmt: skip
    held_out.write_text("".join(json.dumps(record) + "\n" for record in records))
    run = [*flags["grpo"], "--val_data_path", held_out, "--max_steps", 1, "--reward", "number"]
    train(monkeypatch, tmp_path / "run", *run)
    output = capsys.readouterr().out
    assert "held out: 2 prompts of " in output and "1 left out as too long" in output
    told = "warning: --val_data_path: --reward number: 1 of 3 prompts cannot be judged"
    assert told in output and "got 'one'" in output
    held_out.write_text(json.dumps(records[1]) + "\n")
    with pytest.raises(ValueError, match="--val_data_path: --reward number: 1 of 1 prompts"):
        train(monkeypatch, tmp_path / "other", *run)


def test_a_base_model_learns_to_chat(monkeypatch, tmp_path, flags):
    """Without a chat template it gets one, as in fine-tuning: turns end, and the folder chats."""
    assert not (tmp_path / "base" / "chat_template.jinja").exists()
    train(monkeypatch, tmp_path / "run", *flags["grpo"], "--max_steps", 1)
    folder = tmp_path / "run" / "step-00000001"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "1"}], tokenize=False)
    assert rendered == "<|im_start|>user\n1<|im_end|>\n"
    ends = GenerationConfig.from_pretrained(folder).eos_token_id
    assert ends == [tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.eos_token_id]


def test_bad_input_is_one_clear_line(monkeypatch, tmp_path, flags, capsys):
    """A mistake names the flag, ends with status 2, and leaves nothing behind."""
    for more, expected in (
        (["--top_p", 0.9], "--top_p 0.9"),
        (["--top_k", 5], "--top_k 5"),
        (["--reward", "beauty=1"], "--reward"),
        (["--reward", "number=much"], "--reward"),
        (["--max_new_tokens", 158], "--max_seq_len"),
        (["--max_turns", 3], "--max_turns 3: there are no --tools"),
    ):
        argv = ["train_grpo.py", "--out_dir", tmp_path / "run", *flags["grpo"], *more]
        monkeypatch.setattr(sys, "argv", [str(word) for word in argv])
        with pytest.raises(SystemExit) as stopped:
            cli.run(train_grpo.main)
        message = capsys.readouterr().err
        assert stopped.value.code == 2 and expected in message, (more, message)
        assert message.startswith("error: ") and "Traceback" not in message
        assert not (tmp_path / "run").exists()
