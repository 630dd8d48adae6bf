"""The equations of PPO for texts (Schulman et al. 2017; Ziegler et al. 2019), as pure functions.

Every tensor is [B, T], a number for each token of packed rows. `mask` is 1 on the tokens of
completions and 0 on prompts and filling; between two completions in a row stands a prompt. A state
is what was read before a token, its action the token, its value what the critic says of the state.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.distributed import sum_over_ranks


def _next(x: Tensor) -> Tensor:
    """x of the token after each one; 0 behind the last."""
    return torch.cat((x[:, 1:], torch.zeros_like(x[:, :1])), dim=1)


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """r_t = -β KL_t, and at a completion's last token its score besides.

    scores  the score of the completion that a token belongs to
    kl      an estimate of each token's KL from the policy to the reference, in nats
    """
    is_last = mask * (1 - _next(mask))
    return mask * (scores * is_last - kl_coef * kl)


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates (Schulman et al. 2015), and the returns they stand for.

    δ_t = r_t + γ V_{t+1} - V_t        A_t = δ_t + γ λ A_{t+1}        R_t = A_t + V_t

    with V and A zero behind a completion's last token.
    """
    goes_on = _next(mask)
    deltas = (rewards + gamma * goes_on * _next(values) - values) * mask
    advantages, last = torch.zeros_like(deltas), torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        last = deltas[:, t] + gamma * lam * (goes_on * mask)[:, t] * last
        advantages[:, t] = last
    return advantages, (advantages + values) * mask


def whiten(several: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
    """(x - mean) / deviation, over what is masked in of all these tensors on all ranks; else 0.

    The variance is unbiased. Collective.
    """
    device = masks[0].device
    sums = [(x.double() * m).sum() for x, m in zip(several, masks)]
    counts = [m.double().sum() for m in masks]
    total, count = sum_over_ranks(torch.stack([sum(sums), sum(counts)])).to(device)
    mean = total / count.clamp(min=1)
    squares = sum(((x.double() - mean) ** 2 * m).sum() for x, m in zip(several, masks))
    variance = sum_over_ranks(squares) / (count - 1).clamp(min=1)
    scale = (variance + 1e-8).rsqrt()
    return [((x - mean) * scale * m).to(x.dtype) for x, m in zip(several, masks)]


def policy_loss(
    log_probs: Tensor, old: Tensor, advantages: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """The loss of every token, and whether the clipping counts there.

    -min(ρ A, clip(ρ, 1 - ε, 1 + ε) A)        ρ = exp(log π - log π_old)
    """
    ratio = (log_probs - old).exp()
    plain = -ratio * advantages
    clipped = -ratio.clamp(1 - epsilon, 1 + epsilon) * advantages
    return torch.max(plain, clipped), (clipped > plain).float()


def value_loss(
    values: Tensor, old: Tensor, returns: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """The loss of every token, and whether the clipping counts there.

    ½ max((V - R)², (clip(V, V_old - ε, V_old + ε) - R)²)
    """
    plain = (values - returns) ** 2
    clipped = (old + (values - old).clamp(-epsilon, epsilon) - returns) ** 2
    return torch.max(plain, clipped) / 2, (clipped > plain).float()
