"""What a run tells: console lines, a progress bar, metrics.jsonl, loss.png, wandb."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

from tqdm import tqdm


class RunLog:
    """Writes on the main rank; on the others every method does nothing.

    metrics.jsonl gets one JSON object per call of `metrics` or `event`. On a resume the lines that
    were written after the checkpoint are dropped first (state["metrics_lines"] are kept), so that
    the file reads as if nothing had been interrupted.
    """

    def __init__(self, out_dir: Path, total_steps: int, state: dict, is_main: bool, args=None):
        self.is_main = is_main
        self.lines = state["metrics_lines"]
        if not is_main:
            return
        self.path = Path(out_dir) / "metrics.jsonl"
        self._keep_lines(self.lines)
        self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed in close)
        self.bar = None
        if sys.stderr.isatty():
            self.bar = tqdm(
                total=total_steps, initial=state["step"], unit="step", dynamic_ncols=True
            )
        self.wandb = _start_wandb(out_dir, args) if args and args.use_wandb else None
        self.total_steps = total_steps
        self.clock, self.tokens = time.perf_counter(), 0

    def step(self, tokens: int):
        """Count one finished update of `tokens` targets."""
        if self.is_main:
            self.tokens += tokens
            if self.bar is not None:
                self.bar.update()

    def metrics(self, step: int, speed: str | None = None, **values):
        """Record numbers of `step`; print them as one line; speed="tokens" adds tokens_per_s."""
        if not self.is_main:
            return
        shown = dict(values)
        if speed:
            now = time.perf_counter()
            shown[f"{speed}_per_s"] = self.tokens / (now - self.clock)
            self.clock, self.tokens = now, 0
        self._write({"step": step} | shown)
        if self.wandb:
            self.wandb.log(shown, step=step)
        parts = [f"{name} {_short(value)}" for name, value in shown.items()]
        self.say(
            f"step {step:>{len(str(self.total_steps))}}/{self.total_steps}  " + "  ".join(parts)
        )

    def event(self, step: int, event: str, **values):
        """Record something unusual that happened in `step`, in metrics.jsonl alone."""
        if self.is_main:
            self._write({"step": step, "event": event} | values)

    def _write(self, record: dict):
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        self.lines += 1

    def pause_clock(self):
        """Leave the time since the last log line out of the speed (evaluating, saving)."""
        if self.is_main:
            self.clock, self.tokens = time.perf_counter(), 0

    def say(self, text: str):
        """Print on the main rank, above the progress bar."""
        if self.is_main:
            tqdm.write(text) if self.bar is not None else print(text, flush=True)

    def plot(self):
        """Draw loss.png from metrics.jsonl."""
        if self.is_main:
            plot_metrics(self.path, self.path.with_name("loss.png"))

    def end(self, step: int, stopped_by: int):
        """The last line, and `close`. stopped_by: the signal that ended the run, or 0."""
        if self.is_main:
            folder = self.path.parent
            if stopped_by:
                name = signal.Signals(stopped_by).name
                self.say(
                    f"stopped by {name} after step {step} of {self.total_steps}, saved in "
                    f"{folder}: the same command goes on from there"
                )
            else:
                self.say(f"done: {folder} holds the checkpoints, metrics.jsonl and loss.png")
        self.close()

    def close(self):
        """Flush, draw, and end the bar and the wandb run."""
        if self.is_main:
            self.file.close()
            self.plot()
            if self.bar is not None:
                self.bar.close()
            if self.wandb:
                self.wandb.finish()

    def _keep_lines(self, count: int):
        kept = read_metrics(self.path)[:count] if self.path.exists() else []
        self.lines = len(kept)  # fewer than `count` after a resume from another folder's checkpoint
        if self.path.exists():
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text("".join(json.dumps(r) + "\n" for r in kept))
            temporary.replace(self.path)


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
    """Training and held-out loss over steps, with the learning rate below, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    records = read_metrics(path)
    train = [(r["step"], r["loss"]) for r in records if "loss" in r]
    held_out = [(r["step"], r["val_loss"]) for r in records if "val_loss" in r]
    rates = [(r["step"], r["lr"]) for r in records if "lr" in r]
    if not train:
        return
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(8, 5.5), sharex=True, height_ratios=(4, 1), layout="constrained"
    )
    top.plot(*zip(*train), color="tab:blue", linewidth=1, alpha=0.8, label="training")
    if held_out:
        top.plot(*zip(*held_out), color="tab:orange", marker="o", markersize=4, label="held out")
        last_step, last = held_out[-1]
        top.annotate(f"{last:.3f}", (last_step, last), xytext=(0, 8), textcoords="offset points",
                     ha="right", color="tab:orange")  # fmt: skip
    of_pairs = any("pairs" in record for record in records)  # whose loss has no unit
    top.set_ylabel("loss" if of_pairs else "loss (nats per token)")
    top.grid(alpha=0.3)
    top.legend(frameon=False)
    bottom.plot(*zip(*rates), color="tab:gray", linewidth=1)
    bottom.set_ylabel("learning rate")
    bottom.set_xlabel("optimizer step")
    bottom.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    bottom.grid(alpha=0.3)
    temporary = image.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=120)
    plt.close(figure)
    temporary.replace(image)


def _short(value) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if abs(value) >= 1000:
            return f"{value:,.0f}"
        return f"{value:.4f}" if abs(value) >= 0.01 or value == 0 else f"{value:.2e}"
    return str(value)


def _start_wandb(out_dir: Path, args):
    import wandb

    id_file = Path(out_dir) / "wandb_id.txt"  # the same run goes on after a resume
    run_id = id_file.read_text().strip() if id_file.exists() else None
    run = wandb.init(
        project=args.wandb_project, name=args.wandb_run_name, id=run_id, resume="allow",
        config={k: str(v) for k, v in vars(args).items()}, dir=out_dir,
    )  # fmt: skip
    id_file.write_text(run.id)
    return run
