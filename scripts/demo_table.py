"""What each stage of the demo improved, as a table.

    python scripts/demo_table.py            # after the four training scripts with their defaults

Everything is measured here, anew, on questions and pairs that were held out: exact match of greedy
answers before and after SFT and LoRA, and how often the preferred answer is the likelier one (log-
probability per token) before and after DPO; below the table, what SFT answers right by skill. Speed
(of tokens that are targets: in conversations, those of the answers) and minutes are the runs' own.
"""

import json
import sys
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataset.demo import write_demo
from dataset.dpo import DPODataset, EncodedPairs
from dataset.pairs import read_pairs
from dataset.readers import read_records
from dataset.tokenizer import load_tokenizer
from model import lora
from model.hf_format import load_model, weights_sha256
from training import cli
from training.checkpoint import adapter_folder, model_folder
from training.distributed import init_distributed
from training.evaluation import ask, exact_match, is_exact, read_questions
from training.reference import pair_log_probs
from training.run_log import read_metrics


def parse_args():
    parser = cli.new_parser(__doc__)
    add = parser.add_argument
    add("--out_dir", type=Path, default=Path("out"), help="folder that holds the four runs")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    return parser.parse_args()


def speed_and_minutes(run: Path) -> tuple[str, str]:
    """A run's median speed and the minutes from its first file to its last line."""
    records = read_metrics(run / "metrics.jsonl")
    unit = "pairs" if any("pairs_per_s" in record for record in records) else "tokens"
    speed = median(r[f"{unit}_per_s"] for r in records if f"{unit}_per_s" in r)
    seconds = (run / "metrics.jsonl").stat().st_mtime - (run / "args.json").stat().st_mtime
    return f"{speed:,.0f} {unit}/s", f"{seconds / 60:.1f}"


def main():
    args = parse_args()
    ranks = init_distributed(args.device)
    demo = write_demo(args.out_dir / "demo_data")
    runs = {name: args.out_dir / name for name in ("pretrain", "full_sft", "lora", "dpo")}
    folders = {
        name: (adapter_folder if name == "lora" else model_folder)(run, "--out_dir")
        for name, run in runs.items()
    }
    tokenizer = load_tokenizer(folders["full_sft"])

    def match(model, file: str, chat: bool = True) -> float:
        questions = read_questions(demo[file], tokenizer, chat)
        return exact_match(questions, ask(model, tokenizer, questions))

    # the pairs that train_dpo.py held out
    used = json.loads((runs["dpo"] / "args.json").read_text())
    pairs = EncodedPairs(read_pairs(demo["dpo.jsonl"]), tokenizer, used["max_seq_len"])
    pairs = DPODataset(pairs.split(used["val_fraction"])[1], used["max_seq_len"])

    def match_by_skill(model) -> str:
        """ "facts 100/100, sums 25/44" over the held-out questions."""
        questions = read_questions(demo["questions.jsonl"], tokenizer)
        answers = ask(model, tokenizer, questions)
        skills = [r.fields["skill"] for r in read_records(demo["questions.jsonl"])]
        right = defaultdict(list)
        for skill, question, answer in zip(skills, questions, answers, strict=True):
            right[skill].append(is_exact(question, answer))
        return ", ".join(f"{skill} {sum(r)}/{len(r)}" for skill, r in right.items())

    def answers_log_probs(model) -> torch.Tensor:
        return pair_log_probs(model, pairs, 2, ranks, nullcontext()).cpu()

    def preferred(log_probs: torch.Tensor) -> float:
        per_token = log_probs / pairs.answer_lengths
        return (per_token[:, 0] > per_token[:, 1]).float().mean().item()

    base = load_model(folders["pretrain"], ranks.device)
    sft = load_model(folders["full_sft"], ranks.device)
    dpo = load_model(folders["dpo"], ranks.device)
    base_match = match(base, "questions.jsonl", chat=False)
    sft_match, dpo_match = (match(model, "questions.jsonl") for model in (sft, dpo))
    by_skill = match_by_skill(sft)
    shop_before = match(sft, "lora_questions.jsonl")
    before, after = answers_log_probs(sft), answers_log_probs(dpo)
    margins = (after - before)[:, 0] - (after - before)[:, 1]
    lora.load_adapter(sft, folders["lora"], weights_sha256(folders["full_sft"]))
    shop_after = match(sft, "lora_questions.jsonl")

    losses = [r["val_loss"] for r in read_metrics(runs["pretrain"] / "metrics.jsonl")
              if "val_loss" in r]  # fmt: skip
    rows = [
        ("pretrain", "held-out loss, nats per token", f"{losses[0]:.2f}", f"{losses[-1]:.2f}"),
        ("full_sft", "questions answered exactly", f"{base_match:.1%}", f"{sft_match:.1%}"),
        ("lora", "toy-shop questions answered exactly", f"{shop_before:.1%}", f"{shop_after:.1%}"),
        ("dpo", "preferred answer is the likelier", f"{preferred(before):.1%}",
         f"{preferred(after):.1%}"),
        ("", "its margin, nats", "0.0", f"{margins.mean():.1f}"),
        ("", "questions answered exactly", f"{sft_match:.1%}", f"{dpo_match:.1%}"),
    ]  # fmt: skip
    print(f"{'stage':<9} {'held out':<36} {'before':>7} {'after':>7} {'speed':>15} {'minutes':>8}")
    for name, what, was, now in rows:
        speed, minutes = speed_and_minutes(runs[name]) if name else ("", "")
        print(f"{name:<9} {what:<36} {was:>7} {now:>7} {speed:>15} {minutes:>8}".rstrip())
    print(f"by skill, after SFT: {by_skill}")


if __name__ == "__main__":
    cli.run(main)
