"""How fast the kernels are that training and decoding stand on, beside what they replaced.

    python benchmarks/bench_kernels.py                      # a minute on 2 cores
    python benchmarks/bench_kernels.py --device cuda

Attention, forward and backward: torch's own kernels and what the compiled model uses. Products of
a weight matrix with one token and with 32, in the layouts that decoding chooses from; every matrix
is there so often that the CPU's cache does not hold all copies. All take turns, figures are medians
of --rounds. Last comes one JSON line.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.bench_generate import in_turns
from model.attention import attention, packed_rows
from model.config import PRESETS, LMConfig
from model.decoding_layers import Int8Linear, PackedLinear
from training import cli

A, K, D = 8, 4, 64  # query heads, key heads and head size of the preset `small`
COPIES_BYTES = 512e6
ROWS = ((torch.bfloat16, 4, 512, 1), (torch.bfloat16, 4, 768, 5), (torch.bfloat16, 4, 1024, 1))
ROWS += ((torch.bfloat16, 2, 2048, 1), (torch.float32, 4, 512, 1))


def parse_args():
    parser = cli.new_parser(__doc__)
    add = parser.add_argument
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    add("--preset", choices=PRESETS, default="base", help="whose matrices are multiplied")
    add("--rows", type=cli.at_least(1), default=1, help="times the batch of attention")
    add("--rounds", type=cli.at_least(3), default=7, help="runs measured of each contender")
    return parser.parse_args()


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---- attention


def attention_contenders(ids: Tensor) -> dict[str, Callable]:
    """Functions of q [B, A, T, D], k and v [B, K, T, D]; ids [B, T]: the documents of the rows."""
    packed = bool((ids != 0).any())
    mask = packed_rows(ids).mask if packed else None

    def stock(q, k, v):
        return F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=not packed, enable_gqa=k.shape[1] < q.shape[1]
        )

    def by(backend):
        def run(q, k, v):
            with sdpa_kernel([backend]):
                return stock(q, k, v)

        return run

    def ours(q, k, v):
        return attention(q, k, v, packed_rows(ids) if packed else None)

    def flash_attn(q, k, v):
        return attention(q, k, v, packed_rows(ids, documents_per_row=8))

    compiled = partial(torch.compile, dynamic=False)
    if ids.device.type == "cpu":
        return {"torch's kernel": stock, "ours, compiled": compiled(ours)}
    found = {"cuDNN": by(SDPBackend.CUDNN_ATTENTION), "flash": by(SDPBackend.FLASH_ATTENTION)}
    found |= {"efficient": by(SDPBackend.EFFICIENT_ATTENTION), "ours, compiled": compiled(ours)}
    if packed:
        found["flash-attn"] = compiled(flash_attn)
    return found


def measure_attention(dtype, B: int, T: int, documents: int, args) -> dict[str, float]:
    """Milliseconds of forward and backward together, by contender that can do it."""
    device = torch.device(args.device)
    q, k, v = (
        torch.randn(B, heads, T, D, device=device, dtype=dtype, requires_grad=True)
        for heads in (A, K, K)
    )
    dy = torch.randn_like(q)
    ids = (torch.arange(T, device=device) * documents // T).expand(B, T)

    def both(run):
        torch.autograd.grad(run(q, k, v), (q, k, v), dy)

    runs = {}
    for name, run in attention_contenders(ids).items():
        try:
            for _ in range(2):
                both(run)
        except (RuntimeError, TypeError) as error:  # not for this shape, device or installation
            print(f"    {name}: {str(error).splitlines()[0][:80]}", file=sys.stderr)
            continue
        runs[name] = partial(both, run)
    return {name: 1e3 * t for name, t in in_turns(runs, args.rounds, args.device).items()}


# ---- products


def layers_of(kind: str, weight: Tensor) -> nn.Module:
    if kind == "int8":
        return Int8Linear(weight)
    if kind == "oneDNN":
        return PackedLinear(weight)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def measure_products(shape: tuple[int, int], tokens: int, args) -> dict[str, tuple[float, float]]:
    """By contender: bytes of weights read per second, and operations per second."""
    out_features, in_features = shape
    copies = max(2, int(COPIES_BYTES / (out_features * in_features * 4)))
    runs, sizes = {}, {}
    on_cpu = args.device == "cpu"
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(1, tokens, in_features, device=args.device, dtype=dtype)
        kinds = ["torch", "int8"] if dtype == torch.bfloat16 else ["torch"]
        kinds += ["oneDNN"] if on_cpu and torch.backends.mkldnn.is_available() else []
        for kind in kinds:
            weights = (torch.randn(shape, device=args.device, dtype=dtype) for _ in range(copies))
            layers = [layers_of(kind, weight) for weight in weights]

            def run(layers=layers, x=x):
                return [layer(x) for layer in layers]

            name = f"{short(dtype)}, {kind}"
            runs[name] = run
            sizes[name] = layers[0].weight.element_size()
            if kind == "oneDNN":
                runs[f"{name}, compiled"] = torch.compile(run, dynamic=False)
                sizes[f"{name}, compiled"] = sizes[name]
    with torch.inference_mode():
        for run in runs.values():
            run()
        times = in_turns(runs, args.rounds, args.device)
    numbers = copies * out_features * in_features
    return {
        name: (numbers * sizes[name] / t, 2 * tokens * numbers / t) for name, t in times.items()
    }


def print_table(head: str, rows: dict[str, dict[str, str]]):
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    print(f"\n| {head} | {' | '.join(names)} |\n{'|---' * (len(names) + 1)}|")
    for title, row in rows.items():
        print(f"| {title} | {' | '.join(row.get(name, '–') for name in names)} |")
    sys.stdout.flush()


def main():
    args = parse_args()
    torch.manual_seed(0)
    cuda = args.device == "cuda"
    threads = f"CPU, {torch.get_num_threads()} threads"
    machine = torch.cuda.get_device_name() if cuda else threads
    print(f"torch {torch.__version__}, {machine}")
    result = {"benchmark": "kernels", "device": machine, "attention": {}, "products": {}}

    for dtype, B, T, documents in ROWS:
        title = f"{short(dtype)}, {B * args.rows} × {T}" + ", packed" * (documents > 1)
        result["attention"][title] = measure_attention(dtype, B * args.rows, T, documents, args)
        torch.compiler.reset()
    shown = {
        title: {name: f"{ms:.1f}" for name, ms in row.items()}
        for title, row in result["attention"].items()
    }
    print_table("attention, forward and backward, ms", shown)

    config = LMConfig.preset(args.preset)
    C, I = config.hidden_size, config.intermediate_size
    matrices = {"gate + up": (2 * I, C), "down": (C, I), "head": (config.vocab_size, C)}
    for tokens, unit, scale, index in ((1, "GB/s", 1e9, 0), (32, "TFLOP/s", 1e12, 1)):
        table = {}
        for name, shape in matrices.items():
            rates = measure_products(shape, tokens, args)
            title = f"{name} {shape[0]} × {shape[1]}"
            table[title] = {kind: f"{pair[index] / scale:.3g}" for kind, pair in rates.items()}
            result["products"][f"{title}, {tokens}"] = {k: p[index] for k, p in rates.items()}
            torch.compiler.reset()
            gc.collect()
        print_table(f"{tokens} token{'s' * (tokens > 1)}, {unit}", table)
    print(json.dumps(vars(args) | result))


if __name__ == "__main__":
    cli.run(main)
