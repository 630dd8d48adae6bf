"""What each stage of the demo improved, as a table.

    python scripts/demo_table.py            # after the four training scripts with their defaults

Everything is measured here, anew, on questions and pairs that were held out: exact match of greedy
answers before and after SFT and LoRA, alone and after turns on other subjects, in both languages;
how often the preferred answer is the likelier one (log-probability per token) before and after DPO;
below the table, what SFT answers right by skill. Speed (of tokens that are targets: in
conversations, those of the answers) and minutes are the runs' own.
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
from dataset.dpo import DPODataset
from dataset.encoded import HELD_OUT, Part
from dataset.readers import read_records
from dataset.record_cache import encoded_records
from dataset.tokenizer import load_tokenizer
from model import lora
from model.hf_format import load_model, weights_sha256
from tasks.text import is_exact
from training import cli
from training.checkpoint import adapter_folder, model_folder
from training.distributed import init_distributed
from training.evaluation import ask, read_questions
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


def share(right: dict[str, list[bool]]) -> str:
    """The share of all answers that are right."""
    answers = [answer for of_a_skill in right.values() for answer in of_a_skill]
    return f"{sum(answers) / len(answers):.1%}"


def by_skill(right: dict[str, list[bool]]) -> str:
    """ "facts 100/100, arithmetic 25/44" """
    return ", ".join(f"{skill} {sum(answers)}/{len(answers)}" for skill, answers in right.items())


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

    def right(model, file: str, chat: bool = True) -> dict[str, list[bool]]:
        """By skill, for each question of a file: whether the greedy answer is exactly right."""
        questions = read_questions(demo[file], tokenizer, chat)
        answers = ask(model, tokenizer, questions)
        skills = [record.fields.get("skill") for record in read_records(demo[file])]
        found = defaultdict(list)
        for skill, question, answer in zip(skills, questions, answers, strict=True):
            found[skill].append(is_exact(question, answer))
        return found

    # the pairs that train_dpo.py held out
    used = json.loads((runs["dpo"] / "args.json").read_text())
    pairs = encoded_records("pairs", [demo["dpo.jsonl"]], tokenizer, used["cache_dir"])
    pairs = DPODataset(pairs, used["max_seq_len"], Part(HELD_OUT, used["val_fraction"]))

    def answers_log_probs(model) -> torch.Tensor:
        return pair_log_probs(model, pairs, 2, ranks, nullcontext()).cpu()

    def preferred(log_probs: torch.Tensor) -> float:
        per_token = log_probs / pairs.answer_lengths
        return (per_token[:, 0] > per_token[:, 1]).float().mean().item()

    def row(stage: str, what: str, before: str, after: str, speed: str = "", minutes: str = ""):
        """Print a row, as soon as it is measured."""
        if stage in runs:
            speed, minutes = speed_and_minutes(runs[stage])
        line = f"{stage:<9} {what:<36} {before:>7} {after:>7} {speed:>15} {minutes:>8}"
        print(line.rstrip(), flush=True)

    row("stage", "held out", "before", "after", "speed", "minutes")
    single, turns, shop = "questions.jsonl", "multi_turn_questions.jsonl", "lora_questions.jsonl"
    exactly, after_others = "questions answered exactly", "questions after other subjects"

    records = read_metrics(runs["pretrain"] / "metrics.jsonl")
    losses = [record["val_loss"] for record in records if "val_loss" in record]
    row("pretrain", "held-out loss, nats per token", f"{losses[0]:.2f}", f"{losses[-1]:.2f}")

    base = load_model(folders["pretrain"], ranks.device)
    sft = load_model(folders["full_sft"], ranks.device)
    sft_single = right(sft, single)
    row("full_sft", exactly, share(right(base, single, chat=False)), share(sft_single))
    sft_turns = right(sft, turns)
    row("", after_others, share(right(base, turns, chat=False)), share(sft_turns))

    shop_before = right(sft, shop)
    lora.load_adapter(sft, folders["lora"], weights_sha256(folders["full_sft"]))
    row("lora", "toy-shop " + exactly, share(shop_before), share(right(sft, shop)))
    lora.detach(sft)

    dpo = load_model(folders["dpo"], ranks.device)
    before, after = answers_log_probs(sft), answers_log_probs(dpo)
    accuracies = (f"{preferred(log_probs):.1%}" for log_probs in (before, after))
    row("dpo", "preferred answer is the likelier", *accuracies)
    margins = (after - before)[:, 0] - (after - before)[:, 1]
    row("", "its margin, nats", "0.0", f"{margins.mean():.1f}")
    row("", exactly, share(sft_single), share(right(dpo, single)))
    row("", after_others, share(sft_turns), share(right(dpo, turns)))
    print(f"by skill, after SFT: {by_skill(sft_single)}")
    print(f"    after other subjects: {by_skill(sft_turns)}")


if __name__ == "__main__":
    cli.run(main)
