"""Sampling beside plain decoding, and an update on packed rows beside one on padded ones.

    python benchmarks/bench_rollouts.py                  # out/full_sft: two minutes on one core
    python benchmarks/bench_rollouts.py --dtype bfloat16 --threads 2

Sampling: tokens/s of `training.completions.sample`, the copy of the weights for decoding included,
beside the batch rates of bench_generate.py, its plain loop and its engine, greedily and without a
reward in sight. Weights are random, so that hardly a completion ends early; as many sequences, all
prompts and all completions of one length. "no prompt shared": each sequence has a prompt of its
own, on both sides; "groups": --num_generations have the same one, on our side.

Updates: completions of two kinds, the demo's sums as the model answers them, and a mix of short and
long ones, of random ids: lengths exp(N(ln 40, 0.8)), at most 256, prompts of 20 to 60 tokens. Once
they are packed as train_grpo.py does it, those that are alike once; once they are padded as trl
does it: one in a row, prompts filled up on the left and completions on the right, logits of all
columns of completions. Model, loss, optimizer and precision are the same, micro-batches have at
most --micro_batch tokens, filling included, on both sides. Rewards differ with the text. Told are
useful tokens/s: those of all completions. Both take turns; medians of --repeats rounds after a
warm-up. Last comes a JSON line.
"""

import argparse
import json
import random
import sys
import time
import zlib
from functools import partial
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.bench_generate import in_turns, ours, with_engine
from dataset.tokenizer import load_tokenizer
from model.hf_format import load_config, load_model
from model.model import MiniMindLM
from model.sampling import Sampling
from tasks.task import Completion, Prompt
from train_grpo import group_advantages, policy_loss, token_weights
from training.checkpoint import model_folder
from training.completions import Sample, decoding_copy, sample
from training.optimizers import build_optimizer, clip_gradients
from training.prompts import demo_sums
from training.rollouts import Rollouts, Rows, token_log_probs
from training.terminal import forgive_encodings

MIX = 8  # prompts of the mix


def parse_args():
    kind = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=kind)
    add = parser.add_argument
    add("--model", type=Path, default=Path("out/full_sft"), help="folder or run to start from")
    add("--prompts", type=int, default=16, help="prompts of an update")
    add("--num_generations", type=int, default=8, help="completions of a prompt")
    add("--prompt_tokens", type=int, default=64, help="tokens of a prompt, in sampling")
    add("--new_tokens", type=int, default=64, help="tokens of a completion, in sampling")
    add("--dtype", choices=["float32", "bfloat16"], default="float32", help="precision")
    add("--micro_batch", type=int, default=4096, help="tokens of a micro-batch, filling included")
    add("--repeats", type=int, default=3, help="rounds after the warm-up")
    add("--threads", type=int, default=torch.get_num_threads(), help="threads")
    return parser.parse_args()


def run_of(model: MiniMindLM, args) -> SimpleNamespace:
    """What sampling and packing need of a Run."""
    T = 1024
    flags = SimpleNamespace(
        fsdp=False, temperature=1.0, num_generations=args.num_generations, mask_truncated=False,
        max_seq_len=T, batch_size=max(1, args.micro_batch // T), loss="grpo", max_new_tokens=256,
        beta=0.0, epsilon=0.2, epsilon_high=0.2, scale_rewards="group",
    )  # fmt: skip
    device, dtype = torch.device("cpu"), getattr(torch, args.dtype)
    return SimpleNamespace(
        args=flags, model=model, compiled=model, device=device, dtype=dtype, adapter=None,
        ranks=SimpleNamespace(is_distributed=False), config=model.config,
        autocast=torch.autocast("cpu", dtype, enabled=dtype != torch.float32),
    )  # fmt: skip


# ---- sampling


def sampling_rates(args, folder: Path, tokenizer) -> dict[str, float]:
    """tokens/s by name."""
    torch.manual_seed(0)
    model = MiniMindLM(load_config(folder))
    run, rows = run_of(model, args), args.prompts * args.num_generations
    ids = torch.randint(model.config.vocab_size, (rows, args.prompt_tokens)).tolist()
    drawn: dict[str, list[int]] = {}

    def sampled(name: str, count: int):
        prompts = [Prompt("", own, "") for own in ids[: rows // count]]
        seeds = [str(i) for i in range(len(prompts))]
        groups = sample(decoding_copy(run), tokenizer, prompts, seeds, count, args.new_tokens,
                        Sampling())  # fmt: skip
        drawn.setdefault(name, []).append(sum(len(s.completion.ids) for g in groups for s in g))

    plain = decoding_copy(run)
    loop, engine = ours(plain), with_engine(plain)
    runs = {
        "plain loop": lambda: loop(ids, args.new_tokens),
        "engine": lambda: engine(ids, args.new_tokens),
        "no prompt shared": partial(sampled, "no prompt shared", 1),
        "groups": partial(sampled, "groups", args.num_generations),
    }
    in_turns(runs, 1, "cpu")
    seconds = in_turns(runs, args.repeats, "cpu")
    tokens = {name: drawn.get(name, [rows * args.new_tokens])[-1] for name in runs}
    return {name: tokens[name] / seconds[name] for name in runs}


# ---- updates


def mixed_groups(tokenizer, args) -> list[list[Sample]]:
    """Groups of random ids, of the lengths that the docstring of this file names."""
    draw = random.Random(0)

    def ids(length: int) -> list[int]:
        return [draw.randrange(3, tokenizer.vocab_size) for _ in range(length)]

    groups = []
    for _ in range(MIX):
        prompt = Prompt("", ids(draw.randint(20, 60)), "")
        said = [ids(min(256, 1 + round(draw.lognormvariate(3.69, 0.8))))
                for _ in range(args.num_generations)]  # fmt: skip
        groups.append([Sample(Completion(prompt, "", "", own, False), own, [True] * len(own),
 [0.0] * len(own))
                       for own in said])  # fmt: skip
    return groups


def padded(samples: list[Sample], advantages, weights, rows: int) -> list[Rows]:
    """Micro-batches of so many rows, one completion in each, filled up as trl does it."""
    before = max(len(s.completion.prompt.ids) for s in samples)
    after = max(len(s.completion.ids) for s in samples)
    batches = []
    for begin in range(0, len(samples), rows):
        some = samples[begin : begin + rows]
        X, document_ids = torch.zeros(2, len(some), before + after, dtype=torch.int64)
        for row, one in enumerate(some):
            prompt, ids = one.completion.prompt.ids, one.completion.ids
            start, end = before - len(prompt), before + len(ids)
            X[row, start:end] = torch.tensor([*prompt, *ids])
            document_ids[row, start:end] = 1
        columns = torch.arange(before - 1, before + after - 1)  # which predict completions
        places = (torch.arange(len(some))[:, None] * X.shape[1] + columns).flatten()
        mask = document_ids[:, before:].flatten().float()
        sequences = torch.arange(len(some)).repeat_interleave(after)
        own = advantages[begin : begin + rows], weights[begin : begin + rows]
        of_sequence, counted = (values.repeat_interleave(after) for values in own)
        batches.append(Rows(X, document_ids, places, X[:, before:].flatten(), mask, sequences,
                            of_sequence, counted * mask, 0 * mask, mask.mean()))  # fmt: skip
    return batches


def update(run, optimizer, make_rows) -> None:
    """An update as train_grpo.py makes it, from arranging the rows to the optimizer's step."""
    for rows in make_rows():
        with run.autocast:
            logits, _ = run.model(**rows.inputs)
        log_probs, _ = token_log_probs(logits, rows.Y, 1.0)
        rows.old = log_probs.detach()
        losses, _ = policy_loss(log_probs, rows, run.args)
        (losses * rows.weights).sum().backward()
    clip_gradients(run.model, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def update_rates(args, folder: Path, groups: list[list[Sample]], tokenizer) -> dict:
    """Useful tokens/s of both layouts, and how many tokens each computes for a useful one."""
    run = run_of(load_model(folder).train(), args)
    rollouts = Rollouts(run, tokenizer, [("given", 1.0, None)])
    rewards = torch.tensor([[zlib.crc32(repr(s.ids).encode()) / 2**32 for s in g] for g in groups])
    advantages = group_advantages(rewards, run.args)
    samples = [s for group in groups for s in group]
    for one in samples:
        one.rewards = [0.0]
    lengths = torch.tensor([float(len(s.completion.ids)) for s in samples])
    weights = token_weights(lengths, len(samples), lengths.sum(), run.args)
    longest = max(len(s.completion.prompt.ids) for s in samples) + int(lengths.max())
    rows = max(1, args.micro_batch // longest)
    layouts = {
        "packed": partial(rollouts.rows, groups, rewards, advantages, token_weights, compact=True),
        "padded": partial(padded, samples, advantages.flatten(), weights, rows),
    }
    optimizer = build_optimizer("adamw", run.model, 1e-6, 0.0, run.dtype)
    runs = {name: partial(update, run, optimizer, make) for name, make in layouts.items()}
    in_turns(runs, 1, "cpu")
    seconds, useful = in_turns(runs, args.repeats, "cpu"), lengths.sum().item()
    computed = {n: sum(r.X.numel() for r in make()) / useful for n, make in layouts.items()}
    return {
        "lengths": [int(lengths.min()), round(lengths.mean().item(), 1), int(lengths.max())],
        "tokens_per_s": {name: round(useful / s, 1) for name, s in seconds.items()},
        "computed_per_useful": {name: round(value, 2) for name, value in computed.items()},
        "ratio": round(seconds["padded"] / seconds["packed"], 2),
    }


def main():
    forgive_encodings()
    args = parse_args()
    torch.set_num_threads(args.threads)
    folder, begin = model_folder(args.model, "--model"), time.perf_counter()
    tokenizer = load_tokenizer(folder)
    rates = sampling_rates(args, folder, tokenizer)
    plain = max(rates["plain loop"], rates["engine"])
    print("sampling" + " " * 14 + "tokens/s   of the faster plain one")
    for name, rate in rates.items():
        print(f"{name:20}{rate:10,.0f}{rate / plain:10.0%}", flush=True)

    run = run_of(load_model(folder), args)
    prompts = demo_sums(tokenizer)[0][: args.prompts]
    seeds = [str(i) for i in range(len(prompts))]
    sums = sample(decoding_copy(run), tokenizer, prompts, seeds, args.num_generations, 64,
                  Sampling())  # fmt: skip
    updates = {}
    print("\nupdates, useful tokens/s      packed    padded   ratio   computed for a useful one")
    for kind, groups in (("the demo's sums", sums), ("mix", mixed_groups(tokenizer, args))):
        found = updates[kind] = update_rates(args, folder, groups, tokenizer)
        rate, computed = found["tokens_per_s"], found["computed_per_useful"]
        print(f"{kind:24}{rate['packed']:12,.0f}{rate['padded']:10,.0f}{found['ratio']:7.2f} x"
              f"{computed['packed']:10.2f} packed, {computed['padded']:.2f} padded",
              flush=True)  # fmt: skip
    told = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    shares = {name: round(rate / plain, 3) for name, rate in rates.items()}
    rates = {name: round(rate, 1) for name, rate in rates.items()}
    print(json.dumps({
        "benchmark": "rollouts", **told, "sampling": rates, "of_plain": shares, "updates": updates,
        "least_ratio": min(found["ratio"] for found in updates.values()),
        "minutes": round((time.perf_counter() - begin) / 60, 1),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
