"""loss.png shows what a run has measured, and nothing that it has not."""

import json

import matplotlib.pyplot as plt
import pytest

from training.plot import plot_metrics

TRAIN = {"loss": 1.0, "lr": 1e-3}
PAIRS = {"pairs": 3, "accuracy": 0.5, "margin": 0.1, "chosen_reward": 0.2, "rejected_reward": 0.1}
HELD_OUT = {"val_loss": 1.1}
HELD_OUT_PAIRS = {"val_loss": 1.1} | {f"val_{k}": v for k, v in PAIRS.items() if k != "pairs"}


@pytest.mark.parametrize(
    ("train", "held_out", "labels"),
    [
        (TRAIN, HELD_OUT, ["loss (nats per token)", "learning rate"]),
        (TRAIN, HELD_OUT | {"exact_match": 0.9},
         ["loss (nats per token)", "exact match", "learning rate"]),
        (TRAIN | PAIRS, HELD_OUT_PAIRS | {"exact_match": 0.9},
         ["loss", "exact match", "accuracy", "margin", "reward", "learning rate"]),
        (TRAIN | {"reward": 0.4, "entropy": 2.0, "calls": 1.0},
         {"val_reward": 0.5, "sampled_reward": 0.3},
         ["reward", "entropy (nats)", "tool calls", "learning rate"]),
        (TRAIN | {"cross_entropy": 1.2, "divergence": 0.3}, HELD_OUT | {"val_divergence": 0.4},
         ["cross-entropy (nats per token)", "divergence", "learning rate"]),
    ],
)  # fmt: skip
def test_every_kind_of_number_has_a_panel(monkeypatch, tmp_path, train, held_out, labels):
    """What there are numbers of, with all its points; the loss only where it tells something."""
    figures = []
    monkeypatch.setattr(plt, "close", figures.append)
    lines = [{"step": 0} | held_out, {"step": 5} | train, {"step": 5} | held_out]
    lines += [{"step": 6, "event": "skipped"}, {"step": 10} | train, {"step": 10} | held_out]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    plot_metrics(path, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    (figure,) = figures
    assert [axis.get_ylabel() for axis in figure.axes] == labels
    drawn = [len(line.get_xdata()) for axis in figure.axes for line in axis.get_lines()]
    unshown = {"pairs"} | ({"loss"} if {"reward", "cross_entropy"} & set(train) else set())
    shown = [k for k in (*train, *held_out) if k not in unshown]
    held_out_keys = ("val_", "exact", "sampled")
    assert sorted(drawn) == sorted(3 if k.startswith(held_out_keys) else 2 for k in shown)
    monkeypatch.undo()
    plt.close(figure)
