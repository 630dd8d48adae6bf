"""train_distillation.py --on_policy: rows of what the student says itself."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import train_distillation
from dataset.chat import stop_ids
from dataset.sft import SFTDataset
from model.generation import generate
from tests.encode import encode
from tests.oracle_models import our_model, random_numbers
from tests.small_runs import figures
from tests.test_distillation import flags as distillation_flags  # noqa: F401 (a fixture)
from tests.test_distillation import train
from training.own_samples import OwnSamples


@pytest.fixture
def flags(distillation_flags):  # noqa: F811
    """The flags of each script."""
    return distillation_flags


@pytest.fixture
def own(tmp_path, flags, tiny_tokenizer):
    """A function: OwnSamples of a Run as far as it matters, beside a batch of its rows."""

    def make(rows=slice(0, 3), seed=42, step=5, most=12, model=None, max_seq_len=160):
        encoded = encode("conversations", Path(flags["full_sft"][1]), tiny_tokenizer)
        dataset = SFTDataset(encoded, max_seq_len)
        batch = [torch.stack(parts) for parts in zip(*(dataset[i] for i in range(len(dataset))))]
        run = SimpleNamespace(
            args=SimpleNamespace(seed=seed, fsdp=False), step=step, dtype=torch.float32,
            at_boundary=True, device=torch.device("cpu"), model=model,
            ranks=SimpleNamespace(rank=0),
            batches=lambda *_: [tuple(part[rows] for part in batch)],
            inner_updates=lambda steps: steps[0],
        )  # fmt: skip
        return OwnSamples(run, tiny_tokenizer, 1.0, most), [part[rows] for part in batch]

    return make


def documents_of(X, Y, loss_mask, document_ids):
    """(ids, mask) of every document of rows: mask 1 where a token is a target that counts."""
    found = []
    for x, y, mask, documents in zip(X, Y, loss_mask, document_ids):
        for number in documents[mask > 0].unique_consecutive().tolist():
            where = documents == number
            ids = [x[where][0].item(), *y[where].tolist()]
            found.append((ids, [0, *mask[where].int().tolist()]))
    return found


def test_prompts_end_where_an_answer_begins(own, tiny_tokenizer):
    """A prompt is a conversation of the row up to one of its answers; all of them come in turn."""
    turns = set()
    for step in range(12):
        samples, batch = own(step=step)
        texts = [tiny_tokenizer.decode(ids) for ids, _ in documents_of(*batch)]
        prompts = samples.prompts(*batch)
        for prompt in prompts:
            text = tiny_tokenizer.decode(prompt.ids)
            assert text.endswith("<|im_start|>assistant\n")
            assert any(whole.startswith(text + "The cat.") for whole in texts)
            turns.add(text.count("assistant"))
        for row in range(3):
            needed = [len(p.ids) + p.most - 1 for p in prompts if p.row == row]
            assert needed and sum(needed) <= 160
    assert turns == {1, 2, 3}


def test_own_rows_hold_what_the_student_says(own):
    """Each answer is that of `generate` with its seed; it counts, its prompt never does."""
    model = our_model(random_numbers(1, vocab_size=512), seed=3)
    samples, batch = own(model=model)
    prompts = samples.prompts(*batch)
    (made,) = samples.batches(None, 0)
    assert [part.shape for part in made] == [part.shape for part in batch]
    assert samples.run.update_size == made[2].sum() > 0
    documents = documents_of(*made)
    assert len(documents) == len(prompts) > 3
    for (ids, mask), prompt in zip(documents, prompts):
        answer = ids[len(prompt.ids) :]
        assert ids[: len(prompt.ids)] == prompt.ids
        assert mask == [0] * len(prompt.ids) + [1] * len(answer)
        ends, seed = set(stop_ids(samples.tokenizer)), f"42/5/{prompt.name}"
        assert answer == list(generate(model, prompt.ids, prompt.most, ends, seed))


def test_draws_depend_on_seed_step_and_prompt_alone(own):
    """Rows beside one another do not matter; another step, seed or other weights do."""
    model = our_model(random_numbers(1, vocab_size=512), seed=3)

    def said(**how):
        samples, _ = own(**{"model": model} | how)
        (made,) = samples.batches(None, 0)
        return [ids for ids, _ in documents_of(*made)]

    first, alone = said(rows=slice(0, 3)), said(rows=slice(1, 2))
    assert alone and all(ids in first for ids in alone)
    assert said() == first
    assert said(step=6) != first != said(seed=43)
    with torch.no_grad():  # an optimizer's step, say
        model.lm_head.weight[:256] *= 0.5
    assert said() != first


def test_a_row_without_room_keeps_its_shortest_prompt(own):
    """Where no prompt has room for the longest answer, one has what there is."""
    samples, batch = own(most=150, model=our_model(random_numbers(1, vocab_size=512)))
    prompts = samples.prompts(*batch)
    assert [p.row for p in prompts] == [0, 1, 2]
    assert all(len(p.ids) + p.most == 161 for p in prompts)
    assert samples.prompts(*(0 * part for part in batch)) == []


class Watched(OwnSamples):
    """Notes which updates are on-policy."""

    @property
    def is_due(self):
        DUE[self.run.step] = super().is_due
        return DUE[self.run.step]


DUE: dict[int, bool] = {}


def test_a_share_of_the_updates_is_on_policy(monkeypatch, tmp_path, flags):
    """Which ones depends on seed and step; their loss is T² · divergence alone."""
    monkeypatch.setattr(train_distillation, "OwnSamples", Watched)
    DUE.clear()
    train(monkeypatch, "distillation", tmp_path / "run", *flags["distillation"], "--max_steps", 12,
          "--on_policy", 0.5, "--max_new_tokens", 8, "--alpha", 1, "--temperature", 2)  # fmt: skip
    assert 3 <= sum(DUE.values()) <= 9 and len(DUE) == 12
    before = 0
    for line in (line for line in figures(tmp_path / "run") if "loss" in line):
        is_own = DUE[line["step"] - 1]
        expected = 4 * line["divergence"] if is_own else line["cross_entropy"]
        assert line["loss"] == pytest.approx(expected, rel=1e-5)
        tokens, before = line["tokens"] - before, line["tokens"]
        assert tokens > 0
