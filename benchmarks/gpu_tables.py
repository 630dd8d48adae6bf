"""The tables of docs/performance.md for a GPU, from the folder that benchmarks/gpu.sh has filled.

    python benchmarks/gpu_tables.py out/gpu                  # prints them, as Markdown
    python benchmarks/gpu_tables.py out/gpu --machine        # writes machine.json, for gpu.sh

The folder holds NAME.json (the last line of a benchmark), NAME.log, machine.json, and parts.jsonl
with one line for each part: how it ended, after how many seconds.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from training import cli

MODELS = {"demo": "5M", "small": "30M", "base": "64M", "large": "108M"}
# what must hold on an H100 or H200, in bfloat16
SHARES = {"small": 0.30, "base": 0.40, "large": 0.45}  # of the rate of a product, T = 512 and 2,048
TIMES_THEIRS, DECODE_1, DECODE_64 = 1.3, 1500, 40_000  # tokens/s of `base`
HOPPER = ("H100", "H200")


def parse_args():
    parser = cli.new_parser(__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("out/gpu"), help="of gpu.sh")
    text = "write machine.json into it: card and versions"
    parser.add_argument("--machine", action="store_true", help=text)
    parser.add_argument("--device", default="cuda", help="cuda or cpu, for --machine")
    return parser.parse_args()


# ---- what is read


def machine(device: str) -> dict:
    """Card, memory in 10⁹ bytes and versions. Raises ValueError where there is no such device."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("transformers", "triton", "flash_attn"):
        try:
            found[package] = __import__(package).__version__
        except ImportError:
            found[package] = None
    git = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(git, cwd=cli.REPOSITORY, capture_output=True, text=True)
    found["commit"] = done.stdout.strip() or None
    if device == "cpu":
        return found | {"card": f"CPU, {os.cpu_count()} cores", "memory_gb": 80}
    if not torch.cuda.is_available():
        raise ValueError(f"--device {device}: no GPU here")
    card = torch.cuda.get_device_properties(0)
    return found | {
        "card": card.name, "memory_gb": round(card.total_memory / 1e9),
        "capability": f"{card.major}.{card.minor}", "processors": card.multi_processor_count,
        "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
    }  # fmt: skip


def read_folder(folder: Path) -> dict:
    """{"machine", "parts": {name: how it ended}, name: its result, "tests": counts}."""
    found = {"machine": json.loads((folder / "machine.json").read_text()), "parts": {}}
    lines = folder / "parts.jsonl"
    for line in lines.read_text().splitlines() if lines.exists() else []:
        part = json.loads(line)
        found["parts"][part["part"]] = part  # the last time that it ran
    for name in found["parts"]:
        result = folder / f"{name}.json"
        if result.exists():
            found[name] = json.loads(result.read_text())
    log = folder / "tests.log"
    if log.exists():
        counts = re.findall(r"(\d+) (passed|failed|skipped|error)", log.read_text())
        kinds = ("passed", "failed", "skipped", "error")
        found["tests"] = {kind: sum(int(n) for n, k in counts if k == kind) for kind in kinds}
    return found


# ---- what is written


def table(head: str, rows: list[list]) -> list[str]:
    """Lines of a Markdown table; none without rows."""
    if not rows:
        return []
    columns = head.split(" | ")
    lines = [f"| {head} |", "|---" * len(columns) + "|"]
    return [*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows), ""]


def bar(value: float, least: float, found: dict, unit: str = "") -> str:
    """The bar, and whether it is reached; bars are for an H100 or H200."""
    text = f"{least:.0%}" if unit == "%" else f"{least:,g}{unit}"
    if not any(name in found["machine"]["card"] for name in HOPPER):
        return "–"
    return f"{text}: {'reached' if value >= least else '**not reached**'}"


def head(found: dict) -> list[str]:
    m = found["machine"]
    names = {
        "CUDA": "cuda", "cuDNN": "cudnn", "torch": "torch", "Triton": "triton",
        "transformers": "transformers", "flash-attn": "flash_attn", "Python": "python",
    }  # fmt: skip
    versions = ", ".join(f"{name} {m[key]}" for name, key in names.items() if m.get(key))
    size = f"{m['memory_gb']} GB"
    size += f", capability {m['capability']}" if "capability" in m else ""
    lines = [f"**{m['card']}** ({size}); {versions}; commit {m['commit']}."]
    ended = [p for p in found["parts"].values() if p["status"]]
    for part in ended:
        how = "was cut off" if part["status"] in (124, 137) else f"failed ({part['status']})"
        lines.append(f"Part `{part['part']}` {how} after {part['seconds']} s.")
    return [*lines, ""]


def correctness(found: dict) -> list[str]:
    lines = []
    if "tests" in found:
        counts = [f"{n} {kind}" for kind, n in found["tests"].items() if n]
        lines.append(f"GPU tests: {', '.join(counts) or 'none ran'}.")
    if "curve" in found:
        c = found["curve"]
        lines.append(
            f"Losses of {c['steps']} updates of `demo` beside a CPU's in float32: "
            f"{'they agree' if c['agrees'] else '**they part**'}, the largest difference is "
            f"{c['largest_difference']:.2%} ({c['tolerance']:.0%} allowed), the last loss "
            f"{c['last_loss']:.3f} and {c['last_loss_of_cpu']:.3f}."
        )
    return [*lines, ""] if lines else []


def steps(found: dict) -> list[str]:
    """The training step of the three sizes, in rows of 512 and 2,048 tokens."""
    rows = []
    for size in ("30m", "64m", "108m"):
        for tokens in (512, 2048):
            summary = found.get(f"train_{size}_{tokens}")
            if summary is None:
                continue
            run, preset = summary["pretrain"], summary["preset"]
            r = run["results"][0]
            rows.append([
                MODELS[preset], f"{run['rows']} × {run['seq_len']}", f"{r['tokens_per_s']:,.0f}",
                f"{r['step_s'] * 1e3:,.1f}", f"{r['share']:.1%}",
                f"{r['arithmetic_rate'] / 1e12:,.0f}", f"{r['memory_gb']:.1f}",
                bar(r["share"], SHARES.get(preset, 0), found, "%"),
            ])  # fmt: skip
    columns = "model | rows | tokens/s | step, ms | share of the product rate | product, TFLOP/s"
    return table(columns + " | memory, GB | bar", rows)


def beside(found: dict) -> list[str]:
    """Everyone in the runs that compare: ours first."""
    lines = []
    for part, title in (("train_30m_512", "pretrain"), ("experts", "experts")):
        run = found.get(part, {}).get(title)
        if run is None or len(run["results"]) < 2:
            continue
        rows = []
        for r in run["results"]:
            times = run["ratios"][r["name"]]
            is_theirs = r["name"].startswith("transformers") and "compiled" in r["name"]
            rows.append([
                r["name"], f"{r['tokens_per_s']:,.0f}", f"{r['step_s'] * 1e3:,.1f}",
                f"{r['share']:.1%}", f"{r['memory_gb']:.1f}", f"{times:.2f}",
                bar(times, TIMES_THEIRS, found, " ×") if is_theirs else "",
            ])  # fmt: skip
        columns = "tokens/s | step, ms | share | memory, GB | ours is, × | bar"
        lines += table(f"{run['rows']} × {run['seq_len']} | {columns}", rows)
    return lines


def others(found: dict) -> list[str]:
    """Packed conversations, Muon, CUDA graphs: our step alone."""
    rows = []
    for part in ("packed", "muon", "cuda_graphs", "no_cuda_graphs"):
        summary = found.get(part, {})
        run = summary.get("pretrain") or summary.get("fine-tuning")
        if run is None:
            continue
        r = run["results"][0]
        rows.append([
            f"{part.replace('_', ' ')}, {MODELS[summary['preset']]}",
            f"{run['rows']} × {run['seq_len']}", f"{r['tokens_per_s']:,.0f}",
            f"{r['step_s'] * 1e3:,.1f}", f"{r['share']:.1%}", f"{r['memory_gb']:.1f}",
        ])  # fmt: skip
    lines = table("step | rows | tokens/s | step, ms | share | memory, GB", rows)
    adamw, muon = (
        found.get(part, {}).get("pretrain", {}).get("results") for part in ("train_64m_512", "muon")
    )
    if adamw and muon:
        times = muon[0]["step_s"] / adamw[0]["step_s"]
        lines += [f"A step with Muon takes {times:.2f} times AdamW's.", ""]
    profile = found.get("train_64m_512", {}).get("pretrain", {}).get("profile")
    if profile:
        parts = [f"{share:.0%} {kind}" for kind, share in profile.items() if kind != "seconds"]
        lines += [f"64M, rows of 512: {', '.join(parts)} (idle: of the step's time).", ""]
    return lines


def decoding(found: dict) -> list[str]:
    run = found.get("generate")
    if run is None:
        return []
    rows = []
    for name, r in run["batch_1"].items():
        row = [name, f"{r['tokens_per_s']:,.0f}", f"{r['of_limit']:.0%}"]
        rows.append([*row, *(f"{rates[name]:,.0f}" for rates in run["batches"].values())])
    ours = [name for name in run["batch_1"] if name.startswith("ours")]
    best = max(run["batch_1"][name]["tokens_per_s"] for name in ours)
    row = ["bar, of the best", bar(best, DECODE_1, found), ""]
    for number, rates in run["batches"].items():
        many = max(rates[name] for name in ours)
        row.append(bar(many, DECODE_64, found) if number == "64" else "")
    title = f"`{run['preset']}`, tokens/s | 1 row | of the memory's limit"
    return table(" | ".join([title, *(f"{n} rows" for n in run["batches"])]), [*rows, row])


def saving(found: dict) -> list[str]:
    run = found.get("checkpoint")
    if run is None:
        return []
    return [
        f"Saving `{run['preset']}` ({run['bytes'] / 1e6:,.0f} MB): training waits "
        f"{run['median']['stall'] * 1e3:.1f} ms, {run['share']:.1%} of the time that a save takes.",
        "",
    ]


def main():
    args = parse_args()
    if args.machine:
        found = machine(args.device)
        args.folder.mkdir(parents=True, exist_ok=True)
        (args.folder / "machine.json").write_text(json.dumps(found) + "\n")
        print(json.dumps(found))
        return
    if not (args.folder / "machine.json").exists():
        raise ValueError(f"{args.folder}: no machine.json; gpu.sh writes it")
    found = read_folder(args.folder)
    sections = (head, correctness, steps, beside, others, decoding, saving)
    print("\n".join(line for section in sections for line in section(found)).rstrip())


if __name__ == "__main__":
    cli.run(main)
