"""The learning rate: a pure function of the step, so that resuming needs no scheduler state."""

import argparse
import math

SCHEDULES = ["cosine", "wsd"]


def learning_rate(step: int, total_steps: int, args: argparse.Namespace) -> float:
    """Learning rate of update `step` (counted from 0) of `total_steps`.

    Rises linearly to --learning_rate over --warmup_steps updates (the first one is peak /
    warmup_steps, not 0), and ends with its --min_lr_ratio, which the last update gets. In between:

    cosine  half a cosine (Loshchilov & Hutter 2016)
    wsd     warmup, stable, decay: the peak, and over the last --decay_fraction of all updates a
            straight line (Hu et al. 2024, MiniCPM; Hägele et al. 2024). Until the decay begins, a
            run does not depend on total_steps: it can be made longer. decay_fraction 0: no decay
    """
    if step < args.warmup_steps:
        return args.learning_rate * (step + 1) / args.warmup_steps
    if args.lr_schedule == "wsd":
        decay_steps = round(args.decay_fraction * total_steps)
        decay_steps = min(decay_steps, total_steps - args.warmup_steps)
        left = total_steps - 1 - step  # updates after this one
        share = 1.0 if left >= decay_steps else max(left, 0) / decay_steps
    else:
        progress = (step - args.warmup_steps) / max(1, total_steps - 1 - args.warmup_steps)
        share = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return args.learning_rate * (args.min_lr_ratio + (1 - args.min_lr_ratio) * share)
