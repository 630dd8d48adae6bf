"""How something is said, whatever it says: think block, length, repetition."""

from __future__ import annotations

from dataset.chat_turns import END_THINK, THINK
from tasks.task import Completion


def think_format(completion: Completion) -> float:
    """1 if the completion begins with a think block, which ends, and holds no other, else 0."""
    begins, _, rest = completion.raw.partition(THINK)
    return float(not begins and completion.raw.startswith(THINK) and THINK not in rest
                 and END_THINK in rest)  # fmt: skip


def length(completion: Completion, low: int, high: int) -> float:
    """1 for low to high tokens; from there in a straight line to 0 at none, and at twice `high`."""
    count = len(completion.ids)
    if count < low:
        return count / low
    return 1.0 if count <= high else max(0.0, 2 - count / high)


def overlong(completion: Completion, low: int, high: int) -> float:
    """DAPO's soft overlong punishment: 0 up to `low` tokens, -1 from `high` on, a line between.

    Yu et al. 2025, arXiv 2503.14476, equation 13, where they are L_max - L_cache and L_max.
    """
    count = len(completion.ids)
    if count <= low:
        return 0.0
    return -1.0 if count >= high else -(count - low) / (high - low)


def repetition(completion: Completion, n: int = 3) -> float:
    """Minus the share of n-grams of tokens that were there before (Yeo et al. 2025, appendix C.2).

    arXiv 2502.03373. 0 for less than n tokens.
    """
    ids = completion.ids
    total = len(ids) - n + 1
    if total < 1:
        return 0.0
    return len(set(zip(*(ids[i:] for i in range(n))))) / total - 1
