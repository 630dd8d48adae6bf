"""The learning rate: a pure function of the step, so that resuming needs no scheduler state."""

import math


def learning_rate(
    step: int, peak: float, warmup_steps: int, total_steps: int, min_ratio: float
) -> float:
    """Learning rate of update `step` (counted from 0).

    Rises linearly to `peak` over `warmup_steps` updates (the first one is peak / warmup_steps, not
    0), then follows half a cosine (Loshchilov & Hutter 2016) down to peak · min_ratio, which the
    last update, total_steps - 1, gets.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return peak * (min_ratio + (1 - min_ratio) * cosine)
