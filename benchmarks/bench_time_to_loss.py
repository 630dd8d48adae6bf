"""How many tokens and seconds each optimizer takes to AdamW's final held-out loss.

    python benchmarks/bench_time_to_loss.py                       # `demo`, a few minutes
    python benchmarks/bench_time_to_loss.py --preset small --steps 500 \
        --adamw 1e-3 2e-3 4e-3 --muon 5e-3 1e-2 2e-2              # both tuned: an hour on two cores

Runs train_pretrain.py on real text once for every learning rate given. AdamW's runs have --steps
updates. Muon's are shorter, --share of them, with a schedule of their own length: if the best one's
final loss is not above that of AdamW's best, Muon needs at most that share of the tokens. Where it
came down to that loss between two evaluations, the tokens in between are interpolated.

Prints a table and, last, one JSON line. Seconds are those of the updates alone (tokens /
tokens_per_s); they are comparable only if nothing else ran beside.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from training import cli
from training.run_log import read_metrics

ROOT = cli.REPOSITORY
DATA = ROOT.parent / "shared" / "data"
TEXTS = [str(DATA / name) for name in ("pretrain_en.jsonl", "pretrain_zh.jsonl")]


def parse_args():
    parser = cli.new_parser(__doc__)
    add = parser.add_argument
    add("--data_path", nargs="+", default=TEXTS, help="files of text")
    add("--val_fraction", type=cli.in_range(0, 0.5), default=0.003, help="share held out")
    add("--preset", default="demo", help="size of the model")
    add("--steps", type=cli.at_least(10), default=120, help="updates of AdamW's runs")
    text = "updates of Muon's runs as a share of AdamW's"
    add("--share", type=cli.in_range(0.01, 1), default=0.65, help=text)
    add("--batch_size", type=cli.at_least(1), default=4, help="rows per update")
    add("--max_seq_len", type=cli.at_least(1), default=256, help="tokens per row")
    add("--warmup_steps", type=cli.at_least(0), default=20, help="updates")
    add("--adamw", type=float, nargs="+", default=[2e-3], help="AdamW's learning rates")
    add("--muon", type=float, nargs="+", default=[1e-2], help="Muon's learning rates")
    add("--dtype", default="auto", help="precision of the products")
    add("--device", default="auto", help="as in train_pretrain.py")
    text = "folder of the runs; finished ones found there are not run again"
    add("--out_dir", type=Path, default=Path("out/bench_time_to_loss"), help=text)
    add("--overwrite", action="store_true", help="delete that folder first")
    return parser.parse_args()


def train(optimizer: str, rate: float, steps: int, args) -> dict:
    """One run: its held-out losses by tokens, and the seconds its updates took."""
    out_dir = args.out_dir / f"{args.preset}-{optimizer}-{rate:g}-{steps}"
    command = [
        sys.executable, ROOT / "train_pretrain.py", "--out_dir", out_dir,
        "--preset", args.preset, "--data_path", *args.data_path,
        "--val_fraction", args.val_fraction, "--batch_size", args.batch_size,
        "--max_seq_len", args.max_seq_len, "--optimizer", optimizer, "--learning_rate", rate,
        "--warmup_steps", args.warmup_steps, "--max_steps", steps, "--save_interval", steps,
        "--eval_interval", max(1, steps // 8), "--device", args.device, "--dtype", args.dtype,
        "--cache_dir", args.out_dir / "cache",
    ]  # fmt: skip
    subprocess.run([str(word) for word in command], check=True, stdout=sys.stderr)
    records = read_metrics(out_dir / "metrics.jsonl")
    tokens_at = {r["step"]: r["tokens"] for r in records if "tokens" in r}
    lines = [r for r in records if "tokens_per_s" in r]
    seconds, last = 0.0, 0
    for record in lines:
        seconds += (record["tokens"] - last) / record["tokens_per_s"]
        last = record["tokens"]
    per_step = max(tokens_at.values()) / max(tokens_at)
    curve = [(r["step"] * per_step, r["val_loss"]) for r in records if "val_loss" in r]
    return {
        "optimizer": optimizer, "learning_rate": rate, "steps": steps,
        "tokens": last, "seconds": seconds, "final_loss": curve[-1][1], "curve": curve,
    }  # fmt: skip


def tokens_to(loss: float, curve: list[tuple[float, float]]) -> float | None:
    """Tokens at which a curve of (tokens, loss) first comes down to a loss; None if it does not."""
    before = None
    for tokens, value in curve:
        if value <= loss:
            if before is None:
                return tokens
            tokens_before, value_before = before
            part = (value_before - loss) / (value_before - value)
            return tokens_before + part * (tokens - tokens_before)
        before = tokens, value
    return None


def main():
    args = parse_args()
    missing = [path for path in args.data_path if not Path(path).is_file()]
    if missing:
        raise ValueError(f"--data_path: no such file: {missing[0]}")
    if args.overwrite:
        shutil.rmtree(args.out_dir, ignore_errors=True)
    runs = [train("adamw", rate, args.steps, args) for rate in args.adamw]
    best = min(runs, key=lambda run: run["final_loss"])
    runs += [train("muon", rate, round(args.share * args.steps), args) for rate in args.muon]
    columns = ["optimizer", "peak rate", "updates", "tokens", "held-out loss", "minutes"]
    columns += ["tokens to AdamW's", "minutes to AdamW's"]
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    for run in runs:
        reached = tokens_to(best["final_loss"], run["curve"])
        run["tokens_to_target"] = reached
        run["share_of_tokens"] = reached and reached / best["tokens"]
        tokens, minutes = "–", "–"
        if reached is not None:
            tokens = f"{run['share_of_tokens']:.0%}"
            minutes = f"{run['seconds'] * reached / run['tokens'] / 60:.1f}"
        print(
            f"| {run['optimizer']} | {run['learning_rate']:g} | {run['steps']:,} "
            f"| {run['tokens']:,} | {run['final_loss']:.4f} | {run['seconds'] / 60:.1f} "
            f"| {tokens} | {minutes} |"
        )
    muons = [run for run in runs[len(args.adamw) :] if run["share_of_tokens"]]
    share = min((run["share_of_tokens"] for run in muons), default=None)
    print(json.dumps({
        "benchmark": "time_to_loss", "preset": args.preset, "target_loss": best["final_loss"],
        "muon_share_of_tokens": share, "runs": runs,
    }))  # fmt: skip


if __name__ == "__main__":
    cli.run(main)
