"""The loss of train_distillation.py against trl's GKDTrainer, and against formulas by hand."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train_distillation
from train_distillation import divergence
from training import teacher as teachers
from training.teacher import at_every_token
from training.teacher_memory import of_the_likeliest

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")


def options(kind="forward_kl", jsd_beta=0.5, temperature=1.0):
    return SimpleNamespace(divergence=kind, jsd_beta=jsd_beta, temperature=temperature)


def random_logits(rows=3, tokens=7, vocab=97, seed=0):
    """Student's (which wants a gradient) and teacher's logits, some far apart, and a mask."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (2 * torch.randn(rows, tokens, vocab, generator=generator) for _ in "st")
    student[0, :2], teacher[0, 1:3] = 20 * student[0, :2], 20 * teacher[0, 1:3]
    mask = (torch.rand(rows, tokens, generator=generator) < 0.6).float()
    mask[-1] = 0
    return student.requires_grad_(True), teacher, mask


def gaps(student, teacher, args, *ids):
    """The divergence at every place, of the vocabulary that both have."""
    V = min(student.shape[-1], teacher.shape[-1]) if not ids else student.shape[-1]
    return at_every_token(divergence, args, V, student, teacher, *ids)


def mean(student, teacher, mask, args):
    return (gaps(student, teacher, args) * mask).sum() / mask.sum()


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
@pytest.mark.parametrize(
    ("kind", "beta"),
    [("forward_kl", 0), ("reverse_kl", 1), ("jsd", 0.5), ("jsd", 0.1), ("jsd", 0.97)],
)
def test_loss_and_gradient_equal_trl(kind, beta, temperature):
    """Every divergence is GKDTrainer's, at every temperature, over the targets of the mask alone.

    trl does not multiply by T²; so the gradient is compared before that.
    """
    from trl.experimental.gkd import GKDTrainer

    student, teacher, mask = random_logits()
    ours = mean(student, teacher, mask, options(kind, beta, temperature))
    (gradient,) = torch.autograd.grad(ours, student)
    labels = torch.where(mask == 1, 1, -100)
    theirs = GKDTrainer.generalized_jsd_loss(student, teacher, labels, beta, temperature)
    (expected,) = torch.autograd.grad(theirs, student)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    largest = expected.abs().max().item()
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5 * largest)
    assert largest > 1e-5 and not gradient[mask == 0].any()


def test_soft_targets_gradient_is_hintons():
    """T² · KL has the gradient T (q - p), which is Hinton's for soft targets (2015, eq. 2)."""
    student, teacher, _ = random_logits(1, 1)
    T = 2.5
    loss = T**2 * gaps(student, teacher, options(temperature=T)).sum()
    (gradient,) = torch.autograd.grad(loss, student)
    q, p = (torch.softmax(logits / T, -1) for logits in (student, teacher))
    torch.testing.assert_close(gradient, T * (q - p), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", train_distillation.DIVERGENCES)
def test_a_model_is_not_apart_from_itself(kind):
    """0 and no gradient where both say the same; more than 0 elsewhere; never NaN."""
    student, teacher, _ = random_logits()
    same = gaps(student, student.detach(), options(kind))
    assert same.abs().max() < 1e-5
    assert torch.autograd.grad(same.sum(), student)[0].abs().max() < 1e-5
    far = gaps(50 * student, 50 * teacher, options(kind))
    assert far.isfinite().all() and (far > -1e-6).all() and far.max() > 0.5
    assert torch.autograd.grad(far.sum(), student)[0].isfinite().all()


def test_chunks_give_the_same_and_keep_no_copy(monkeypatch):
    """In chunks: equal values and gradients; what the backward pass keeps is no float32 copy."""
    student, teacher, _ = random_logits(vocab=128)
    student, teacher = student.detach().bfloat16().requires_grad_(True), teacher.bfloat16()
    kept = []

    def both():
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.append((t.dtype, t.numel())) or t, lambda t: t
        ):
            values = gaps(student, teacher, options("jsd", 0.3))
        return values, torch.autograd.grad(values.sum(), student)[0]

    whole, of_whole = both()
    big = (torch.float32, student.numel())
    assert big in kept
    monkeypatch.setattr(teachers, "CHUNK", 4 * 3 * 128)  # three places at a time
    parts, of_parts = both()
    assert big not in kept
    torch.testing.assert_close(parts, whole, rtol=0, atol=0)
    torch.testing.assert_close(of_parts, of_whole, rtol=0, atol=0)


def test_a_rounded_up_vocabulary_is_no_other_one():
    """Entries that only one of them has, filled up to a rounder number, do not count."""
    student, teacher, mask = random_logits()
    more = torch.cat([teacher, torch.full((*mask.shape, 31), 9.0)], -1)
    expected = mean(student, teacher, mask, options())
    assert mean(student, more, mask, options()) == expected
    longer = torch.cat([student, torch.zeros(*mask.shape, 5)], -1)
    assert mean(longer, teacher, mask, options()) == expected


@pytest.mark.parametrize("kind", train_distillation.DIVERGENCES)
def test_the_likeliest_and_the_rest_are_a_distribution(kind):
    """Of k tokens and the rest, computed by hand in float64; never more than that of all tokens.

    With all but one token among the k nothing is lost.
    """
    student, teacher, _ = random_logits(vocab=20)
    args, T = options(kind, 0.3, 1.5), 1.5
    of_all = gaps(student, teacher, args)
    for k in (1, 5, 19):
        p = (teacher / T).log_softmax(-1)
        ids = p.topk(k).indices
        top = torch.stack([of_the_likeliest(p[i], ids[i]) for i in range(len(p))])
        assert top.exp().sum(-1).sub(1).abs().max() < 1e-5
        found = gaps(student, top, args, ids)
        q64, p64 = ((x.detach().double() / T).softmax(-1).numpy() for x in (student, teacher))
        by_hand = np.zeros(found.shape)
        for place in np.ndindex(by_hand.shape):
            chosen = ids[place].numpy()
            Q, P = (np.append(x[place][chosen], np.delete(x[place], chosen).sum())
                    for x in (q64, p64))  # fmt: skip
            M = {"forward_kl": Q, "reverse_kl": P, "jsd": 0.3 * P + 0.7 * Q}[kind]
            to_p, to_q = (P * np.log(P / M)).sum(), (Q * np.log(Q / M)).sum()
            by_hand[place] = {"forward_kl": to_p, "reverse_kl": to_q}.get(
                kind, 0.3 * to_p + 0.7 * to_q
            )
        torch.testing.assert_close(found.double(), torch.from_numpy(by_hand), rtol=1e-4, atol=1e-6)
        assert (found < of_all + 1e-5).all()
        if k == 19:
            torch.testing.assert_close(found, of_all, rtol=1e-4, atol=1e-6)
        assert torch.autograd.grad(found.sum(), student)[0].isfinite().all()
