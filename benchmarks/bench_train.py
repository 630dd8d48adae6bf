"""How fast a training step is: ours beside transformers and beside a plain float32 step.

    python benchmarks/bench_train.py                                     # preset small, rows of 512
    python benchmarks/bench_train.py --preset base --seq_len 1024 --batch_size 32     # on a GPU
    python benchmarks/bench_train.py --moe                # 8 experts, top-2, against a dense model
    python benchmarks/bench_train.py --sft chats.jsonl --seq_len 768     # packed against padded
    python benchmarks/bench_train.py --suite --sft chats.jsonl           # all three

A step is forward, loss, backward, clipping and AdamW, on the same dimensions for everyone. The
contenders take turns in one process, one step each per round; a figure is the median over the
rounds after warm-up. On a machine that others use too only the ratios mean something. "by CPU" is
the ratio of tokens per processor second: with OMP_NUM_THREADS=1, where no thread waits for another,
it hardly depends on what else the machine is doing.

    tokens/s   useful tokens: those of the data, not padding
    share      of the arithmetic rate: useful tokens/s · FLOP per token / the rate of a product of
               two 4096 × 4096 matrices (2048 on a CPU) in the same dtype, measured in every round
    FLOP       per token as training/speed.py counts them
    memory     weights, gradients, moments and activations at the step's peak
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
import transformers
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3MoeConfig

from benchmarks.where_time_goes import name_loops, profile_line, where_time_goes
from dataset.record_cache import encoded_records, with_template
from dataset.sft import SFTDataset
from dataset.tokenizer import load_tokenizer
from model.config import PRESETS, LMConfig
from model.model import MiniMindLM
from training import cli, compute
from training.losses import masked_cross_entropy
from training.optimizers import build_optimizer
from training.speed import flops_per_token


class Batch(NamedTuple):
    """X, Y int64 [B, T]; loss_mask [B, T]; document_ids [B, T] or None; useful: tokens of data."""

    X: torch.Tensor
    Y: torch.Tensor
    loss_mask: torch.Tensor
    document_ids: torch.Tensor | None
    useful: int


class Contender(NamedTuple):
    """step(batch) does one update; flops: operations per useful token."""

    name: str
    step: Callable[[Batch], None]
    batches: list[Batch]
    flops: float
    model: torch.nn.Module


def parse_args():
    parser = cli.new_parser(__doc__)
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="small", help="named size")
    add("--seq_len", type=cli.at_least(2), default=512, help="tokens per row")
    add("--batch_size", type=cli.at_least(1), default=8, help="rows per step")
    add("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="of ours, autocast")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--compile", **cli.BOOL, default=True, help="compile our step, and transformers'")
    text = "in pretraining, ours keeps only each block's input for the backward pass"
    add("--activation_checkpointing", action="store_true", help=text)
    add("--moe", action="store_true", help="8 experts, top-2, against the dense model")
    add("--sft", type=Path, default=None, help="conversations: packed rows against padded ones")
    add("--suite", action="store_true", help="pretraining, experts, and --sft at 768 if given")
    add("--rounds", type=cli.at_least(5), default=5, help="steps measured of each contender")
    add("--only_ours", action="store_true", help="no comparison: our step alone")
    text = "take one step and no figures: what is compiled is found by the next process"
    add("--only_compile", action="store_true", help=text)
    add("--optimizer", choices=["adamw", "muon"], default="adamw", help="of our step")
    text = "our step replayed as CUDA graphs, as --cuda_graphs of the scripts does"
    add("--cuda_graphs", action="store_true", help=text)
    add("--profile", action="store_true", help="also say what our step's time goes to")
    return parser.parse_args()


def our_step(model: MiniMindLM, device, dtype: torch.dtype, args) -> Callable:
    """The step of the training scripts."""
    wrap = compute.compiler(args.compile, device, total_steps=1, cuda_graphs=args.cuda_graphs)
    run, masked_loss = wrap(model), wrap(masked_cross_entropy)
    optimizer = build_optimizer(args.optimizer, model, 1e-4, 0.1, dtype)

    def step(batch: Batch):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits, aux_loss = run(batch.X, batch.document_ids)
            loss = masked_loss(logits, batch.Y, batch.loss_mask) + aux_loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def transformers_step(model, device, dtype: torch.dtype, compile: bool) -> Callable:
    """transformers' own model and loss in one graph, under autocast, with the same fused AdamW.

    Padding is on the right, so causal attention never sees it and needs no mask, which would make
    attention slower.
    """
    run = torch.compile(model, dynamic=False) if compile else model
    optimizer = build_optimizer("adamw", model, 1e-4, 0.1, torch.float32)

    def step(batch: Batch):
        labels = torch.full_like(batch.X, -100)  # shifted by the model
        labels[:, 1:] = batch.Y[:, :-1].masked_fill(batch.loss_mask[:, :-1] == 0, -100)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = run(input_ids=batch.X, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def plain_step(model: MiniMindLM) -> Callable:
    """What small repositories do on a CPU: float32, nothing compiled, AdamW tensor by tensor."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(batch: Batch):
        logits, _ = model(batch.X)
        F.cross_entropy(logits.flatten(0, 1), batch.Y.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def random_batches(config: LMConfig, args, device) -> list[Batch]:
    """One batch of random ids: a step's speed does not depend on what it reads."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, args.batch_size, args.seq_len)
    X, Y = torch.randint(config.vocab_size, shape, generator=generator).to(device)
    return [Batch(X, Y, torch.ones(X.shape, device=device), None, X.numel())]


def sft_batches(dataset: SFTDataset, args, device) -> tuple[list[Batch], float]:
    """Full batches of the dataset's rows in random order, and how many tokens a token sees."""
    rows = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0)).tolist()
    batches, lengths = [], []
    for start in range(0, len(rows) - args.batch_size + 1, args.batch_size)[: args.rounds + 2]:
        items = [dataset[i] for i in rows[start : start + args.batch_size]]
        X, Y, loss_mask, document_ids = (torch.stack(part) for part in zip(*items))
        useful = 0
        for ids, y in zip(document_ids, Y):
            for run, count in zip(*torch.unique_consecutive(ids, return_counts=True)):
                if (y[ids == run] != dataset.encoded.eos_id).any():  # else filling
                    lengths.append(count.item())
                    useful += count.item()
        tensors = [t.to(device) for t in (X, Y, loss_mask, document_ids)]
        batches.append(Batch(*tensors, useful))
    return batches, sum(n * (n + 1) / 2 for n in lengths) / sum(lengths)


def theirs(config: LMConfig, device):
    """transformers' model of the same dimensions with fresh weights in float32."""
    kind = Qwen3MoeConfig if config.use_moe else Qwen3Config
    numbers = kind.from_dict(config.to_hf_dict())
    model = AutoModelForCausalLM.from_config(numbers, attn_implementation="sdpa")
    return model.float().to(device).train()


def measure(contenders: list[Contender], device, dtype: torch.dtype, rounds: int) -> list[dict]:
    """Let everyone take turns, two rounds to warm up and `rounds` that count."""
    cuda = device.type == "cuda"
    size = 4096 if cuda else 2048
    matrix = torch.randn(size, size, device=device, dtype=dtype)

    def timed(function, *args) -> tuple[float, float]:
        """Wall and processor seconds of a call."""
        if cuda:
            torch.cuda.synchronize()
        start, cpu_start = time.perf_counter(), time.process_time()
        function(*args)
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start, time.process_time() - cpu_start

    rates, times = [], {c.name: [] for c in contenders}
    first, memory = {}, {}
    for c in contenders:  # the first step compiles, the second measures memory
        first[c.name] = timed(c.step, c.batches[0])[0]
        memory[c.name] = peak_memory(c, device)
    for i in range(rounds):
        for c in contenders:
            batch = c.batches[(i + 1) % len(c.batches)]
            wall, cpu = timed(c.step, batch)
            times[c.name].append((batch.useful / wall, batch.useful / cpu, wall))
        rates.append(2 * 5 * size**3 / timed(lambda: [matrix @ matrix for _ in range(5)])[0])
    rate = statistics.median(rates)
    results = []
    for c in contenders:
        speed, per_cpu_s, wall = (statistics.median(column) for column in zip(*times[c.name]))
        results.append({
            "name": c.name, "tokens_per_s": speed, "step_s": wall, "tokens_per_cpu_s": per_cpu_s,
            "share": speed * c.flops / rate,
            "memory_gb": memory[c.name] / 1e9, "first_step_s": first[c.name],
            "arithmetic_rate": rate,
        })  # fmt: skip
    return results


def peak_memory(contender: Contender, device) -> float:
    """Bytes in use at the peak of a step: weights, moments, gradients and activations.

    On Linux CPUs weights and moments are counted, and the process's largest growth during the step
    is added: the kernel's high-water mark after everything free was given back.
    """
    batch, model = contender.batches[0], contender.model
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        contender.step(batch)  # the other contenders' weights and moments are in it: subtract them
        state = sum(p.numel() for p in model.parameters()) * 12
        before = torch.cuda.memory_allocated()
        return torch.cuda.max_memory_allocated() - before + state
    state = sum(p.numel() for p in model.parameters()) * 12
    if not sys.platform.startswith("linux"):
        contender.step(batch)
        return float("nan")
    gc.collect()
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status_bytes("VmRSS")
    contender.step(batch)
    return state + status_bytes("VmHWM") - before


def status_bytes(key: str) -> int:
    """A number of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024


# A scenario builds its contenders, ours first, and says how many times as fast ours is meant to be.


def pretrain(args, device, dtype) -> tuple[list[Contender], dict]:
    """Ours, transformers and the plain step on rows of one document."""
    config = LMConfig.preset(args.preset)
    batches, context = random_batches(config, args, device), (args.seq_len + 1) / 2
    kind = f"{args.dtype}, {'compiled' if args.compile else 'eager'}"
    kind += ", Muon" * (args.optimizer == "muon")
    model = MiniMindLM(config).to(device)
    model.activation_checkpointing = args.activation_checkpointing
    entries = [(f"ours, {kind}", our_step(model, device, dtype, args), model)]
    if not args.only_ours:
        for compile in (True, False) if args.compile else (False,):
            model = theirs(config, device)
            name = f"transformers, {args.dtype}, {'compiled' if compile else 'eager'}"
            entries.append((name, transformers_step(model, device, dtype, compile), model))
        model = MiniMindLM(config).to(device)
        entries.append(("plain, float32, eager", plain_step(model), model))
    flops = flops_per_token(entries[0][2], context)
    contenders = [Contender(n, s, batches, flops, m) for n, s, m in entries]
    bars = {"plain, float32, eager": 5.0, f"transformers, {args.dtype}, compiled": 1.4}
    return contenders, bars


def experts(args, device, dtype) -> tuple[list[Contender], dict]:
    """8 experts of which each token uses two, against the dense model of the same active size."""
    dense = LMConfig.preset(args.preset)
    moe = LMConfig.preset(args.preset, use_moe=True)
    contenders = []
    for name, config in (("ours, 8 experts, top-2", moe), ("ours, dense", dense)):
        model = MiniMindLM(config).to(device)
        step = our_step(model, device, dtype, args)
        batches, context = random_batches(config, args, device), (args.seq_len + 1) / 2
        contenders.append(Contender(name, step, batches, flops_per_token(model, context), model))
        if args.only_ours:
            break
    return contenders, {"ours, dense": 0.8}  # a step of 1.25 times the length


def fine_tuning(args, device, dtype) -> tuple[list[Contender], dict]:
    """Our packed rows against transformers with a padded row for every conversation."""
    config = LMConfig.preset(args.preset)
    tokenizer = load_tokenizer(cli.TOKENIZER)
    encoded = with_template(
        tokenizer,
        lambda: encoded_records("conversations", [args.sft], tokenizer, "out/cache", "skip"),
    )
    model, dataset = MiniMindLM(config).to(device), SFTDataset(encoded, args.seq_len)
    model.documents_per_row = dataset.documents_per_row
    batches, context = sft_batches(dataset, args, device)
    step = our_step(model, device, dtype, args)
    flops = flops_per_token(model, context)
    contenders = [Contender("ours, packed", step, batches, flops, model)]
    if not args.only_ours:
        model = theirs(config, device)
        padded = SFTDataset(encoded, args.seq_len, packing=False)
        batches, _ = sft_batches(padded, args, device)
        step = transformers_step(model, device, dtype, compile=True)
        name = "transformers, compiled, padded"
        contenders.append(Contender(name, step, batches, flops, model))
    return contenders, {"transformers, compiled, padded": 4.0}


def report(title: str, results: list[dict], bars: dict) -> dict:
    """Print a table; give back the ratios of our speed to everyone's."""
    print(f"\n{title}; products: {results[0]['arithmetic_rate'] / 1e12:.2f} TFLOP/s")
    columns = f"{'':34s}{'tokens/s':>10s}{'step s':>9s}{'share':>8s}{'memory GB':>11s}"
    print(columns + f"{'first s':>9s}{'ours is':>9s}{'by CPU':>9s}")
    ratios = {}
    for r in results:
        ratio = results[0]["tokens_per_s"] / r["tokens_per_s"]
        by_cpu = results[0]["tokens_per_cpu_s"] / r["tokens_per_cpu_s"]
        ratios[r["name"]] = ratio
        print(
            f"{r['name']:34s}{r['tokens_per_s']:10,.0f}{r['step_s']:9.3f}{r['share']:8.1%}"
            f"{r['memory_gb']:11.2f}{r['first_step_s']:9.1f}{ratio:8.2f}x{by_cpu:8.2f}x"
        )
    for name, bar in bars.items():
        if name in ratios:
            met = "reached" if ratios[name] >= bar else "NOT reached"
            print(f"    at least {bar:g} times '{name}': {met} ({ratios[name]:.2f})")
    return ratios


def main():
    args = parse_args()
    has_gpu = torch.cuda.is_available()
    device = torch.device({"auto": "cuda" if has_gpu else "cpu"}.get(args.device, args.device))
    dtype = getattr(torch, args.dtype)
    if args.profile:
        name_loops(device)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{os.cpu_count()} cores"
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {where}")
    runs = []
    if args.suite or not (args.moe or args.sft):
        runs.append(("pretrain", pretrain, args))
    if args.suite or args.moe:
        runs.append(("experts", experts, args))
    if args.sft:
        at_768 = argparse.Namespace(**vars(args) | ({"seq_len": 768} if args.suite else {}))
        runs.append(("fine-tuning", fine_tuning, at_768))
    summary = {"torch": torch.__version__, "device": where, "preset": args.preset}
    for name, build, settings in runs:
        torch.manual_seed(0)
        contenders, bars = build(settings, device, dtype)
        if args.only_compile:
            for contender in contenders:
                contender.step(contender.batches[0])
            continue
        results = measure(contenders, device, dtype, args.rounds)
        title = f"{name}: {args.preset}, {settings.batch_size} × {settings.seq_len}"
        ratios = report(title, results, bars)
        size = {"rows": settings.batch_size, "seq_len": settings.seq_len}
        summary[name] = size | {"results": results, "ratios": ratios}
        if settings.profile:
            ours = contenders[0]
            shares = where_time_goes(partial(ours.step, ours.batches[0]), device)
            print(f"    {ours.name}: {profile_line(shares)}")
            summary[name]["profile"] = shares
        del contenders
        torch._dynamo.reset()
        gc.collect()
    print(json.dumps(summary))


if __name__ == "__main__":
    cli.run(main)
