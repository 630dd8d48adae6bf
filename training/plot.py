"""loss.png: what metrics.jsonl holds, a panel for each kind of number over the same steps."""

from __future__ import annotations

import json
from pathlib import Path

# the panel at the top: label of the axis, keys of the lines; the first that there are numbers of
TOP = (
    ("reward", ("reward", "val_reward", "sampled_reward")),  # such a run's loss tells nothing
    ("cross-entropy (nats per token)", ("cross_entropy", "val_loss")),
    ("loss", ("loss", "val_loss")),
)
# the panels below it, where there are such numbers
PANELS = (
    ("exact match", ("exact_match",)),
    ("accuracy", ("accuracy", "val_accuracy")),
    ("margin", ("margin", "val_margin")),
    ("divergence", ("divergence", "val_divergence")),
    ("length (tokens)", ("length",)),
    ("entropy (nats)", ("entropy",)),
    ("KL (nats)", ("kl",)),
    ("tool calls", ("calls",)),
    ("critic's loss", ("value_loss",)),
    ("reward", ("chosen_reward", "val_chosen_reward", "rejected_reward", "val_rejected_reward")),
)
TRAINING, HELD_OUT = "tab:blue", "tab:orange"
REJECTED, HELD_OUT_REJECTED = "tab:cyan", "tab:red"
SHARES = ("exact match", "accuracy")  # from 0 to 1


def read_metrics(path: Path) -> list[dict]:
    """The records of a metrics.jsonl; a last line cut off by a kill is left out."""
    records = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def plot_metrics(path: Path, image: Path):
    """Loss or reward, what else was measured, and the learning rate over steps, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    records = read_metrics(path)
    if not _points(records, "loss"):
        return
    panels = [(label, keys) for label, keys in PANELS if any(_points(records, key) for key in keys)]
    heights = (4, *(1.6 for _ in panels), 1)
    figure, axes = plt.subplots(
        len(heights), 1, figsize=(8, 0.5 + sum(heights)), sharex=True, height_ratios=heights,
        layout="constrained",
    )  # fmt: skip
    label, keys = next((label, keys) for label, keys in TOP if _points(records, keys[0]))
    of_pairs = any("pairs" in record for record in records)  # whose loss has no unit
    axes[0].set_ylabel("loss (nats per token)" if label == "loss" and not of_pairs else label)
    _draw(axes[0], records, keys)
    for axis, (label, keys) in zip(axes[1:-1], panels):
        axis.set_ylabel(label)
        _draw(axis, records, keys)
        if label in SHARES:
            axis.set_ylim(-0.05, 1.05)
    axes[-1].plot(*zip(*_points(records, "lr")), color="tab:gray", linewidth=1)
    axes[-1].set_ylabel("learning rate")
    axes[-1].set_xlabel("optimizer step")
    axes[-1].ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    axes[-1].grid(alpha=0.3)
    figure.align_ylabels()
    temporary = image.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=120)
    plt.close(figure)
    temporary.replace(image)


def _points(records: list[dict], key: str) -> list[tuple[int, float]]:
    return [(r["step"], r[key]) for r in records if key in r]


def _draw(axis, records: list[dict], keys: tuple[str, ...]):
    """The lines of one panel: training's are plain, held-out ones have dots and a last value."""
    for key in keys:
        points = _points(records, key)
        if not points:
            continue
        held_out, rejected = key.startswith(("val_", "exact", "sampled")), "rejected" in key
        label = ("rejected, " if rejected else "chosen, " if "chosen" in key else "") + (
            "held out" if held_out else "training"
        )
        if key in ("val_reward", "sampled_reward"):
            label += ", greedy" if key == "val_reward" else ", sampled"
        if not held_out:
            color = REJECTED if rejected else TRAINING
            axis.plot(*zip(*points), color=color, linewidth=1, alpha=0.8, label=label)
            continue
        color = HELD_OUT_REJECTED if rejected or key == "sampled_reward" else HELD_OUT
        axis.plot(*zip(*points), color=color, marker="o", markersize=4, label=label)
        axis.annotate(
            f"{points[-1][1]:.3f}", (1, points[-1][1]), xycoords=("axes fraction", "data"),
            xytext=(4, 0), textcoords="offset points", va="center", color=color, fontsize="small",
        )  # fmt: skip
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize="small")
