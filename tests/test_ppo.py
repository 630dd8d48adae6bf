"""train_ppo.py: policy and critic against models of their own, and tiny runs."""

import json
import signal
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import train_ppo
from dataset.chat import NO_THINKING
from dataset.tokenizer import load_tokenizer
from model.actor_critic import actor_critic
from model.hf_format import load_model, save_model
from model.model import MiniMindLM
from model.reward_model import (
    RewardModel,
    from_language_model,
    save_reward_model,
    score_sequences,
)
from tests.oracle_models import open_there, our_model, ours, random_numbers, shake
from tests.processes import in_two_processes
from tests.test_finetuning import assert_same, gradients
from tests.test_grpo import flags as grpo_flags  # noqa: F401 (a fixture)
from tests.test_interruptions import check_interrupted_runs
from tests.test_ppo_losses import by_hand
from training.actor_critic import _load_critic, by_sequence, from_sequences, look_back, minibatches
from training.distributed import Ranks
from training.rollouts import Rows
from training.run_log import SPEEDS

NUMBERS = random_numbers(1, vocab_size=512)
ALONE = Ranks(0, 0, 1, torch.device("cpu"))
T = 40


@pytest.fixture
def flags(grpo_flags):  # noqa: F811
    """Those of a tiny run of GRPO, with as many samples."""
    return [*grpo_flags["grpo"], "--value_coef", "0.5"]


def train(monkeypatch, out_dir, *flags):
    argv = ["train_ppo.py", "--out_dir", str(out_dir), *map(str, flags)]
    monkeypatch.setattr(sys, "argv", argv)
    train_ppo.main()


def metrics(out_dir):
    lines = map(json.loads, (out_dir / "metrics.jsonl").read_text().splitlines())
    lines = (line for line in lines if "event" not in line)
    return [{k: v for k, v in line.items() if k not in SPEEDS} for line in lines]


# ---- what is made of a rollout


def completions(count=9):
    """(prompt ids, completion ids, score), of uneven lengths."""
    random = np.random.default_rng(0)
    return [
        (random.integers(3, 512, random.integers(2, 8)).tolist(),
         random.integers(3, 512, random.integers(1, 9)).tolist(), float(random.normal()))
        for _ in range(count)
    ]  # fmt: skip


def packed(samples, compiled: bool) -> Rows:
    """All of them as one micro-batch, as many in a row as fit it, by hand."""
    rows, used = [[]], 0
    for sample in samples:
        needed = len(sample[0]) + len(sample[1]) - 1
        if used + needed > T:
            rows.append([])
            used = 0
        rows[-1].append(sample)
        used += needed
    X, Y, documents, sequences = torch.zeros(4, len(rows), T, dtype=torch.int64)
    mask, scores = torch.zeros(2, len(rows), T)
    for row, members in enumerate(rows):
        at = 0
        for document, (prompt, answer, score) in enumerate(members, start=1):
            ids = torch.tensor([*prompt, *answer])
            end = at + len(ids) - 1
            place = slice(end - len(answer), end)
            X[row, at:end], Y[row, at:end], documents[row, at:end] = ids[:-1], ids[1:], document
            mask[row, place], scores[row, place] = 1, score
            sequences[row, place] = sequences.max() + 1
            at = end
    places = torch.arange(mask.numel()) if compiled else torch.nonzero(mask.flatten())[:, 0]
    told = [t.flatten()[places] for t in (Y, mask, sequences, scores)]
    Y, mask, sequences, scores = told
    return Rows(X, documents, places, Y, mask, sequences, scores, mask / mask.sum(), mask * 0,
                torch.tensor(1.0))  # fmt: skip


@pytest.mark.parametrize("compiled", [False, True])
def test_values_by_completion_and_back(compiled):
    """A completion a row, in their order; back where they were, and 0 elsewhere."""
    samples = completions()
    rows = packed(samples, compiled)
    numbers = torch.arange(1.0, 1 + len(rows.mask)) * rows.mask
    (table,) = by_sequence(rows, numbers[None])
    kept = [row[row > 0].tolist() for row in table if (row > 0).any()]
    assert [len(row) for row in kept] == [len(answer) for _, answer, _ in samples]
    assert [x for row in kept for x in row] == numbers[numbers > 0].tolist()
    assert torch.equal(from_sequences(rows, table[None])[0], numbers)
    empty = packed(samples[:0], compiled)
    assert not from_sequences(empty, by_sequence(empty, empty.mask[None])).any()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
def test_advantages_are_those_of_single_completions(tmp_path, compiled, kl_coef):
    """Log-probabilities by transformers, values and GAE one by one: what packed rows come to."""
    policy, critic = our_model(NUMBERS, 1), shake(RewardModel(ours(NUMBERS)), 2)
    reference = our_model(NUMBERS, 3)
    samples = completions()
    args = SimpleNamespace(temperature=0.7, kl_coef=kl_coef, gamma=0.9, lam=0.8)
    tmp_path.joinpath("p").mkdir()
    save_model(policy, tmp_path / "p", 2)
    there = open_there(tmp_path / "p")

    def log_probs(model, prompt, answer):
        ids = torch.tensor([[*prompt, *answer]])
        logits = model(ids)
        logits = (logits[0] if isinstance(logits, tuple) else logits.logits)[0, :-1] / 0.7
        found = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        return found[len(prompt) - 1 :].detach().double().numpy()

    expected, returns, olds = [], [], []
    for prompt, answer, score in samples:
        olds.append(log_probs(there, prompt, answer))
        kl = olds[-1] - log_probs(reference, prompt, answer) if kl_coef else 0 * olds[-1]
        values = score_sequences(critic, [prompt + answer[:k] for k in range(len(answer))])
        rewards = -kl_coef * kl
        rewards[-1] += score
        expected += by_hand(rewards, np.array(values), 0.9, 0.8)
        returns += (np.array(expected[-len(answer) :]) + values).tolist()
    expected = (np.array(expected) - np.mean(expected)) / np.std(expected, ddof=1)

    model, rows = actor_critic(policy, critic), packed(samples, compiled)
    run = SimpleNamespace(
        model=model, compiled=model, autocast=torch.autocast("cpu", enabled=False)
    )
    if kl_coef:
        with torch.no_grad():
            logits, _ = reference(rows.X, rows.document_ids, places=rows.places)
        rows.reference = (logits / 0.7).log_softmax(-1).gather(1, rows.Y[:, None])[:, 0]
    ((_, values, found),) = look_back(run, [rows], args)
    kept = rows.mask > 0
    np.testing.assert_allclose(rows.old[kept], np.concatenate(olds), atol=1e-4)
    np.testing.assert_allclose(found[kept], returns, atol=1e-4)
    np.testing.assert_allclose(rows.advantages[kept], expected, atol=2e-4)
    assert not any(x[~kept].any() for x in (rows.advantages, found, values))


def test_policy_and_critic_are_models_of_their_own():
    """One module computes what both compute alone, and neither's gradient touches the other."""
    policy, critic = our_model(NUMBERS, 1), shake(RewardModel(ours(NUMBERS)), 2).eval()
    rows = packed(completions(), False)
    logits, _ = policy(rows.X, rows.document_ids, places=rows.places)
    scores, _ = critic(rows.X, rows.document_ids)
    model = actor_critic(policy, critic).eval()
    found, values, _ = model(rows.X, rows.document_ids, rows.places)
    assert torch.equal(found, logits)
    torch.testing.assert_close(values, scores[..., 0].flatten()[rows.places])
    values.sum().backward()
    assert all(p.grad is None for p in policy.parameters())
    assert all(p.grad is not None for p in critic.parameters())
    alone = model.policy()
    assert torch.equal(alone(rows.X, rows.document_ids, places=rows.places)[0], logits)
    assert {id(p) for p in alone.parameters()} == {id(p) for p in policy.parameters()}


def test_minibatches_do_not_depend_on_ranks():
    """Every prompt is in one; sizes differ by one at most; another step draws others."""
    run = SimpleNamespace(ranks=ALONE, args=SimpleNamespace(seed=1), step=3)
    numbers = list(range(10, 33))
    parts = minibatches(run, numbers, 4)
    assert sorted(i for part in parts for i in part) == list(range(23))
    assert {len(part) for part in parts} == {5, 6}
    turned = minibatches(run, numbers[::-1], 4)
    assert [{22 - i for i in part} for part in turned] == [set(part) for part in parts]
    run.step = 4
    assert minibatches(run, numbers, 4) != parts
    assert minibatches(run, [7], 4) == [[0]]


# ---- runs

ONE_UPDATE = ("--max_steps", 1, "--val_fraction", 0, "--grad_clip", 0, "--dropout", 0)


def test_it_learns(monkeypatch, tmp_path, flags):
    """The mean reward of training and held-out prompts rises, and the critic's error falls."""
    train(monkeypatch, tmp_path / "run", *flags, "--dropout", 0, "--max_steps", 20, "--minibatches",
          2, "--eval_interval", 20, "--save_interval", 20, "--batch_size", 4,
          "--learning_rate", 5e-3)  # fmt: skip
    first, *lines, last = metrics(tmp_path / "run")
    assert sum(line["reward"] for line in lines[-4:]) > 4 * lines[0]["reward"] + 0.2
    assert last["val_reward"] > first["val_reward"]
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-5) and lines[-1]["kl"] > 0.01
    assert sum(x["value_loss"] for x in lines[-4:]) < sum(x["value_loss"] for x in lines[:4])
    folder = tmp_path / "run/step-00000020"
    open_there(folder)  # the policy, and nothing unexpected
    assert {p.name for p in folder.glob("*.safetensors")} == {"model.safetensors"}


def test_the_first_step_has_ratio_1(monkeypatch, tmp_path, flags):
    """Nothing has drifted and nothing is clipped; in later passes something has."""
    run = [*flags, "--dropout", 0, "--max_steps", 2, "--learning_rate", 1e-2, "--warmup_steps", 0,
           "--temperature", 0.7, "--save_interval", 2]  # fmt: skip
    train(monkeypatch, tmp_path / "one", *run, "--ppo_epochs", 1)
    train(monkeypatch, tmp_path / "three", *run, "--ppo_epochs", 3)
    one, three = (
        [line for line in metrics(tmp_path / name) if "drift" in line] for name in ("one", "three")
    )
    assert all(x["drift"] < 1e-9 and x["clipped"] == x["values_clipped"] == 0 for x in one)
    assert all(x["drift"] > 1e-4 for x in three) and any(x["clipped"] > 0 for x in three)


@pytest.mark.parametrize(("target_kl", "steps"), [(0, 6), (1e-12, 2)])
def test_an_update_ends_early_by_its_kl(monkeypatch, tmp_path, flags, target_kl, steps):
    """After the step that sees the policy drift; the first one's ratio is 1, so the second."""
    train(monkeypatch, tmp_path / "run", *flags, "--dropout", 0, "--max_steps", 1, "--minibatches",
          2, "--ppo_epochs", 3, "--warmup_steps", 0, "--learning_rate", 1e-2, "--save_interval", 1,
          "--target_kl", target_kl)  # fmt: skip
    state = load_file(tmp_path / "run/step-00000001/resume/optimizer.tensors")
    assert state["model.norm.weight.step"] == state["critic.score.weight.step"] == steps
    line = next(line for line in metrics(tmp_path / "run") if "drift" in line)
    assert line["step"] == 1 and 0 < line["length"] <= 10  # a mean over the steps there were


@pytest.mark.parametrize("target_kl", [0, 1e-12])
def test_figures_are_of_all_completions(monkeypatch, tmp_path, flags, target_kl):
    """Whatever the minibatches' sizes, and wherever an update ends early: the reward's own mean."""
    (tmp_path / "told.py").write_text(
        "from pathlib import Path\n"
        "def score(some):\n"
        "    given = [len(c.ids) + len(c.prompt.text) for c in some]\n"
        f"    with open({str(tmp_path / 'given.txt')!r}, 'a') as file:\n"
        "        print(sum(given) / len(given), file=file)\n"
        "    return given\n"
    )
    train(monkeypatch, tmp_path / "run", *flags, "--reward", f"{tmp_path / 'told.py'}:score",
          "--batch_size", 3, "--minibatches", 2, "--ppo_epochs", 2, "--max_steps", 3,
          "--val_fraction", 0, "--warmup_steps", 0, "--learning_rate", 1e-2,
          "--target_kl", target_kl)  # fmt: skip
    given = [float(line) for line in (tmp_path / "given.txt").read_text().split()]
    told = [line["reward"] for line in metrics(tmp_path / "run")]
    assert told == pytest.approx(given, rel=1e-5) and len(told) == 3


def test_accumulation_changes_nothing(monkeypatch, tmp_path, flags):
    """1 × 8 prompts and accumulation 4 × 2 have one gradient, of policy and critic."""
    run = [*flags, *ONE_UPDATE, "--ppo_epochs", 1]
    train(monkeypatch, tmp_path / "one", *run, "--batch_size", 8)
    train(monkeypatch, tmp_path / "four", *run, "--batch_size", 2, "--accumulation_steps", 4)
    one, four = (gradients(tmp_path / name / "step-00000001") for name in ("one", "four"))
    assert any(name.startswith("critic.") for name in one)
    assert_same(one, four, rtol=1e-3)
    assert max(g.abs().max() for g in one.values()) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--fsdp"]], ids=["ddp", "fsdp"])
def test_two_ranks_learn_what_one_does(monkeypatch, tmp_path, flags, more):
    """Two ranks × 4 prompts, minibatches and passes: the figures and weights of 1 × 8.

    A share of clipped values jumps where one stands on the edge, as one does at 0.2 and at 0.3.
    """
    run = [*flags, "--dropout", 0, "--max_steps", 2, "--minibatches", 2, "--save_interval", 2,
           "--learning_rate", 1e-3, "--value_epsilon", 0.25]  # fmt: skip
    train(monkeypatch, tmp_path / "one", *run, "--batch_size", 8)
    in_two_processes("train_ppo.py", tmp_path / "two", *run, "--batch_size", 4, *more)
    for a, b in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)
    for name in ("model.safetensors", "resume/critic.tensors"):
        one, two = (load_file(tmp_path / x / "step-00000002" / name) for x in ("one", "two"))
        assert one.keys() == two.keys()
        for key, weight in one.items():
            torch.testing.assert_close(weight, two[key], rtol=1e-3, atol=2e-4, msg=key)


def test_a_resumed_run_ends_like_an_undisturbed_one(monkeypatch, tmp_path, flags):
    """Policy, critic and optimizer to the bit, and the same figures, sampling included."""
    run = [*flags, "--min_lr_ratio", 1, "--minibatches", 2, "--batch_size", 4, "--max_steps"]
    train(monkeypatch, tmp_path / "run", *run, 2)
    train(monkeypatch, tmp_path / "run", *run, 4)
    train(monkeypatch, tmp_path / "whole", *run, 4)
    for name in ("model.safetensors", "resume/critic.tensors", "resume/optimizer.tensors"):
        a, b = (tmp_path / x / "step-00000004" / name for x in ("run", "whole"))
        assert a.read_bytes() == b.read_bytes(), name
    a, b = (
        [x for x in metrics(tmp_path / name) if "drift" in x or x["step"] % 4 == 0]
        for name in ("run", "whole")
    )
    assert a == b


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_ends_like_an_undisturbed_one(tmp_path, flags, processes):
    """Killed at random moments and started again, between optimizer steps, too: the same bits."""
    more = {"ppo": [*flags, "--minibatches", "2"]}
    number = signal.SIGKILL
    assert check_interrupted_runs(tmp_path, more, "ppo", processes, number, runs=1, kills=2)


def test_a_reward_model_judges_and_begins_the_critic(monkeypatch, tmp_path, flags):
    """--reward model=FOLDER gives its scores; --critic_from it begins with its blocks and head."""
    base, folder = load_model(tmp_path / "base"), tmp_path / "scorer"
    folder.mkdir()
    tokenizer = load_tokenizer(tmp_path / "base")
    save_reward_model(from_language_model(base, 5), folder, tokenizer.eos_id, tokenizer.eos_id)
    tokenizer.chat_template = NO_THINKING
    tokenizer.save(folder)
    at = flags.index("--reward")
    run = [*flags[:at], "--reward", f"model={folder}=2", *flags[at + 2 :]]
    train(monkeypatch, tmp_path / "run", *run, "--critic_from", folder, "--max_steps", 1,
          "--learning_rate", 0, "--dropout", 0, "--save_interval", 1)  # fmt: skip
    critic = load_file(tmp_path / "run/step-00000001/resume/critic.tensors")
    scorer = load_file(folder / "model.safetensors")
    assert critic.keys() == scorer.keys()
    assert all(torch.equal(critic[name], scorer[name]) for name in scorer)
    line = next(line for line in metrics(tmp_path / "run") if "drift" in line)
    assert line["reward"] != 0 and line["value_loss"] > 0
    with pytest.raises(ValueError, match="--critic_from was the critic with"):
        train(monkeypatch, tmp_path / "run", *run, "--max_steps", 2)


def test_unfit_critics_are_one_clear_line(monkeypatch, tmp_path, flags):
    """One of another size, and a checkpoint's that is another's."""
    other, tokenizer = tmp_path / "other", load_tokenizer(tmp_path / "base")
    other.mkdir()
    config = ours(random_numbers(2, vocab_size=512))
    save_model(MiniMindLM(config), other, tokenizer.eos_id)
    with pytest.raises(ValueError, match=r"--critic_from .*other: its \w+ is .*, --init_from's"):
        train(monkeypatch, tmp_path / "a", *flags, "--critic_from", other)
    train(monkeypatch, tmp_path / "run", *flags, "--max_steps", 1, "--save_interval", 1)
    file = tmp_path / "run/step-00000001/resume/critic.tensors"
    wrong = load_file(file)
    wrong["score.weight"] = torch.zeros(2, 3)
    save_file(wrong, file)
    run = SimpleNamespace(config=load_model(tmp_path / "base").config, home="cpu")
    with pytest.raises(ValueError, match=r"critic\.tensors: not this model's critic: score"):
        _load_critic(run, file)
    with pytest.raises(ValueError, match="whole distribution"):
        train(monkeypatch, tmp_path / "b", *flags, "--top_p", 0.9)
