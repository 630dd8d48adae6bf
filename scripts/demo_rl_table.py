"""What each stage of `make demo-rl` improved, as a table.

    python scripts/demo_rl_table.py         # after the commands of `make demo-rl`

On questions and pairs that were held out, answered greedily where nothing else is said: sums in
words that no training file has, from memory and with the calculator; the score that the reward
model gives to sampled answers to thanks, and how many of them are the kind sentence to the letter;
the loss of one small model that learned from the data alone and of one that a teacher taught.
Losses and the reward model's accuracy are the runs' own, the rest is measured here, anew. Minutes
are those of the stage's runs together.
"""

import sys
from functools import partial
from pathlib import Path
from statistics import mean, stdev

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataset.demo import write_demo
from dataset.tokenizer import load_tokenizer
from model.decoding_layers import for_decoding
from model.hf_format import load_model
from model.sampling import Sampling
from tasks.number import number
from tasks.prompts import read_prompts
from tasks.task import Prompt
from tasks.text import exact
from tools.calls import TOOLS
from training import cli
from training.checkpoint import model_folder
from training.completions import Tools, sample
from training.distributed import init_distributed
from training.prompts import demo_sums
from training.run_log import read_metrics
from training.scoring import model_reward

RUNS = (
    "full_sft", "grpo", "calculator_sft", "grpo_calculator", "reward", "manners", "ppo",
    "student_alone", "student",
)  # fmt: skip
CALCULATOR = Tools({"calculator": TOOLS["calculator"]}, max_turns=4)


def parse_args():
    parser = cli.new_parser(__doc__)
    add = parser.add_argument
    add("--out_dir", type=Path, default=Path("out"), help="folder that holds the runs")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    return parser.parse_args()


def minutes(runs: list[Path]) -> str:
    """From a run's first file to its last line, all runs together."""
    ends = [((run / "args.json"), (run / "metrics.jsonl")) for run in runs]
    return f"{sum(b.stat().st_mtime - a.stat().st_mtime for a, b in ends) / 60:.1f}"


def first_and_last(run: Path, name: str) -> tuple[float, float]:
    """A held-out figure of a run before its first update and after its last."""
    found = [line[name] for line in read_metrics(run / "metrics.jsonl") if name in line]
    return found[0], found[-1]


def main():
    args = parse_args()
    device = init_distributed(args.device).device
    demo = write_demo(args.out_dir / "demo_data")
    runs = {name: args.out_dir / name for name in RUNS}
    folders = {name: model_folder(run, "--out_dir") for name, run in runs.items()}
    tokenizer = load_tokenizer(folders["full_sft"])

    def answers(run: str, prompts: list[Prompt], tools=None, count=1, temperature=0.0):
        """`count` completions of every prompt, all in one list."""
        model = for_decoding(load_model(folders[run], device)).eval()
        seeds = [f"table/{i}" for i in range(len(prompts))]
        sampling = Sampling(temperature=temperature)
        groups = sample(model, tokenizer, prompts, seeds, count, 96, sampling, tools=tools)
        return [one.completion for group in groups for one in group]

    def right(run: str, prompts: list[Prompt], judge, tools: Tools | None = None) -> str:
        return f"{mean(map(judge, answers(run, prompts, tools))):.1%}"

    def row(stage: str, what: str, before: str, after: str, *of_runs: str):
        """Print a row, as soon as it is measured."""
        told = minutes([runs[name] for name in of_runs]) if of_runs else ""
        print(f"{stage:<13} {what:<42} {before:>7} {after:>7} {told:>8}".rstrip(), flush=True)

    print(f"{'stage':<13} {'held out':<42} {'before':>7} {'after':>7} {'minutes':>8}")

    _, sums = demo_sums(tokenizer)
    in_words = partial(right, prompts=sums, judge=number)
    row("grpo", "sums in new words", in_words("full_sft"), in_words("grpo"), "grpo")

    _, sums = demo_sums(tokenizer, CALCULATOR.descriptions)
    calculated = partial(right, prompts=sums, judge=number, tools=CALCULATOR)
    before, after = calculated("calculator_sft"), calculated("grpo_calculator")
    row("calculator", "the same, by calling it", before, after, "calculator_sft", "grpo_calculator")

    before, after = first_and_last(runs["reward"], "val_accuracy")
    row("reward model", "better answer scores higher", f"{before:.1%}", f"{after:.1%}", "reward")

    thanks = read_prompts(demo["manners_questions.jsonl"], tokenizer)
    score = model_reward(device)(folders["reward"])
    sampled = [answers(run, thanks, count=4, temperature=1.0) for run in ("manners", "ppo")]
    before, after = map(score, sampled)
    told = f"{mean(before):.2f}", f"{mean(after):.2f}"
    row("ppo", f"score of thanks (deviation {stdev(before):.2f})", *told, "manners", "ppo")
    row("", "thanks answered kindly", *(f"{mean(map(exact, some)):.1%}" for some in sampled))
    questions = read_prompts(demo["questions.jsonl"], tokenizer)
    exactly = partial(right, prompts=questions, judge=exact)
    row("", "other questions answered exactly", exactly("full_sft"), exactly("ppo"))

    _, alone = first_and_last(runs["student_alone"], "val_loss")
    _, taught = first_and_last(runs["student"], "val_loss")
    told = f"{alone:.3f}", f"{taught:.3f}"
    row("distillation", "loss, without and with a teacher", *told, "student_alone", "student")


if __name__ == "__main__":
    with torch.no_grad():
        cli.run(main)
