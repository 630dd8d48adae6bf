"""Preferences against trl; packing of pairs; the cached reference."""

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from trl import DPOConfig, DPOTrainer
from trl.experimental.cpo import CPOTrainer

from dataset.chat import encode_conversation
from dataset.dpo import DPODataset
from dataset.pairs import read_pairs
from dataset.records import DataError
from model.hf_format import load_model
from tests.encode import encode
from tests.oracle_models import open_there, our_model, random_numbers, save_here
from train_dpo import METRICS, preference_loss
from training.distributed import Ranks
from training.losses import document_log_probs
from training.reference import pair_log_probs, reference_log_probs

ALONE = Ranks(0, 0, 1, torch.device("cpu"))
NO_AUTOCAST = torch.autocast("cpu", enabled=False)
NUMBERS = random_numbers(1, vocab_size=512)


def say(role, content):
    return {"role": role, "content": content}


def pairs_file(folder, count=9):
    """Pairs of uneven lengths, some with a conversation before the question."""
    path = folder / "pairs.jsonl"
    lines = []
    for i in range(count):
        prompt = [say("user", "What is it? " * (1 + i % 3))]
        if i % 2:
            prompt = [say("user", "Hello."), say("assistant", "Hello, cat."), *prompt]
        lines.append({
            "chosen": [*prompt, say("assistant", "It is a cat. " * (1 + i % 4))],
            "rejected": [*prompt, say("assistant", f"Number {i}")],
        })  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def flags(loss="sigmoid", **more):
    defaults = {"beta": 0.3, "label_smoothing": 0.2, "simpo_gamma": 0.7, "sft_weight": 0.0}
    return SimpleNamespace(loss=loss, **defaults | more)


@pytest.fixture
def encoded(tmp_path, tiny_tokenizer):
    return encode("pairs", pairs_file(tmp_path), tiny_tokenizer)


def sides_of(dataset):
    """(ids, mask) of every chosen and rejected conversation, pair after pair."""
    return [side for pair in range(dataset.total) for side in dataset.sides(pair)]


def padded_batch(dataset):
    """All chosen, then all rejected, padded on the right, as trl's collator lays them out."""
    order = [*sides_of(dataset)[::2], *sides_of(dataset)[1::2]]
    longest = max(len(ids) for ids, _ in order)
    batch = {"input_ids": [], "attention_mask": [], "completion_mask": []}
    for ids, mask in order:
        fill = longest - len(ids)
        batch["input_ids"].append([*ids.tolist(), *[0] * fill])
        batch["attention_mask"].append([1] * len(ids) + [0] * fill)
        batch["completion_mask"].append([*mask.tolist(), *[0] * fill])
    return {name: torch.tensor(rows) for name, rows in batch.items()}


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "robust"])
def test_loss_and_rewards_equal_trl(tmp_path, tiny_tokenizer_dir, encoded, loss):
    """Loss, rewards, margin and accuracy of packed pairs are DPOTrainer's, for every loss."""
    policy_dir = save_here(our_model(NUMBERS, seed=1), tmp_path / "policy")
    reference_dir = save_here(our_model(NUMBERS, seed=2), tmp_path / "reference")
    dataset = DPODataset(encoded, 160)
    policy, reference = (
        pair_log_probs(load_model(folder), dataset, 2, ALONE, NO_AUTOCAST)
        for folder in (policy_dir, reference_dir)
    )
    args = flags(loss)
    losses, values = preference_loss(policy, reference, dataset.answer_lengths, args)
    ours = dict(zip(METRICS, values.mean(0).tolist()))
    assert ours["loss"] == pytest.approx(losses.mean().item())

    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    tokenizer.pad_token = tokenizer.eos_token
    from datasets import Dataset

    one = {"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}
    trainer = DPOTrainer(
        open_there(policy_dir), open_there(reference_dir), processing_class=tokenizer,
        train_dataset=Dataset.from_dict(one),
        args=DPOConfig(
            output_dir=str(tmp_path / "trl"), use_cpu=True, bf16=False, report_to="none",
            gradient_checkpointing=False, loss_type=[loss], beta=args.beta,
            label_smoothing=args.label_smoothing, disable_dropout=True,
        ),
    )  # fmt: skip
    trainer.model.eval()
    with torch.no_grad():
        theirs = trainer.compute_loss(trainer.model, padded_batch(dataset)).item()
    logged = {name: np.mean(v) for name, v in trainer._metrics["eval"].items()}
    assert ours["loss"] == pytest.approx(theirs, rel=1e-4)
    for name, key in (
        ("accuracy", "rewards/accuracies"), ("margin", "rewards/margins"),
        ("chosen_reward", "rewards/chosen"), ("rejected_reward", "rewards/rejected"),
        ("chosen_log_prob", "logps/chosen"), ("rejected_log_prob", "logps/rejected"),
    ):  # fmt: skip
        assert ours[name] == pytest.approx(logged[key], rel=1e-4, abs=1e-5), name


def test_simpo_equals_trl():
    """SimPO's loss is that of trl's CPOTrainer on mean log-probabilities."""
    generator = torch.Generator().manual_seed(0)
    policy = -20 * torch.rand(8, 2, generator=generator)
    lengths = torch.randint(1, 9, (8, 2), generator=generator).float()
    losses, _ = preference_loss(policy, policy * 3, lengths, flags("simpo"))
    mean = policy / lengths
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu"), loss_type="simpo", beta=0.3,
        simpo_gamma=0.7, label_smoothing=0.0, alpha=0.0,
    )  # fmt: skip
    theirs = CPOTrainer.cpo_loss(trainer, mean[:, 0], mean[:, 1])[0]
    torch.testing.assert_close(losses, theirs)


def test_sft_term_is_the_chosen_answers_loss():
    """--sft_weight adds the chosen answer's nats per token, and nothing else."""
    policy = torch.tensor([[-6.0, -9.0], [-8.0, -1.0]])
    lengths = torch.tensor([[3.0, 4.0], [2.0, 1.0]])
    without, _ = preference_loss(policy, policy - 1, lengths, flags())
    with_term, _ = preference_loss(policy, policy - 1, lengths, flags(sft_weight=0.5))
    torch.testing.assert_close(with_term - without, torch.tensor([0.5 * 2.0, 0.5 * 4.0]))


def test_packed_pairs_equal_single_sequences(encoded):
    """The log-probability of every answer is that of its conversation alone, token by token."""
    model = our_model(NUMBERS)
    dataset = DPODataset(encoded, 160)
    assert dataset.pairs_per_row > 1 and len(dataset) > 1
    documents = [len(row[3].unique_consecutive()) for row in dataset]
    assert max(documents) <= dataset.documents_per_row <= max(documents) + 1
    packed = pair_log_probs(model, dataset, 2, ALONE, NO_AUTOCAST)
    for number, (ids, mask) in enumerate(sides_of(dataset)):
        ids = torch.tensor(ids, dtype=torch.int64)
        with torch.no_grad():
            log_probs = model(ids[None, :-1])[0][0].log_softmax(-1)
        taken = log_probs.gather(1, ids[1:, None])[:, 0][torch.tensor(mask[1:]) == 1]
        pair, side = divmod(number, 2)
        assert packed[pair, side].item() == pytest.approx(taken.sum().item(), rel=1e-5)
        assert dataset.answer_lengths[pair, side] == len(taken)


def test_a_pair_shares_its_prompt(encoded, tiny_tokenizer, tmp_path):
    """Chosen and rejected begin with the same ids; only the last answer is masked in."""
    dataset = DPODataset(encoded, 160)
    pairs = list(read_pairs(pairs_file(tmp_path)))
    assert len(pairs) == dataset.total
    for number, pair in enumerate(pairs):
        chosen, rejected = dataset.sides(number)
        prompt, _ = encode_conversation(tiny_tokenizer, pair.prompt, add_generation_prompt=True)
        for (ids, mask), answer in ((chosen, pair.chosen), (rejected, pair.rejected)):
            assert ids[: len(prompt)].tolist() == prompt and not mask[: len(prompt)].any()
            text = tiny_tokenizer.decode(ids[mask == 1].tolist())
            assert text == answer[0]["content"] + "<|im_end|>"


def test_every_pair_is_in_one_row(encoded):
    """Rows hold whole pairs, each once; what is too long is counted and left out."""
    dataset = DPODataset(encoded, 160)
    seen = [int(p) for row in dataset for p in row[4] if p >= 0]
    assert sorted(seen) == list(range(encoded.num_records))
    counts = dataset.num_pairs(np.arange(len(dataset)))
    assert counts.tolist() == [int((row[4] >= 0).sum()) for row in dataset]
    X, _, loss_mask, _, pairs = dataset[-1]
    assert dataset.num_pairs(np.array([-1])) == 0 and not loss_mask.any() and (pairs < 0).all()
    assert (encoded.eos_id == X).all()


def test_too_long_pairs_are_counted(tmp_path, tiny_tokenizer):
    """An answer is never cut: a pair that does not fit a row is left out."""
    encoded = encode("pairs", pairs_file(tmp_path), tiny_tokenizer)
    whole, short = DPODataset(encoded, 160), DPODataset(encoded, 60)
    assert 0 < short.facts["num_too_long"] == whole.total - short.total
    with pytest.raises(ValueError, match="--max_seq_len 8"):
        DPODataset(encoded, 8)


def test_cached_reference_equals_a_fresh_one(tmp_path, encoded):
    """The second call reads the file; other data, other weights or damage compute anew."""
    model, dataset = our_model(NUMBERS), DPODataset(encoded, 160)
    calls = []

    def counted(*args):
        calls.append(None)
        return model(*args)

    counted.training, counted.eval, counted.train = False, model.eval, model.train

    def reference(made_from="weights"):
        calls.clear()
        args = SimpleNamespace(batch_size=2, cache_dir=tmp_path)
        run = SimpleNamespace(
            args=args, ranks=ALONE, autocast=NO_AUTOCAST, base_sha256=made_from, dtype=torch.float32
        )
        result = reference_log_probs(run, counted, dataset)
        return result, len(calls)

    fresh, first = reference()
    cached, second = reference()
    assert first > 0 and second == 0 and torch.equal(fresh, cached)
    assert torch.equal(fresh, pair_log_probs(model, dataset, 2, ALONE, NO_AUTOCAST))
    assert reference("other weights")[1] > 0
    for file in tmp_path.glob("reference-*"):
        file.write_bytes(file.read_bytes()[:-8])
    again, third = reference()
    assert third > 0 and torch.equal(again, fresh)


def test_document_log_probs_leave_padding_out():
    """Masked targets and document 0 count nowhere; an all-masked row gives zeros, never NaN."""
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    Y = torch.tensor([[1, 2, 3, 4], [0, 0, 0, 0]])
    mask = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 0]])
    documents = torch.tensor([[1, 1, 2, 0], [0, 0, 0, 0]])
    result = document_log_probs(logits, Y, mask, documents, 2)
    log_probs = logits.log_softmax(-1)
    assert result[0].tolist() == pytest.approx(
        [log_probs[0, 0, 1].item(), log_probs[0, 2, 3].item()]
    )
    assert result[1].tolist() == [0, 0]


Q, A, B = say("user", "q"), say("assistant", "a"), say("assistant", "b")


@pytest.mark.parametrize(
    "record",
    [
        {"chosen": [Q, A], "rejected": [Q, B]},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": [Q], "chosen": [A], "rejected": [B]},
        {"prompt": "q", "chosen": [Q, A], "rejected": [Q, B]},
    ],
)
def test_forms_of_a_pair(tmp_path, record):
    """Whole conversations, or a prompt and answers, as text or messages, mean the same."""
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(record))
    (pair,) = read_pairs(path)
    assert (pair.prompt, pair.chosen, pair.rejected) == ([Q], [A], [B])


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"chosen": [Q, A]}, 'fields "chosen" and "rejected"'),
        ({"chosen": [Q, A], "rejected": [Q, A]}, "answers that differ"),
        ({"chosen": [Q, A], "rejected": [Q, say("assistant", " ")]}, "empty text"),
        ({"chosen": [Q, A], "rejected": [say("user", "other"), B]}, "same prompt"),
        ({"chosen": [Q, A], "rejected": [Q, A, Q, B]}, "answer of its own in chosen"),
        ({"chosen": [Q], "rejected": [Q, B]}, "answer at the end of chosen"),
        ({"prompt": 3, "chosen": [A], "rejected": [B]}, "messages as the prompt"),
        ({"chosen": "a", "rejected": "b"}, "in chosen"),
    ],
)
def test_bad_pairs_name_file_and_line(tmp_path, record, expected):
    """Each is one line with file, line and what was expected."""
    path = tmp_path / "pairs.jsonl"
    good = {"chosen": [Q, A], "rejected": [Q, B]}
    path.write_text(json.dumps(good) + "\n" + json.dumps(record) + "\n")
    with pytest.raises(DataError, match=r"pairs\.jsonl:2: ") as error:
        list(read_pairs(path))
    assert expected in str(error.value)
    assert len(list(read_pairs(path, "skip"))) == 1


def test_gradient_reaches_the_policy_alone(encoded):
    """The loss of a batch has gradients in the policy; copying the model gives zero rewards."""
    model = our_model(NUMBERS)
    dataset = DPODataset(encoded, 160)
    reference = pair_log_probs(copy.deepcopy(model), dataset, 2, ALONE, NO_AUTOCAST)
    X, Y, mask, documents, pairs = (t[None] for t in dataset[0])
    logits, _ = model(X, documents)
    policy = document_log_probs(logits, Y, mask, documents, 2 * pairs.shape[1])
    policy = policy.view(*pairs.shape, 2)
    losses, _ = preference_loss(policy, reference[pairs], dataset.answer_lengths[pairs], flags())
    is_pair = pairs >= 0
    assert losses[is_pair].tolist() == pytest.approx([np.log(2)] * int(is_pair.sum()), abs=1e-5)
    losses[is_pair].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
