"""Whether training on this device goes as it does on a CPU: 200 updates of the preset `demo`.

    python benchmarks/bench_curve.py                    # on a GPU in bfloat16, compiled
    python benchmarks/bench_curve.py --dtype float32 --no-compile
    python benchmarks/bench_curve.py --device cpu --dtype float32 --no-compile --write

Data, weights, order and schedule are the same everywhere, so the losses are, but for rounding. They
are compared with those of a CPU in float32, which benchmarks/cpu_curve.json holds (--write makes it
anew). Prints the two curves and, last, one JSON line; status 1 if they part.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataset.demo import write_demo
from training import cli
from training.run_log import read_metrics

CURVE = Path(__file__).with_name("cpu_curve.json")
STEPS, EVERY = 200, 10  # updates; each loss is a mean over EVERY of them
FLAGS = ["--preset", "demo", "--batch_size", 4, "--max_seq_len", 128, "--learning_rate", 2e-3]
FLAGS += ["--seed", 42, "--epochs", 1, "--log_interval", EVERY, "--save_interval", STEPS]


def parse_args():
    parser = cli.new_parser(__doc__)
    add = parser.add_argument
    add("--device", default="auto", help="as in train_pretrain.py")
    add("--dtype", default="auto", help="as in train_pretrain.py")
    add("--compile", **cli.BOOL, default=None, help="as in train_pretrain.py")
    text = f"updates of the run, a multiple of {EVERY}; the schedule stays that of {STEPS}"
    add("--steps", type=cli.at_least(EVERY), default=STEPS, help=text)
    text = "largest difference of a loss, as a share of the CPU's"
    add("--tolerance", type=cli.in_range(0, 1), default=0.02, help=text)
    add("--write", action="store_true", help="write the CPU's curve in place of comparing")
    return parser.parse_args()


def losses(args) -> dict[int, float]:
    """The loss by step of a run in a process of its own, stopped after args.steps updates."""
    with tempfile.TemporaryDirectory() as folder:
        data = write_demo(Path(folder) / "data")["pretrain.jsonl"]
        # wsd without decay: the first updates of a short run are those of a long one
        flags = [*FLAGS, "--data_path", data, "--max_steps", args.steps, "--device", args.device]
        flags += ["--lr_schedule", "wsd", "--decay_fraction", 0, "--eval_interval", STEPS]
        flags += ["--dtype", args.dtype, "--out_dir", f"{folder}/run", "--cache_dir", folder]
        if args.compile is not None:
            flags.append("--compile" if args.compile else "--no-compile")
        command = [sys.executable, cli.REPOSITORY / "train_pretrain.py", *flags]
        done = subprocess.run(
            [str(word) for word in command], cwd=folder, stdout=subprocess.PIPE, text=True
        )
        print(done.stdout.splitlines()[0] if done.stdout else "no output")
        if done.returncode:
            sys.exit(done.returncode)
        lines = read_metrics(Path(folder) / "run" / "metrics.jsonl")
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def compare(found: dict[int, float], expected: dict[int, float]) -> float:
    """The largest difference at a step that both have, as a share of what is expected."""
    return max(abs(found[step] - expected[step]) / expected[step] for step in found)


def main() -> int:
    args = parse_args()
    found = losses(args)
    if args.write:
        CURVE.write_text(json.dumps({step: round(loss, 5) for step, loss in found.items()}) + "\n")
        return 0
    expected = {int(step): loss for step, loss in json.loads(CURVE.read_text()).items()}
    print("step     here   on a CPU in float32")
    for step, loss in found.items():
        print(f"{step:4}  {loss:7.4f}  {expected[step]:7.4f}")
    largest = compare(found, expected)
    agrees = largest <= args.tolerance
    result = {"benchmark": "curve", "steps": args.steps, "last_loss": found[max(found)]}
    result |= {"last_loss_of_cpu": expected[max(found)], "largest_difference": largest}
    print(json.dumps(result | {"tolerance": args.tolerance, "agrees": agrees}))
    return 0 if agrees else 1


if __name__ == "__main__":
    cli.run(main)
