"""ORPO (train_dpo.py --loss orpo) against trl, whose version of the rest is not the paper's."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from trl.experimental.orpo import ORPOTrainer

from dataset.dpo import DPODataset
from model.hf_format import load_model
from tests.encode import encode
from tests.oracle_models import open_there, our_model, random_numbers, save_here
from tests.test_dpo import ALONE, NO_AUTOCAST, pairs_file
from train_dpo import METRICS, preference_loss
from training.reference import pair_log_probs

FLAGS = SimpleNamespace(loss="orpo", beta=0.3, sft_weight=0.0)
TRAINER = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device="cpu"))


def test_the_odds_ratio_equals_trl():
    """The loss but for the chosen answer's own, the rewards and margins, and their gradients."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 9, (64, 2), generator=generator).float()
    policy = -1e-4 - 30 * torch.rand(64, 2, generator=generator) ** 4  # some are nearly certain
    policy.requires_grad_()
    losses, values = preference_loss(policy, None, lengths, FLAGS)
    mean = policy / lengths
    theirs, chosen, rejected, *_ = ORPOTrainer.odds_ratio_loss(TRAINER, mean[:, 0], mean[:, 1])
    theirs = -mean[:, 0] - theirs
    torch.testing.assert_close(losses, theirs, rtol=1e-4, atol=1e-5)
    ours = dict(zip(METRICS, values.unbind(-1)))
    torch.testing.assert_close(ours["chosen_reward"], chosen)
    torch.testing.assert_close(ours["rejected_reward"], rejected)
    torch.testing.assert_close(ours["margin"], chosen - rejected)
    our_gradient, their_gradient = (
        torch.autograd.grad(x.sum(), policy, retain_graph=True)[0] for x in (losses, theirs)
    )
    torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-3, atol=1e-4)


def test_the_whole_loss_is_the_papers(tmp_path, tiny_tokenizer):
    """Of whole pairs: trl's functions on the logits of transformers, prompts masked everywhere.

    trl's own trainer takes the loss of chosen answers over their prompts, too; in the paper it is
    that of the answers.
    """
    model_dir = save_here(our_model(random_numbers(1, vocab_size=512), seed=1), tmp_path / "model")
    dataset = DPODataset(encode("pairs", pairs_file(tmp_path), tiny_tokenizer), 160)
    policy = pair_log_probs(load_model(model_dir), dataset, 2, ALONE, NO_AUTOCAST)
    losses, _ = preference_loss(policy, None, dataset.answer_lengths, FLAGS)
    model = open_there(model_dir)
    assert dataset.total > 5
    for pair in range(dataset.total):
        log_probs, nll = [], []
        for ids, mask in dataset.sides(pair):
            ids, mask = torch.tensor(ids, dtype=torch.int64)[None], torch.tensor(mask)[None]
            labels = torch.where(mask == 1, ids, -100)
            with torch.no_grad():
                logits = model(ids).logits
            log_probs.append(ORPOTrainer.get_batch_logps(logits, labels, average_log_prob=True))
            nll.append(F.cross_entropy(logits[0, :-1], labels[0, 1:]))
        odds_ratio, *_ = ORPOTrainer.odds_ratio_loss(TRAINER, *log_probs)
        assert losses[pair].item() == pytest.approx((nll[0] - odds_ratio).item(), rel=1e-4)


def test_certain_and_missing_answers():
    """An answer of probability 1, and the filler of a row with fewer pairs, give no NaN."""
    policy = torch.tensor([[0.0, -3.0], [-3.0, 0.0], [0.0, 0.0]], requires_grad=True)
    losses, values = preference_loss(policy, None, torch.ones(3, 2), FLAGS)
    losses.sum().backward()
    assert losses.isfinite().all() and values.isfinite().all() and policy.grad.isfinite().all()
    assert losses[0] < 0.01 < losses[1]
