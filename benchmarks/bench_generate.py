"""How fast text is written: ours against transformers' generate, and against the memory's limit.

    python benchmarks/bench_generate.py                    # preset base: seven minutes on 2 cores
    python benchmarks/bench_generate.py --preset demo --new_tokens 64 --no-compile
    python benchmarks/bench_generate.py --device cuda

Both sides open one folder with random weights and write the same number of tokens, greedily. All
variants take turns in one process; the figures are medians of --repeats rounds after a warm-up.
The limit is the time to read every weight once per token, at the rate at which 1 GiB of float32 is
summed right before and after (the faster of the two counts). Last comes one JSON line.
"""

import argparse
import functools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import transformers

from benchmarks.where_time_goes import name_loops, profile_line, where_time_goes
from model.config import PRESETS, LMConfig
from model.decoding_layers import for_decoding
from model.engine import Engine
from model.generation import generate, generate_batch
from model.hf_format import load_model, save_model
from model.model import MiniMindLM
from model.request import Request
from model.sampling import Sampling
from training.terminal import forgive_encodings

GIB = 2**30
DTYPES = ("fp32", "bf16", "int8")
OURS = ("ours", "engine")  # the plain loops, and the engine


def parse_args():
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind)
    add = parser.add_argument
    add("--preset", choices=list(PRESETS), default="base", help="size of the model")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    add("--prompt_tokens", type=int, default=64, help="tokens of every prompt")
    add("--new_tokens", type=int, default=256, help="tokens to write after it")
    text = "rows written together"
    add("--batch_sizes", type=int, nargs="*", default=[32], help=text)
    text = "lengths to measure the time to the first token for, in tokens"
    add("--prompt_lengths", type=int, nargs="*", default=[16, 64, 512], help=text)
    text = "precisions of the weights"
    add("--dtypes", nargs="+", choices=DTYPES, default=DTYPES, help=text)
    add("--repeats", type=int, default=5, help="rounds after the warm-up")
    text = "also measure compiled steps (compiling takes up to a minute each the first time)"
    add("--compile", action=argparse.BooleanOptionalAction, default=True, help=text)
    text = "also say what the time goes to, of one row in float32 and of many in bfloat16"
    add("--profile", action="store_true", help=text)
    return parser.parse_args()


def seconds(run: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def all_times(runs: dict[str, Callable], repeats: int, device: str) -> dict[str, list[float]]:
    """Seconds of every run, all taking turns `repeats` times."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(seconds(run, device))
    return times


def in_turns(runs: dict[str, Callable], repeats: int, device: str) -> dict[str, float]:
    """Median seconds of every run, all taking turns `repeats` times."""
    return {name: statistics.median(t) for name, t in all_times(runs, repeats, device).items()}


def weight_bytes(model: MiniMindLM) -> int:
    """Bytes of the matrices that one token is multiplied with (of experts: the chosen ones)."""
    config, total = model.config, 0
    share = config.num_experts_per_tok / config.num_experts if config.use_moe else 1
    weights = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, weight in weights.items():
        # a tied embedding is the head as well; as an embedding one row is read
        if weight.ndim == 1 or ("embed_tokens" in name and "lm_head.weight" in weights):
            continue
        in_experts = ".mlp." in name and config.use_moe and "mlp.gate.weight" not in name
        total += int(weight.numel() * weight.element_size() * (share if in_experts else 1))
    return total


def ours(model: MiniMindLM) -> Callable[[list[list[int]], int], None]:
    def run(prompts: list[list[int]], new_tokens: int):
        if len(prompts) > 1:
            found = generate_batch(model, prompts, new_tokens, set(), temperature=0)
        else:
            found = [list(generate(model, prompts[0], new_tokens, set(), temperature=0))]
        assert all(len(tokens) == new_tokens for tokens in found)

    return run


def with_engine(
    model: MiniMindLM, compiled: bool = False
) -> Callable[[list[list[int]], int], None]:
    """The same through model/engine.py, which evaluation, chat and the server decode with."""
    engines: dict[int, Engine] = {}

    def run(prompts: list[list[int]], new_tokens: int):
        rows = len(prompts)
        if rows not in engines:  # all prompts at once, as the others read them
            engines[rows] = Engine(model, rows, kept=0, prompt_tokens=1 << 20, compiled=compiled)
        engine = engines[rows]
        engine.forget()
        greedy = Sampling(temperature=0)
        requests = [Request(prompt, new_tokens, sampling=greedy) for prompt in prompts]
        for request in requests:
            engine.add(request)
        while engine.has_work:
            engine.step()
        assert all(len(request.tokens) == new_tokens for request in requests)

    return run


def theirs(model) -> Callable[[list[list[int]], int], None]:
    never = model.config.vocab_size + 1  # an id that ends nothing, since it never comes

    def run(prompts: list[list[int]], new_tokens: int):
        ids = torch.tensor(prompts, device=model.device)
        found = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False,
            eos_token_id=never, pad_token_id=0,
        )  # fmt: skip
        assert found.shape[1] == ids.shape[1] + new_tokens

    return run


def main():
    args = parse_args()
    device = torch.device(args.device)
    if args.profile:
        name_loops(device)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    config = LMConfig.preset(args.preset)
    variants, sizes = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        save_model(MiniMindLM(config), folder, eos_token_id=0)
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            if name not in args.dtypes:
                continue
            model = load_model(folder, args.device, dtype)
            sizes[name] = weight_bytes(model)
            fast = for_decoding(model)
            variants[f"ours {name}"] = ours(fast)
            variants[f"engine {name}"] = with_engine(fast)
            if args.compile:
                variants[f"engine {name} compiled"] = with_engine(
                    for_decoding(model), compiled=True
                )
            there = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
            variants[f"transformers {name}"] = theirs(there.eval().to(args.device))
        if "int8" in args.dtypes:
            int8 = for_decoding(load_model(folder, args.device, torch.bfloat16), int8=True)
            sizes["int8"] = weight_bytes(int8)
            variants["ours int8"] = ours(int8)
            if args.compile:
                variants["engine int8 compiled"] = with_engine(int8, compiled=True)

    def prompts(rows: int, length: int) -> list[list[int]]:
        return torch.randint(config.vocab_size, (rows, length)).tolist()

    def runs_of(names: list[str], rows: int, length: int, new: int) -> dict[str, Callable]:
        batch = prompts(rows, length)
        return {name: lambda n=name: variants[n](batch, new) for name in names}

    threads = torch.get_num_threads()
    machine = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {threads} threads"
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {machine}")
    print(f"preset {args.preset}, {args.prompt_tokens}-token prompts, {args.new_tokens} new tokens")
    starts = {}  # the first run of a compiled variant compiles
    for name, run in variants.items():
        starts[name] = seconds(lambda: run(prompts(1, args.prompt_tokens), 8), args.device)  # noqa: B023
        run(prompts(1, args.prompt_tokens), 8)

    memory = torch.ones(GIB // 4, device=args.device)
    names = list(variants)
    first = in_turns(runs_of(names, 1, args.prompt_tokens, 1), args.repeats, args.device)
    runs = {}  # reading before, between and after all variants
    for name, run in runs_of(names, 1, args.prompt_tokens, args.new_tokens).items():
        runs |= {f"read before {name}": memory.sum, name: run}
    times = all_times(runs | {"read after": memory.sum}, args.repeats, args.device)
    reads = [t for name, t in times.items() if name.startswith("read")]
    bandwidth = GIB / statistics.median(t for read in reads for t in read)  # bytes per second
    result = {"bandwidth_gb_s": round(bandwidth / 1e9, 1), "batch_1": {}, "batches": {}, "ttft": {}}
    print(f"\nreading memory: {bandwidth / 1e9:.1f} GB/s. Batch 1:\n")
    print("| variant | first run s | first token ms | tokens/s | after the first | of the limit |")
    print("|---|---|---|---|---|---|")
    for i, name in enumerate(names):
        rate = args.new_tokens / statistics.median(times[name])
        steps = [(args.new_tokens - 1) / (t - first[name]) for t in times[name]]  # per second
        after = statistics.median(steps)
        read = zip(steps, reads[i], reads[i + 1])
        bytes_a_step = sizes[name.split()[1]]
        of_limit = statistics.median(
            step * bytes_a_step * min(before, behind) / GIB for step, before, behind in read
        )
        print(
            f"| {name} | {starts[name]:.1f} | {first[name] * 1e3:.1f} | {rate:.1f} | {after:.1f} "
            f"| {of_limit:.0%} |",
            flush=True,
        )
        result["batch_1"][name] = {
            "first_token_ms": round(first[name] * 1e3, 2), "tokens_per_s": round(rate, 1),
            "after_first_per_s": round(after, 1), "of_limit": round(of_limit, 3),
        }  # fmt: skip

    def best(sides: tuple[str, ...]) -> float:  # of float32 and bfloat16
        floating = [n for n in names if n.startswith(sides) and "int8" not in n]
        return max((result["batch_1"][n]["tokens_per_s"] for n in floating), default=float("nan"))

    eager = [name for name in names if "compiled" not in name]
    header = f"| {' | '.join(names)} |\n{'|---' * (len(names) + 1)}|"
    if args.batch_sizes:
        title = "Several rows together, tokens/s of all (times our best single row):"
        print(f"\n{title}\n\n| rows {header}")
    for rows in args.batch_sizes:
        size = (rows, args.prompt_tokens, args.new_tokens)
        compiled = [name for name in names if "compiled" in name]
        in_turns(runs_of(compiled, rows, args.prompt_tokens, 2), 1, args.device)
        medians = in_turns(runs_of(names, *size), max(3, args.repeats - 2), args.device)
        rates = {name: round(rows * args.new_tokens / t, 1) for name, t in medians.items()}
        shown = (f"{rates[name]} ({rates[name] / best('ours'):.1f})" for name in names)
        print(f"| {rows} | {' | '.join(shown)} |", flush=True)
        result["batches"][rows] = rates

    if args.profile:
        kind = " compiled" if args.compile else ""
        result["profiles"] = {}
        print("\nWhat the time goes to:\n")
        many = max(args.batch_sizes, default=1)
        for name, rows in (("engine fp32", 1), ("engine bf16", many)):
            if name not in variants:
                continue
            batch = prompts(rows, args.prompt_tokens)
            run = functools.partial(variants[name + kind], batch, args.new_tokens)
            shares = where_time_goes(run, device, steps=1)
            print(f"{name}{kind}, rows: {rows}: {profile_line(shares)}")
            result["profiles"][f"{name}{kind}, {rows}"] = shares

    if args.prompt_lengths:
        print("\nTime to the first token, ms:\n")
        print(f"| prompt | {' | '.join(eager)} |")
        print("|---" * (len(eager) + 1) + "|")
    for length in args.prompt_lengths:
        medians = in_turns(runs_of(eager, 1, length, 1), args.repeats, args.device)
        print(f"| {length} | {' | '.join(f'{medians[name] * 1e3:.1f}' for name in eager)} |")
        result["ttft"][length] = {name: round(t * 1e3, 2) for name, t in medians.items()}

    result["best_over_transformers"] = round(best(OURS) / best(("transformers",)), 2)
    print(json.dumps(vars(args) | result))


if __name__ == "__main__":
    forgive_encodings()
    main()
