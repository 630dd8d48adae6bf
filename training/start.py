"""How a run begins: everything that needs no data is checked first, then it is new or goes on."""

from __future__ import annotations

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import torch

from dataset.readers import check_path
from model.config import LMConfig
from training import checkpoint, cli, run_lock, run_log
from training.distributed import Ranks, sum_over_ranks
from training.identity import (
    DATA_FLAGS,
    changed_flags,
    check_identity,
    earlier_flags,
    in_words,
    run_identity,
)
from training.plot import plot_metrics
from training.state import RunState

DEMO_DATA = Path("out/demo_data")  # written where no --data_path is given


def open_run(args, ranks: Ranks, config: LMConfig, adapter=None, **more):
    """The checkpoint to go on from, or None, and the run's identity (but for the data).

    Checks the data files and folders that the flags name, takes --out_dir for this run (run_lock)
    and compares the checkpoint. adapter, more: as in `run_identity`. Collective. Raises ValueError
    naming the flag, and SystemExit(0) if the run has all its steps already, which is said.
    """
    _check_paths(args)
    if args.use_tensorboard and find_spec("tensorboard") is None:
        raise ValueError("--use_tensorboard: the package tensorboard is missing (pip install it)")
    if args.lr_schedule != "wsd" and args.decay_fraction != cli.DECAY_FRACTION:
        raise ValueError(f"--decay_fraction: belongs to --lr_schedule wsd, not {args.lr_schedule}")
    refused = None
    if ranks.is_main:
        try:
            run_lock.take(args.out_dir)
        except ValueError as error:
            refused = str(error)
    if sum_over_ranks(torch.tensor(float(refused is not None), device=ranks.device)):
        raise ValueError(refused or f"--out_dir {args.out_dir}: refused on the first rank")
    resumed_from = checkpoint.find_checkpoint(args.out_dir, args.resume, args.overwrite)
    identity = run_identity(args, ranks, adapter, **more)
    if resumed_from is not None:
        of_weights = config if adapter is None else None
        allowed = check_identity(resumed_from, identity, args, ranks, of_weights)
        _say(ranks, allowed)
        known = earlier_flags(resumed_from)
        other_data = set(DATA_FLAGS) & set(changed_flags(resumed_from, args, None))
        known_data = args.max_steps and known and not other_data  # else it is compared first
        if known_data:
            _end_if_finished(resumed_from, args.max_steps, args, ranks, config)
    return resumed_from, identity


def first_state(
    resumed_from: Path | None, identity: dict, total_steps: int, model, optimizer, scaler, args,
    ranks: Ranks, eval_due: bool,
) -> RunState:  # fmt: skip
    """What a run remembers beside its weights: of a new run, or as `resumed_from` had it.

    Puts optimizer and scaler back, deletes what --overwrite is to delete, and writes args.json.
    identity: with the data's fingerprint. eval_due: whether a new run begins with held-out
    figures. Raises SystemExit(0) if the run has all its steps already.
    """
    state, changes = RunState(eval_due=eval_due), []
    if resumed_from is not None:
        data = {"data_fingerprint": identity["data_fingerprint"]}
        _say(ranks, check_identity(resumed_from, data, args, ranks, None))
        _end_if_finished(resumed_from, total_steps, args, ranks, model.config)
        saved = {"eval_due": eval_due} | checkpoint.resume(resumed_from, model, optimizer, scaler)
        state = RunState.from_dict(saved)
        changes = _changes(resumed_from, args, model.config, state.step, ranks)
    elif args.overwrite and ranks.is_main:
        checkpoint.clear_run(args.out_dir)
    if ranks.is_main:
        config = model.config.to_dict()
        more = {"total_steps": total_steps, "config": config, "changes": changes}
        _write_args(args.out_dir, args, **more, **identity)
    return state


def _check_paths(args):
    """Files and folders that the flags name; ValueError for one that is missing or not writable."""
    for flag in ("data_path", "val_data_path"):
        for path in getattr(args, flag) or []:
            check_path(path, f"--{flag}")
    if getattr(args, "questions", None):
        check_path(args.questions, "--questions")
    if getattr(args, "data_weights", None):
        _check_weights(args.data_path or ["the demo corpus"], args.data_weights)
    _check_writable(args.cache_dir, f"--cache_dir {args.cache_dir}")
    if args.data_path is None:
        _check_writable(DEMO_DATA, f"{DEMO_DATA}, where the demo corpus goes")


def _check_weights(paths: list, weights: list[float]):
    """--data_weights: ValueError unless there is one for each file, and each file once."""
    if len(paths) != len(weights):
        raise ValueError(f"--data_weights: {len(weights)} weights for {len(paths)} --data_path")
    resolved = [Path(path).resolve() for path in paths]
    for path, place in zip(paths, resolved):
        if (times := resolved.count(place)) > 1:
            total = sum(weight for other, weight in zip(resolved, weights) if other == place)
            raise ValueError(
                f"--data_path {path}: given {times} times; give it once, with the weight {total:g} "
                "in --data_weights"
            )


def _check_writable(folder: Path, name: str):
    """ValueError if a folder, or the nearest above it that exists, cannot be written."""
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{name}: cannot be written")


def _changes(resumed_from: Path, args, config, step: int, ranks: Ranks) -> list[dict]:
    """What args.json remembers of changed flags: {"step", flag: [before, now], …} of each time."""
    before = earlier_flags(resumed_from).get("changes")
    changes = before if isinstance(before, list) else []
    changed = changed_flags(resumed_from, args, config)
    if changed:
        _say(ranks, [f"changed since step {step}: {in_words(changed)}"])
        changes = [*changes, {"step": step} | changed]
    return changes


def _write_args(out_dir: Path, args, **more):
    """args.json: every resolved flag and what else is needed to repeat the run."""
    content = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    content |= more | {"torch": torch.__version__, "command": sys.argv}
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / "args.json").write_text(json.dumps(content, indent=2, default=str) + "\n")


def _end_if_finished(folder: Path, total_steps: int, args, ranks: Ranks, config: LMConfig):
    """SystemExit(0) if a checkpoint has all steps that are asked for, after saying so."""
    state = checkpoint.read_state(checkpoint.resume_files(folder)[1])
    if state["step"] < total_steps or state.get("eval_due"):
        return
    changed = changed_flags(folder, args, config)
    other = f"; other flags than that run's: {in_words(changed)}" if changed else ""
    _say(ranks, [f"nothing to do: step {state['step']} of {total_steps} is in {folder}{other}"])
    if ranks.is_main:
        # what a run that was killed after its last save has not come to
        checkpoint.remove_leftovers(args.out_dir)
        metrics = Path(args.out_dir) / "metrics.jsonl"
        is_its_own = folder.resolve().parent == metrics.resolve().parent
        was_noted = not changed and is_its_own and run_log.note_end(metrics, state["step"])
        if was_noted or (metrics.is_file() and not metrics.with_name("loss.png").exists()):
            plot_metrics(metrics, metrics.with_name("loss.png"))
        run_lock.release()
    raise SystemExit(0)


def _say(ranks: Ranks, lines: list[str]):
    if ranks.is_main:
        for line in lines:
            print(line, flush=True)
