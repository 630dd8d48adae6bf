"""training/ppo_losses.py against what trl 1.12 computed (tests/vectors/) and formulas by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from training.ppo_losses import gae, policy_loss, token_rewards, value_loss, whiten

RECORD = json.loads((Path(__file__).parent / "vectors/ppo.json").read_text())


@pytest.fixture(params=RECORD["cases"], ids=range(len(RECORD["cases"])))
def case(request) -> dict:
    """Settings, and tensors [B, T], one completion in each row; `mask` of its tokens."""
    settings = request.param["settings"]
    found = {k: torch.tensor(v) for k, v in request.param.items() if k != "settings"}
    positions = torch.arange(found["values"].shape[1])
    found["mask"] = (positions < found["lengths"][:, None]).float()
    # trl has the score come a token late where there is room: a completion's tokens, and one more
    found["mask_p1"] = (positions < found["lengths"][:, None] + 1).float()
    return found | {"settings": settings}


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_the_vectors_are_of_trl_1_12_and_say_something():
    """Clipping counts in them, of policy and of values, and rewards are whitened in one."""
    assert RECORD["trl"].startswith("1.12")
    assert all(case["pg_clipfrac"] > 0 and case["vf_clipfrac"] > 0 for case in RECORD["cases"])
    assert any(case["settings"]["whiten_rewards"] for case in RECORD["cases"])


def test_gae_and_advantages_equal_trl(case):
    """Advantages, whitened, and returns of its rewards and values."""
    settings = case["settings"]
    advantages, returns = gae(
        case["rewards"], case["values"], case["mask_p1"], settings["gamma"], settings["lam"]
    )
    close(returns, case["returns"])
    (white,) = whiten([advantages], [case["mask"]])
    close(white, case["advantages"])


def test_rewards_equal_trl(case):
    """Of the completion that fills its row; trl's others have the score behind their last token."""
    if case["settings"]["whiten_rewards"]:
        pytest.skip("rewards are not whitened here")
    scores = case["scores"][:, None].expand_as(case["values"])
    ours = token_rewards(scores, case["kl"], case["mask"], case["settings"]["kl_coef"])
    close(ours[0], case["rewards"][0])
    for row, length in enumerate(case["lengths"].tolist()):
        theirs = case["rewards"][row].clone()
        if length < len(theirs):
            theirs[length - 1] += theirs[length]
            theirs[length] = 0
        close(ours[row], theirs)


def test_losses_and_gradients_equal_trl(case):
    """Policy loss, value loss, their shares that are clipped, and the gradients of the sum."""
    settings = case["settings"]
    log_probs = case["new_logprobs"].requires_grad_()
    values = case["new_values"].requires_grad_()
    mask, mask_p1 = case["mask"], case["mask_p1"]
    of_policy, clipped = policy_loss(
        log_probs, case["logprobs"], case["advantages"], settings["cliprange"]
    )
    of_values, clipped_values = value_loss(
        values, case["values"], case["returns"], settings["cliprange_value"]
    )
    pg_loss = (of_policy * mask).sum() / mask.sum()
    vf_loss = (of_values * mask_p1).sum() / mask_p1.sum()
    close(pg_loss, case["pg_loss"])
    close(vf_loss, case["vf_loss"])
    close((clipped * mask).sum() / mask.sum(), case["pg_clipfrac"])
    close((clipped_values * mask_p1).sum() / mask_p1.sum(), case["vf_clipfrac"])
    (pg_loss + settings["vf_coef"] * vf_loss).backward()
    close(log_probs.grad, case["gradient_of_logprobs"])
    close(values.grad, case["gradient_of_values"])
    assert case["gradient_of_values"].abs().sum() > 0


def by_hand(rewards, values, gamma, lam):
    """Advantages of one completion as the sum that GAE is defined by, in float64."""
    n = len(rewards)
    values = np.append(values, 0.0)
    deltas = [rewards[t] + gamma * values[t + 1] - values[t] for t in range(n)]
    return [sum((gamma * lam) ** k * deltas[t + k] for k in range(n - t)) for t in range(n)]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_packed_completions_do_not_see_each_other(gamma, lam):
    """Several in a row, prompts between them: each has the advantages it has alone."""
    random = np.random.default_rng(0)
    mask = torch.tensor(
        [[0, 0, 1, 1, 1, 0, 1, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1, 0, 0, 1, 1, 0, 0]]
    )
    scores, kl, values = (torch.tensor(random.normal(size=mask.shape)).float() for _ in range(3))
    rewards = token_rewards(scores, kl, mask.float(), 0.3)
    advantages, returns = gae(rewards, values, mask.float(), gamma, lam)
    for row, begin, end in ((0, 2, 5), (0, 6, 7), (0, 9, 12), (1, 1, 6), (1, 8, 10)):
        alone = -0.3 * kl[row, begin:end].double().numpy()
        alone[-1] += scores[row, end - 1].item()
        np.testing.assert_allclose(rewards[row, begin:end], alone, rtol=1e-5)
        expected = by_hand(alone, values[row, begin:end].double().numpy(), gamma, lam)
        np.testing.assert_allclose(advantages[row, begin:end], expected, rtol=1e-4, atol=1e-5)
    assert not (advantages * (1 - mask)).any() and not (returns * (1 - mask)).any()
    assert not (rewards * (1 - mask)).any()


def test_whitening_is_over_everything():
    """Micro-batches are whitened together: over all their tokens mean 0, unbiased deviation 1."""
    random = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, 6, generator=random) * 3 + 5 for _ in range(3)]
    masks = [(torch.rand(2, 6, generator=random) < 0.6).float() for _ in range(3)]
    masks[1] *= 0  # of filling alone
    white = whiten(parts, masks)
    kept = torch.cat([w[m > 0] for w, m in zip(white, masks)])
    assert kept.mean().item() == pytest.approx(0, abs=1e-6)
    assert kept.std().item() == pytest.approx(1, abs=1e-5)
    assert not white[1].any()
    assert not any(w.any() for w in whiten(parts, [m * 0 for m in masks]))


def test_the_first_update_is_a_plain_policy_gradient():
    """At ratio 1 nothing is clipped and the gradient is that of -A log π."""
    log_probs = torch.tensor([[-1.0, -2.0, -0.5]], requires_grad=True)
    advantages = torch.tensor([[0.7, -1.3, 0.0]])
    loss, clipped = policy_loss(log_probs, log_probs.detach(), advantages, 0.2)
    loss.sum().backward()
    assert not clipped.any()
    assert torch.equal(log_probs.grad, -advantages)
