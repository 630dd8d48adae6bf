"""How long an update of GRPO takes: ours against trl's GRPOTrainer.

    python benchmarks/bench_grpo.py                        # out/full_sft, the demo's sums
    python benchmarks/bench_grpo.py --model Qwen3-0.6B --max_new_tokens 128 --dtype bfloat16

Both sides open one folder and take the same prompts, each once: as many prompts, completions of
each and tokens at most in an update, the same threads, precision and loss (grpo, no KL). Rewards
are numbers that differ with every completion, so that all groups have spread but those whose
completions are all the same; once more ours are judged by the task's own reward, with which more
groups have none (trl computes as much for these as for others). Sampling is drawn anew on each
side, so lengths differ a little; told are the seconds of an update, and those of a thousand tokens
of completions. Ours come first, then trl's, medians over the updates after the
first two, in which libraries warm up. Last comes a JSON line.

In bfloat16 our products are computed by autocast over float32 weights. trl has --trl_weights:
float32 (the same) or bfloat16 (all of it, its optimizer's moments included), whichever is faster.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from dataset.tokenizer import load_tokenizer
from training.checkpoint import model_folder
from training.plot import read_metrics
from training.prompts import demo_sums
from training.terminal import forgive_encodings

ROOT = Path(__file__).resolve().parent.parent


REWARD = """import zlib
def score(completions):
    return [zlib.crc32(repr(list(c.ids)).encode()) / 2**32 for c in completions]
"""
SKIPPED = 2  # updates


def parse_args():
    kind = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=kind)
    add = parser.add_argument
    add("--model", type=Path, default=Path("out/full_sft"), help="folder or run to start from")
    add("--prompts", type=int, default=16, help="prompts of an update")
    add("--num_generations", type=int, default=8, help="completions of a prompt")
    add("--max_new_tokens", type=int, default=64, help="longest completion, in tokens")
    add("--dtype", choices=["float32", "bfloat16"], default="float32", help="precision")
    add("--trl_weights", choices=["float32", "bfloat16"], default="bfloat16",
        help="precision of trl's weights with --dtype bfloat16")  # fmt: skip
    add("--updates", type=int, default=7, help="of each side, the first two of which are left out")
    add("--threads", type=int, default=torch.get_num_threads(), help="threads of each side")
    return parser.parse_args()


def ours(args, folder: Path, data: Path, reward: str = "") -> list[tuple[float, float]]:
    """(seconds, tokens of completions) of every update."""
    out, own = data.parent / f"ours{reward}", data.parent / "reward.py"
    own.write_text(REWARD, "utf-8")
    command = [sys.executable, ROOT / "train_grpo.py", "--init_from", folder, "--data_path", data,
               "--val_fraction", 0, "--batch_size", args.prompts, "--max_steps", args.updates,
               "--num_generations", args.num_generations, "--max_new_tokens", args.max_new_tokens,
               "--dtype", args.dtype, "--log_interval", 1, "--out_dir", out, "--no-compile",
               "--reward", reward or f"{own}:score",
               "--save_interval", 10**6, "--cache_dir", data.parent / "cache"]  # fmt: skip
    environment = {"OMP_NUM_THREADS": str(args.threads)}
    subprocess.run(list(map(str, command)), check=True, env=os.environ | environment,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    completions = args.prompts * args.num_generations
    lines = [line for line in read_metrics(out / "metrics.jsonl") if "loss" in line]
    return [(x["sampling_s"] + x["updating_s"], x["length"] * completions) for x in lines]


def theirs(args, folder: Path, data: Path) -> list[tuple[float, float]]:
    """The same of trl."""
    import transformers
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(args.threads)
    records = [json.loads(line) for line in data.read_text("utf-8").splitlines()]
    prompts = [[{"role": "user", "content": record["question"]}] for record in records]
    updates, begin = [], time.perf_counter()

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_, **__):
            nonlocal begin
            updates.append(time.perf_counter() - begin)
            begin = time.perf_counter()

    def reward(completions, completion_ids, **_):
        lengths.append(sum(map(len, completion_ids)))
        return [zlib.crc32(repr(list(ids)).encode()) / 2**32 for ids in completion_ids]

    lengths: list[int] = []
    autocast = args.dtype == "bfloat16" and args.trl_weights == "float32"
    dtype = torch.float32 if autocast else getattr(torch, args.dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    trainer = GRPOTrainer(
        model, reward_funcs=reward, processing_class=tokenizer, callbacks=[Clock()],
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        args=GRPOConfig(
            output_dir=str(data.parent / "trl"), use_cpu=not torch.cuda.is_available(),
            bf16=autocast, report_to="none", gradient_checkpointing=False, loss_type="grpo",
            beta=0.0,
            per_device_train_batch_size=args.prompts * args.num_generations, save_strategy="no",
            num_generations=args.num_generations, max_completion_length=args.max_new_tokens,
            max_steps=args.updates, logging_steps=10**6, disable_tqdm=True, learning_rate=1e-6,
        ),
    )  # fmt: skip
    begin = time.perf_counter()
    trainer.train()
    return list(zip(updates, lengths))


def main():
    forgive_encodings()
    args = parse_args()
    folder = model_folder(args.model, "--model")
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary) / "prompts.jsonl"
        prompts, _ = demo_sums(load_tokenizer(folder))
        prompts = prompts[: args.prompts * args.updates]
        records = [{"question": p.text, "answer": p.answer} for p in prompts]
        data.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), "utf-8")
        result = {}
        with_the_task_s = partial(ours, reward="number=1")
        sides = {"ours": ours, "ours, number=1": with_the_task_s, "trl": theirs}
        for name, side in sides.items():
            updates = side(args, folder, data)[SKIPPED:]
            seconds = statistics.median(s for s, _ in updates)
            per_thousand = statistics.median(1000 * s / n for s, n in updates)
            result[name] = {"update_s": seconds, "s_per_1000_tokens": per_thousand}
            print(
                f"{name:15}{seconds:8.2f} s an update{per_thousand:8.2f} s per 1,000 tokens of "
                "completions", flush=True,
            )  # fmt: skip
    theirs_per_thousand = result["trl"]["s_per_1000_tokens"]
    faster = {name: theirs_per_thousand / figures["s_per_1000_tokens"]
              for name, figures in result.items()}  # fmt: skip
    for name in ("ours", "ours, number=1"):
        print(f"{name}: {faster[name]:.1f} times as fast as trl, by the token")
    told = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    print(json.dumps({"benchmark": "grpo", **told, **result, "faster": faster}))


if __name__ == "__main__":
    main()
