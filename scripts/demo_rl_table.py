"""What each stage of `make demo-rl` improved, as a table.

    python scripts/demo_rl_table.py         # after the commands of `make demo-rl`

Everything is measured here, anew, on questions and pairs that were held out, with greedy answers:
sums in words that no training file has, answered from memory and with the calculator; the score
that the reward model gives to answers to thanks, and how many of them are the kind sentence; the
loss of the same small model, taught by the data alone and by a larger one, too. Minutes are those
of the stage's runs together.
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
from tasks.task import Completion, Prompt
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
    "full_sft", "grpo", "calculator_sft", "grpo_calculator", "reward", "kind", "ppo",
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

    def answers(
        run: str, prompts: list[Prompt], tools: Tools | None = None, temperature: float = 0
    ) -> list[Completion]:
        model = for_decoding(load_model(folders[run], device)).eval()
        seeds = [f"table/{i}" for i in range(len(prompts))]
        sampling = Sampling(temperature=temperature)
        groups = sample(model, tokenizer, prompts, seeds, 1, 128, sampling, tools=tools)
        return [group[0].completion for group in groups]

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
    said = {run: answers(run, thanks) for run in ("kind", "ppo")}
    scores = {run: score(completions) for run, completions in said.items()}
    spread = stdev(score(answers("kind", thanks, temperature=1)))
    told = [f"{mean(scores[run]):.2f}" for run in ("kind", "ppo")]
    row("ppo", f"score of thanks (deviation {spread:.2f})", *told, "kind", "ppo")
    row("", "kind thanks, to the letter", *(f"{mean(map(exact, c)):.1%}" for c in said.values()))
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
