"""train_kto.py: its loss against trl's KTOTrainer, and runs of it."""

import json
import signal
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from trl import KTOConfig, KTOTrainer

import train_kto
from dataset.kto import KTODataset
from model.hf_format import load_model
from tests.encode import encode
from tests.oracle_models import open_there, our_model, random_numbers, save_here
from tests.processes import in_two_processes
from tests.small_runs import make_inputs
from tests.test_dpo import ALONE, NO_AUTOCAST
from tests.test_interruptions import check_interrupted_runs
from tests.test_kto_dataset import judged_file
from train_kto import METRICS, kl_estimate, kto_loss
from training.reference import pair_log_probs
from training.run_log import SPEEDS

NUMBERS = random_numbers(1, vocab_size=512)
ABOVE = (1, 2)  # seeds of policy and reference whose estimate is above 0
FLAGS = SimpleNamespace(beta=0.3, desirable_weight=1.5, undesirable_weight=0.5)


def padded_batch(dataset):
    """All records, padded on the right, as trl's collator lays them out."""
    batch = {"label": dataset.labels}
    for side, prefix in enumerate(("", "KL_")):
        sequences = [dataset.documents(i)[side] for i in range(dataset.total)]
        longest = max(len(ids) for ids, _ in sequences)
        columns = {"input_ids": [], "attention_mask": [], "completion_mask": []}
        for ids, mask in sequences:
            fill = [0] * (longest - len(ids))
            columns["input_ids"].append([*ids.tolist(), *fill])
            columns["attention_mask"].append([1] * len(ids) + fill)
            columns["completion_mask"].append([*mask.tolist(), *fill])
        batch |= {prefix + name: torch.tensor(rows) for name, rows in columns.items()}
    return batch


@pytest.mark.parametrize("seeds", [ABOVE, ABOVE[::-1]])
def test_loss_and_rewards_equal_trl(tmp_path, tiny_tokenizer, tiny_tokenizer_dir, seeds):
    """Loss, rewards and KL term of packed records are KTOTrainer's, with weights.

    The KL term's estimate is above 0 one way and below it, so that it is 0, the other way.
    """
    policy_dir, reference_dir = (
        save_here(our_model(NUMBERS, seed=seed), tmp_path / f"{seed}") for seed in seeds
    )
    dataset = KTODataset(encode("judged", judged_file(tmp_path), tiny_tokenizer), 256)
    policy, reference = (
        pair_log_probs(load_model(folder), dataset, 2, ALONE, NO_AUTOCAST)
        for folder in (policy_dir, reference_dir)
    )
    own, others = (policy - reference).unbind(-1)
    kl = kl_estimate(others, torch.ones_like(others))
    assert kl > 0.1 if seeds == ABOVE else kl == 0 > others.mean()
    losses, values = kto_loss(own, kl, dataset.labels, FLAGS)
    ours = dict(zip(METRICS, values.mean(0).tolist()))
    assert ours["loss"] == pytest.approx(losses.mean().item())

    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    tokenizer.pad_token = tokenizer.eos_token
    from datasets import Dataset

    two = {"prompt": ["a", "b"], "completion": ["c", "d"], "label": [True, False]}
    trainer = KTOTrainer(
        open_there(policy_dir), open_there(reference_dir), processing_class=tokenizer,
        train_dataset=Dataset.from_dict(two),
        args=KTOConfig(
            output_dir=str(tmp_path / "trl"), use_cpu=True, bf16=False, report_to="none",
            gradient_checkpointing=False, per_device_train_batch_size=2, disable_dropout=True,
            **vars(FLAGS),
        ),
    )  # fmt: skip
    trainer.model.eval()
    with torch.no_grad():
        theirs = trainer.compute_loss(trainer.model, padded_batch(dataset)).item()
    logged = {name: np.mean(v) for name, v in trainer._metrics["eval"].items()}
    assert ours["loss"] == pytest.approx(theirs, rel=1e-4)
    assert ours["kl"] == pytest.approx(logged["kl"], rel=1e-4, abs=1e-5)
    for key, chosen in (("chosen", dataset.labels), ("rejected", ~dataset.labels)):
        reward = FLAGS.beta * own[chosen].mean().item()
        assert reward == pytest.approx(logged[f"rewards/{key}"], rel=1e-4, abs=1e-5)
        log_prob = policy[chosen, 0].mean().item()
        assert log_prob == pytest.approx(logged[f"logps/{key}"], rel=1e-4)


def test_the_kl_term_is_a_constant():
    """It has no gradient, knows no fillers, and is never below 0."""
    others = torch.tensor([[1.0, 3.0], [100.0, 2.0]], requires_grad=True)
    is_record = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    kl = kl_estimate(others, is_record)
    assert kl == 2.0 and not kl.requires_grad
    assert kl_estimate(-others, is_record) == kl_estimate(others, 0 * is_record) == 0


def test_accuracy_and_margin():
    """An answer is on its side if it has moved further than the KL term says; a tie is half."""
    log_ratios = torch.tensor([3.0, 1.0, 2.0, 1.0])
    labels = torch.tensor([True, True, True, False])
    _, values = kto_loss(log_ratios, torch.tensor(2.0), labels, FLAGS)
    by_name = dict(zip(METRICS, values.unbind(-1)))
    assert by_name["accuracy"].tolist() == [1, 0, 0.5, 1]
    assert by_name["margin"].tolist() == pytest.approx([0.3, -0.3, 0, 0.3])


@pytest.fixture
def flags(tmp_path, tiny_tokenizer_dir):
    return make_inputs(tmp_path, tiny_tokenizer_dir)


def train(monkeypatch, out_dir, *flags):
    argv = ["train_kto.py", "--out_dir", str(out_dir), *map(str, flags)]
    monkeypatch.setattr(sys, "argv", argv)
    train_kto.main()


def metrics(out_dir):
    lines = map(json.loads, (out_dir / "metrics.jsonl").read_text().splitlines())
    lines = (line for line in lines if "event" not in line)
    return [{k: v for k, v in line.items() if k not in SPEEDS} for line in lines]


@pytest.mark.parametrize("more", [["--learning_rate", 3e-3],
                                  ["--lora_rank", 4, "--learning_rate", 3e-2]])  # fmt: skip
def test_it_learns(monkeypatch, tmp_path, flags, more):
    """From a loss of 1/2: held-out answers like the good ones become likelier, bad ones less so."""
    train(monkeypatch, tmp_path / "run", *flags["kto"], "--dropout", 0, "--max_steps", 30,
          "--eval_interval", 30, "--save_interval", 30, *more)  # fmt: skip
    first, *lines = metrics(tmp_path / "run")
    assert (first["step"], first["val_kl"], first["val_margin"]) == (0, 0, 0)
    assert (first["val_loss"], first["val_accuracy"]) == (0.5, 0.5)
    assert lines[0]["loss"] == pytest.approx(0.5) and lines[-2]["loss"] < 0.4
    last = lines[-1]
    assert last["val_accuracy"] == 1 and last["val_loss"] < 0.45
    assert last["val_desirable_log_prob"] > first["val_desirable_log_prob"]
    assert last["val_undesirable_log_prob"] < first["val_undesirable_log_prob"]
    assert last["val_desirable_reward"] > 0 > last["val_undesirable_reward"]
    assert lines[-2]["examples"] > 30 and max(line.get("kl", 0) for line in lines) > 0


def test_two_processes_learn_what_one_does(monkeypatch, tmp_path, flags):
    """The KL term is estimated over all ranks: the same figures and the same weights."""
    more = [*flags["kto"], "--dropout", 0, "--max_steps", 6, "--learning_rate", 3e-3,
            "--val_fraction", 0.2, "--eval_interval", 6]  # fmt: skip
    train(monkeypatch, tmp_path / "one", *more, "--batch_size", 6)
    in_two_processes("train_kto.py", tmp_path / "two", *more, "--batch_size", 3)
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert max(line.get("kl", 0) for line in one) > 0.01
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for a, b in zip(one, two):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
    weights = [load_file(tmp_path / run / "step-00000006/model.safetensors") for run in
               ("one", "two")]  # fmt: skip
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], rtol=1e-3, atol=1e-5, msg=name)


def test_a_killed_run_ends_like_an_undisturbed_one(tmp_path, flags):
    """Killed at random moments and started again, it ends with the same bits and metrics."""
    assert check_interrupted_runs(tmp_path, flags, "kto", 1, signal.SIGKILL, runs=1, kills=2)


def test_changed_labels_are_other_data(monkeypatch, tmp_path, flags):
    """A run goes on with the labels it began with, and names a changed beta."""
    run = [*flags["kto"], "--eval_interval", 100]
    train(monkeypatch, tmp_path / "run", *run, "--max_steps", 1)
    with pytest.raises(ValueError, match=r"--beta was 0\.1, is 0\.2"):
        train(monkeypatch, tmp_path / "run", *run, "--max_steps", 2, "--beta", 0.2)
    file = tmp_path / "judged.jsonl"
    file.write_text(file.read_text().replace("true", "false", 3))
    with pytest.raises(ValueError, match="the data is not what it was trained on"):
        train(monkeypatch, tmp_path / "run", *run, "--max_steps", 2)
