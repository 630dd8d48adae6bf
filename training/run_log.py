"""What a run tells: console lines, a progress bar, metrics.jsonl, loss.png, TensorBoard, wandb."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from model.json_file import shown
from model.moe import grouped_mm_waits
from training import run_lock
from training.event_files import EventFiles
from training.memory import resident_bytes
from training.plot import plot_metrics, read_metrics
from training.speed import flops_per_token, matmul_rate
from training.state import RunState

# in metrics.jsonl alone: they follow from the step
NOT_PRINTED = ("epoch", "tokens", "pairs", "examples", "prompts")
# what depends on the machine and not on what is learned
SPEEDS = (
    "tokens_per_s", "pairs_per_s", "examples_per_s", "prompts_per_s", "mfu", "memory_gb",
    "data_wait", "sampling_s", "updating_s", "minutes_left",
)  # fmt: skip
LONGEST_REASON = 500  # characters


_open: RunLog | None = None  # of the run that is going on in this process


def failed(error: Exception):
    """Record in the metrics.jsonl of the run that is going on, if one is, why it ends."""
    if _open is not None:
        reason = str(error).strip() or type(error).__name__
        with contextlib.suppress(OSError, ValueError):  # a full disk may be what has ended it
            _open.event(_open.state.step, "end", state="failed", error=reason[:LONGEST_REASON])


def note_end(path: Path, step: int) -> bool:
    """Give a metrics.jsonl the last line that a kill, after the last save, has kept from it.

    Whether that was so.
    """
    records = read_metrics(path) if path.is_file() else []
    if not records or records[-1].get("event") == "end":
        return False
    _write_all(path, [*records, {"step": step, "event": "end", "state": "finished"}])
    return True


def _write_all(path: Path, records: list[dict]):
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(r) + "\n" for r in records))
    temporary.replace(path)


def open_log(run) -> RunLog:
    """The log of a Run that begins, after its first lines: what is trained, on what."""
    args, rows, is_sampled = run.args, run.sampler.rows_per_update, run.unit == "prompts"
    flops = flops_per_token(run.model, args.max_seq_len / 2) * rows * args.max_seq_len
    update = f"{rows} × {args.max_seq_len:,} tokens"
    if is_sampled:  # nobody knows how long the completions will be
        flops, update = 0, f"{rows} prompts × {args.num_generations} completions"
    log = RunLog(
        args.out_dir, run.total_steps, run.state, run.ranks.is_main, args, flops, run.ranks,
        run.dtype,
    )  # fmt: skip
    log.say_what(run.model, update, run.dataset.summary())
    if run.resumed_from:
        log.say(f"going on from {run.resumed_from}")
    return log


class RunLog:
    """Writes on the main rank; on the others every method does nothing.

    metrics.jsonl gets one JSON object per call of `metrics` or `event`. On a resume the lines that
    were written after the checkpoint are dropped first (state.metrics_lines are kept), so that
    the file reads as if nothing had been interrupted. Its last line says how the run has ended:
    {"step", "event": "end", "state": "finished", "stopped" (with "signal") or "failed" (with
    "error")}. Where that is missing and no process holds the folder (run_lock), it was killed.

    update_flops  operations of one update, over all ranks; the speed line then has the share of the
                  devices' rate that they are (MFU), measured here with a matrix product in `dtype`
    """

    def __init__(
        self, out_dir: Path, total_steps: int, state: RunState, is_main: bool, args=None,
        update_flops: float = 0.0, ranks=None, dtype=torch.float32,
    ):  # fmt: skip
        global _open
        self.is_main, self.state = is_main, state
        self.lines = state.metrics_lines
        self.tokens, self.steps, self.waited, self.sampled = 0, 0, 0.0, 0.0
        if not is_main:
            return
        self.device = torch.device("cpu") if ranks is None else ranks.device
        self.dtype = dtype
        self.flops = 0.0  # of an update, in seconds at the full rate of all devices
        if update_flops:
            rate = matmul_rate(self.device, dtype) * ranks.world_size
            self.flops = update_flops / rate
        self.path = Path(out_dir) / "metrics.jsonl"
        self._keep_lines(self.lines)
        self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed in close)
        self.bar = None
        if sys.stderr.isatty():
            self.bar = tqdm(total=total_steps, initial=state.step, unit="step", dynamic_ncols=True)
        self.wandb = _start_wandb(out_dir, args) if args and args.use_wandb else None
        self.event_files = None
        if args and args.use_tensorboard:
            dropped = state.step + 1 if self.lines else 0
            self.event_files = EventFiles(out_dir, vars(args), dropped)
        self.total_steps = total_steps
        if self.device.type == "cuda":  # what was tried and measured before is not training's
            torch.cuda.reset_peak_memory_stats(self.device)
        self.pause_clock()
        _open = self

    def waiting(self, loader: Iterable) -> Iterator:
        """The loader's batches; the time that training waits for them is counted."""
        batches = iter(loader)
        while True:
            begin = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            self.waited += time.perf_counter() - begin
            yield batch

    def step(self, tokens: int):
        """Count one finished update of `tokens` targets."""
        if self.is_main:
            self.tokens += tokens
            self.steps += 1
            if self.bar is not None:
                self.bar.update()

    def metrics(self, step: int, speed: str | None = None, **values):
        """Record numbers of `step` and print them as one line.

        speed="tokens" (or "pairs"): add tokens_per_s; mfu, the share of the devices' arithmetic
        rate; data_wait, the share of the time spent waiting for batches; minutes_left. All since
        the last such line. memory_gb (10⁹ bytes): on a GPU the peak since the log was opened, else
        the process's present size.
        """
        if not self.is_main:
            return
        speeds = self._speeds(step, speed) if speed else {}
        self._write({"step": step} | values | speeds)
        if self.event_files:
            self.event_files.metrics(step, values | speeds)
        if self.wandb:
            self.wandb.log(values | speeds, step=step)
        names = [name for name in values if name not in NOT_PRINTED]
        names.sort(key=lambda name: not name.startswith("reward"))  # what is trained for: first
        parts = [f"{name} {_short(values[name])}" for name in names]
        if speed:
            rate = speeds[f"{speed}_per_s"]
            parts.append(f"{rate:,.{2 if rate < 10 else 0}f} {speed}/s")
            if self.flops:
                parts.append(f"MFU {speeds['mfu']:.0%}")
            if "sampling_s" in speeds:
                parts.append(
                    f"sampling {speeds['sampling_s']:.2f} s  updating {speeds['updating_s']:.2f} s"
                )
            parts.append(f"{speeds['memory_gb']:.1f} GB")
            if "sampling_s" not in speeds:  # prompts are there at once
                parts.append(f"data wait {speeds['data_wait']:.0%}")
            parts.append(f"{speeds['minutes_left']:.1f} min left")
        self.say(
            f"step {step:>{len(str(self.total_steps))}}/{self.total_steps}  " + "  ".join(parts)
        )

    def _speeds(self, step: int, unit: str) -> dict:
        seconds = time.perf_counter() - self.clock
        memory = resident_bytes()
        if self.device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(self.device)
        speeds = {
            f"{unit}_per_s": self.tokens / seconds,
            "mfu": self.flops * self.steps / seconds,
            "memory_gb": memory / 1e9,
            "data_wait": self.waited / seconds,
            "minutes_left": (self.total_steps - step) * seconds / max(self.steps, 1) / 60,
        }
        if self.sampled:  # seconds of an update
            updating = seconds - self.waited - self.sampled
            speeds["sampling_s"] = self.sampled / max(self.steps, 1)
            speeds["updating_s"] = updating / max(self.steps, 1)
        self.pause_clock()
        return speeds

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
        self.clock, self.tokens, self.steps = time.perf_counter(), 0, 0
        self.waited, self.sampled = 0.0, 0.0

    def say(self, text: str):
        """Print on the main rank, above the progress bar."""
        if self.is_main:
            tqdm.write(text) if self.bar is not None else print(text, flush=True)

    def held_out(self, state: RunState, values: dict, samples: list[str]):
        """Record and draw what was measured after state.step updates; note the best loss.

        Where there is no "val_loss", the highest "val_reward" is the best. What is measured before
        the first update is nobody's best: no checkpoint holds those weights.
        samples: what the model wrote, a line each; printed, and kept as {"event": "samples",
        "texts": […]}.
        """
        self.metrics(state.step, **values)
        val_loss = values["val_loss"] if "val_loss" in values else -values["val_reward"]
        if samples:
            self.event(state.step, "samples", texts=samples)
        for line in samples:
            self.say(f"    {line}")
        if samples and self.is_main and self.event_files:
            self.event_files.samples(state.step, samples)
        self.plot()
        state.eval_due = False
        best = state.best_val_loss
        if state.step > 0 and (best is None or val_loss < best):
            state.best_val_loss, state.best_step = val_loss, state.step
        self.pause_clock()

    def say_what(self, model, update: str, data: str):
        """The first lines: what is trained, on how much, where and how."""
        if not self.is_main:
            return
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        of_all = model.num_parameters()
        share = f"{trained / 1e6:.2f}M of " if trained < of_all else ""
        dtype = str(self.dtype).removeprefix("torch.")
        self.say(
            f"{share}{of_all / 1e6:.1f}M parameters, {self.total_steps:,} steps of {update}, on "
            f"{self.device} in {dtype}\ndata: {data}"
        )
        if model.config.use_moe and grouped_mm_waits(self.device, self.dtype):
            self.say(
                f"experts: in {dtype} torch's grouped product waits for this GPU; here every layer "
                "does, once a pass (docs/gpus.md)"
            )

    def plot(self):
        """Draw loss.png from metrics.jsonl."""
        if self.is_main:
            plot_metrics(self.path, self.path.with_name("loss.png"))

    def end(self, step: int, stopped_by: int):
        """The last line, and `close`. stopped_by: the signal that ended the run, or 0.

        A run that has all it was to do has finished, whatever came during its last update.
        """
        if self.is_main:
            if step == self.total_steps and not self.state.eval_due:
                stopped_by = 0
            folder = self.path.parent
            name = signal.Signals(stopped_by).name if stopped_by else None
            ended = {"state": "stopped", "signal": name} if stopped_by else {"state": "finished"}
            self.event(step, "end", **ended)
            if stopped_by:
                if step == 0:
                    self.say(f"stopped by {name} before the first update")
                else:
                    self.say(
                        f"stopped by {name} after step {step} of {self.total_steps}, saved in "
                        f"{folder}: the same command goes on from there"
                    )
            else:
                self.say(f"done: {folder} holds the checkpoints, metrics.jsonl and loss.png")
                if not self.state.has_learned:
                    self.say("nothing was learned: the gradient of every update was 0")
        self.close()

    def close(self):
        """Flush, draw, end the bar and the wandb run, and leave the folder to others."""
        if self.is_main:
            self.file.close()
            self.plot()
            if self.bar is not None:
                self.bar.close()
            if self.wandb:
                self.wandb.finish()
            if self.event_files:
                self.event_files.close()
            global _open
            _open = None
            run_lock.release()

    def _keep_lines(self, count: int):
        kept = read_metrics(self.path)[:count] if self.path.exists() else []
        self.lines = len(kept)  # fewer than `count` after a resume from another folder's checkpoint
        if self.path.exists():
            _write_all(self.path, kept)


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
    try:
        run = wandb.init(
            project=args.wandb_project, name=args.wandb_run_name, id=run_id, resume="allow",
            config={k: str(v) for k, v in vars(args).items()}, dir=out_dir,
        )  # fmt: skip
    except wandb.Error as error:  # nobody has logged in, no network
        raise ValueError(f"--use_wandb: {shown(error)}") from None
    id_file.write_text(run.id)
    return run
