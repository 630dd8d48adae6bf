"""What a run remembers beside its weights, saved with every checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field, fields


@dataclass
class RunState:
    """Written to trainer_state.json; what an older run's file lacks begins as it is here."""

    step: int = 0  # updates done
    tokens: int = 0  # targets seen so far, where a run counts these, …
    pairs: int = 0  # … pairs, …
    examples: int = 0  # … single judged answers …
    prompts: int = 0  # … or prompts whose completions were sampled
    eval_due: bool = False  # held-out figures of this step are still to be measured
    # run_log.py
    metrics_lines: int = 0  # of metrics.jsonl
    best_val_loss: float | None = None
    best_step: int | None = None
    # loss_watch.py
    has_learned: bool = False  # whether any update had a gradient
    bad_steps: int = 0  # skipped updates in all
    bad_in_a_row: int = 0
    usual_loss: list = field(default_factory=lambda: [0.0, 0.0, 0])  # mean, variance, updates
    since_log: list = field(
        default_factory=list
    )  # targets since the last log line, means over them

    @classmethod
    def from_dict(cls, values: dict) -> RunState:
        """The state that a checkpoint's trainer_state.json holds, among other things."""
        values = {"has_learned": True} | values  # older ones do not say
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})
