"""Whether a change made the training step slower: scripts of two checkouts, run in turns.

    git worktree add ../before COMMIT
    python benchmarks/bench_scripts.py --old ../before
    python benchmarks/bench_scripts.py --old ../before --rounds 6 --flags --dropout 0.1

train_pretrain.py and train_full_sft.py of both checkouts train the demo's model on the demo's data,
as often as --rounds says in the order old, new, new, old. Seconds per step are those of
metrics.jsonl, where saving and evaluating do not count; a run's figure is the median over its steps
but the first. A ratio new:old is that of the two olds' mean and the two news' mean of a round: what
grows or falls steadily on a shared machine cancels out. Beside it stands the ratio of the fastest
steps of all runs, which say more where others use the machine by fits and starts. Flags that a
script of one checkout does not have are left out for both.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.own_process import ROOT
from dataset.demo import write_demo
from training.terminal import forgive_encodings

FLAGS = {  # what the demo gives them
    "pretrain": {"batch_size": 8},
    "full_sft": {"batch_size": 6, "max_seq_len": 352},
}
COMMON = {
    "device": "cpu", "val_fraction": 0, "log_interval": 1, "save_interval": 10**6,
    "eval_interval": 10**6,
}  # fmt: skip


def parse_args():
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add(
        "--old", type=Path, default=Path("../before"), help="the other checkout (default ../before)"
    )
    add("--scripts", nargs="+", choices=FLAGS, default=list(FLAGS), help="default: both")
    add("--rounds", type=int, default=3, help="of old, new, new, old (default 3)")
    add("--steps", type=int, default=40, help="optimizer steps of a run (default 40)")
    add("--skip", type=int, default=8, help="first steps that do not count (default 8)")
    add("--flags", nargs=argparse.REMAINDER, default=[], help="more of the scripts' flags; last")
    return parser.parse_args()


def as_dict(words: list[str]) -> dict:
    """["--a", "1", "--b"] as {"a": "1", "b": True}. Raises ValueError for other words."""
    flags = {}
    for word in words:
        if word.startswith("--"):
            flags[last := word[2:]] = True
        elif flags and flags[last] is True:
            flags[last] = word
        else:
            raise ValueError(f"--flags {' '.join(words)}: expected --name value, got {word}")
    return flags


@cache
def flags_of(checkout: Path, script: str) -> frozenset[str]:
    """Names of the flags that a checkout's script has."""
    command = [sys.executable, f"train_{script}.py", "--help"]
    done = subprocess.run(command, cwd=checkout, stdout=subprocess.PIPE, text=True, check=True)
    usage, _, _ = done.stdout.partition("\n\n")
    return frozenset(re.findall(r"--([\w-]+)", usage))


def train(checkout: Path, script: str, flags: dict, out_dir: Path):
    """One run in a process of its own. Its output is shown if it fails."""
    command = [sys.executable, f"train_{script}.py", "--out_dir", out_dir]
    for flag, value in flags.items():
        command += [f"--{flag}"] if value is True else [f"--{flag}", value]
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=checkout, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"PYTHONPATH": str(checkout)},
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{' '.join(words)}\nin {checkout} failed:\n{done.stdout}")


def step_seconds(metrics: Path, skip: int) -> list[float]:
    """Seconds of the steps but the first `skip`, from the tokens and tokens/s noted after each.

    Raises ValueError if there are no others.
    """
    seconds, before = [], 0
    for line in metrics.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if "tokens_per_s" in record:
            seconds.append((record["tokens"] - before) / record["tokens_per_s"])
            before = record["tokens"]
    if len(seconds) <= skip:
        raise ValueError(f"{metrics}: {len(seconds)} steps; more than --skip {skip} are needed")
    return seconds[skip:]


def ratios(old: list[float], new: list[float]) -> list[float]:
    """new:old of every round, from its two runs of each."""
    pairs = range(0, len(old), 2)
    return [sum(new[i : i + 2]) / sum(old[i : i + 2]) for i in pairs]


def compare(script: str, args, flags: dict, work_dir: Path) -> dict:
    """Seconds per step of every run of a script, in the order they were made, and ratios."""
    checkouts = {"old": args.old, "new": ROOT}
    known = flags_of(args.old, script) & flags_of(ROOT, script)
    if unknown := flags.keys() - known:
        print(f"train_{script}.py: not in both checkouts: --{', --'.join(sorted(unknown))}")
    flags = {flag: value for flag, value in flags.items() if flag in known}
    seconds, fastest = {"old": [], "new": []}, {"old": [], "new": []}
    for number in range(args.rounds):
        for i, which in enumerate(("old", "new", "new", "old")):
            out_dir = work_dir / f"{script}-{number}-{i}"
            train(checkouts[which], script, flags, out_dir)
            steps = step_seconds(out_dir / "metrics.jsonl", args.skip)
            seconds[which].append(statistics.median(steps))
            fastest[which].append(min(steps))
    fastest_ratio = min(fastest["new"]) / min(fastest["old"])
    return seconds | {"ratios": ratios(**seconds), "fastest_ratio": fastest_ratio}


def row(script: str, figures: dict) -> str:
    old, new, each = (figures[name] for name in ("old", "new", "ratios"))
    return (
        f"train_{script + '.py':14} {statistics.median(old):9.4f} {statistics.median(new):9.4f}"
        f" {statistics.median(each):9.3f}   {min(each):.3f} to {max(each):.3f}"
        f"  {figures['fastest_ratio']:13.3f}"
    )


def benchmark(args, work_dir: Path) -> dict:
    demo, more = write_demo(work_dir / "demo_data"), as_dict(args.flags)
    common = COMMON | {"cache_dir": work_dir / "cache"}
    texts = {"data_path": demo["pretrain.jsonl"], "tokenizer": ROOT / "model" / "tokenizer"}
    chats = {"data_path": demo["sft.jsonl"], "init_from": work_dir / "base"}
    flags = {
        "pretrain": common | texts | FLAGS["pretrain"] | more,
        "full_sft": common | chats | FLAGS["full_sft"] | more,
    }
    if "full_sft" in args.scripts:  # both can read a model of the old one
        known = flags_of(args.old, "pretrain")
        base = {flag: value for flag, value in flags["pretrain"].items() if flag in known}
        train(args.old, "pretrain", base | {"max_steps": 1}, work_dir / "base")
    print("seconds per step:           old       new   new:old   of the rounds   fastest steps")
    results = {}
    for script in args.scripts:
        results[script] = compare(script, args, flags[script] | {"max_steps": args.steps}, work_dir)
        print(row(script, results[script]), flush=True)
    return results


def main():
    args = parse_args()
    args.old = args.old.resolve()
    if not (args.old / "train_pretrain.py").exists():
        sys.exit(f"--old {args.old}: expected a checkout with train_pretrain.py")
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(benchmark(args, Path(folder))))


if __name__ == "__main__":
    forgive_encodings()
    main()
