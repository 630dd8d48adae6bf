"""The learning rate: a pure function of the step, so that resuming needs no scheduler state."""

import math

SCHEDULES = ("cosine", "wsd")


def learning_rate(
    step: int, peak: float, warmup_steps: int, total_steps: int, min_ratio: float,
    schedule: str = "cosine", decay_fraction: float = 0.2,
) -> float:  # fmt: skip
    """Learning rate of update `step` (counted from 0).

    Rises linearly to `peak` over `warmup_steps` updates (the first one is peak / warmup_steps, not
    0), and ends with peak · min_ratio, which the last update, total_steps - 1, gets. In between:

    cosine  half a cosine (Loshchilov & Hutter 2016)
    wsd     warmup, stable, decay: the peak, and over the last decay_fraction of all updates a
            straight line (Hu et al. 2024, MiniCPM; Hägele et al. 2024). Until the decay begins, a
            run does not depend on total_steps: it can be made longer. decay_fraction 0: no decay
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "wsd":
        decay_steps = min(round(decay_fraction * total_steps), total_steps - warmup_steps)
        left = total_steps - 1 - step  # updates after this one
        share = 1.0 if left >= decay_steps else max(left, 0) / decay_steps
    else:
        progress = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
        share = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return peak * (min_ratio + (1 - min_ratio) * share)
