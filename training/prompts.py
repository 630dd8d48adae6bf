"""`PromptDataset`: prompts without answers to learn from, each as a row of its own number."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from dataset.chat import can_think
from dataset.demo_text import arithmetic
from dataset.packing import held_out_items
from dataset.records import Problems
from dataset.tokenizer import Tokenizer
from tasks.prompts import read_prompts, to_prompt
from tasks.rewards import check_prompts
from tasks.task import Prompt
from training.completions import Tools, names_of
from training.distributed import local_main_first


class PromptDataset(Dataset):
    """Numbers of prompts: item i is (i,), int64; -1 is a filler.

    prompts         those that can be asked: with the longest completion they fit a row
    num_left_out    of those that do not
    fingerprint     SHA-256 over ids and answers
    """

    documents_per_row = None  # rows are made when there are completions

    def __init__(self, prompts: Sequence[Prompt], longest: int, what: str = "prompt"):
        """longest: tokens that a prompt may have. Raises ValueError if none is left."""
        self.prompts = [prompt for prompt in prompts if len(prompt.ids) <= longest]
        self.num_left_out = len(prompts) - len(self.prompts)
        if not self.prompts:
            raise ValueError(
                f"--max_seq_len: no {what} has at most {max(longest, 0)} tokens, so that a "
                "completion of --max_new_tokens fits a row with it"
            )
        digest = hashlib.sha256()
        for prompt in self.prompts:
            right = (prompt.answer, prompt.calls) if prompt.calls else (prompt.answer,)
            digest.update(repr((prompt.ids, *right)).encode())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, i: int) -> tuple[torch.Tensor]:
        return (torch.tensor(i),)

    def num_prompts(self, rows: np.ndarray) -> np.ndarray:
        """int64 [len(rows)]: 1, and 0 for row -1."""
        return (np.asarray(rows) >= 0).astype(np.int64)

    def place(self, row: int) -> str:
        """Which prompt it is, in words."""
        return repr(" ".join(self.prompts[row].text.split())[:60])

    def summary(self) -> str:
        """For a person: how many, how long."""
        lengths = [len(prompt.ids) for prompt in self.prompts]
        return (
            f"{len(self):,} prompts of {min(lengths)} to {max(lengths)} tokens; "
            f"{self.num_left_out:,} left out as too long"
        )


def prompt_datasets(
    args, tokenizer: Tokenizer, run, tools: Tools
) -> tuple[PromptDataset, PromptDataset | None]:
    """(training, held out or None): prompts of --data_path, of --val_data_path or a fraction.

    Without --data_path they are the demo's sums. Where a record describes no tools, its prompt
    describes these. Raises ValueError if --reward can judge none, and for --enable_thinking of a
    model that cannot think.
    """
    if args.enable_thinking and not can_think(tokenizer):
        raise ValueError(f"--enable_thinking: {args.init_from} was not taught to think (its chat "
                         "template says)")  # fmt: skip
    problems, described = Problems(), tools.descriptions

    def read(paths, flag) -> list[Prompt]:
        return read_prompts(
            paths, tokenizer, flag, args.on_bad_record, problems,
            enable_thinking=args.enable_thinking, tools=described,
        )  # fmt: skip

    with local_main_first(run.ranks):
        held_out = read(args.val_data_path, "--val_data_path") if args.val_data_path else []
        if args.data_path:
            prompts = read(args.data_path, "--data_path")
        else:
            prompts, own_held_out = demo_sums(tokenizer, described, args.enable_thinking)
            held_out = held_out or own_held_out
        if args.on_bad_record == "stop":
            problems.raise_if_any()
        lines = [*problems.lines(), *check_prompts(args.reward, prompts)]
        if args.val_data_path:
            lines += check_prompts(args.reward, held_out, "--val_data_path: --reward")
        for line in lines:
            run.say(line)
        if tools.functions and (names := without_function([*prompts, *held_out], tools)):
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            told = ", ".join(names[:5]) + more
            run.say(
                f"warning: --tools has no {told}, which prompts describe: calls are answered by an "
                "error"
            )
        if not held_out:
            contents = (repr(prompt.ids).encode() for prompt in prompts)
            is_held_out = held_out_items(contents, args.val_fraction)
            held_out = [p for p, is_one in zip(prompts, is_held_out) if is_one]
            prompts = [p for p, is_one in zip(prompts, is_held_out) if not is_one]
    longest = args.max_seq_len + 1 - args.max_new_tokens
    dataset = PromptDataset(prompts, longest)
    if not held_out:
        return dataset, None
    val_dataset = PromptDataset(held_out, longest, "held-out prompt")
    if val_dataset.num_left_out:
        run.say(f"held out: {val_dataset.summary()}")
    return dataset, val_dataset


def without_function(prompts: list[Prompt], tools: Tools) -> list[str]:
    """The names of the tools that prompts describe and nobody can call."""
    described = dict.fromkeys(name for prompt in prompts for name in names_of(prompt))
    return [name for name in described if name not in tools.functions]


def demo_sums(
    tokenizer: Tokenizer, tools: list | None = None, enable_thinking: bool = False
) -> tuple[list[Prompt], list[Prompt]]:
    """The demo's arithmetic in words that its training files have, and in words that none has."""
    both: list[list[Prompt]] = [[], []]
    for lang in ("en", "zh"):
        for equation in arithmetic.EQUATIONS:
            answer = arithmetic.answer(equation, lang)
            asked = arithmetic.training_questions(equation, lang)
            held_out = [arithmetic.held_out_question(equation, lang)]
            for prompts, questions in zip(both, (asked, held_out)):
                for question in questions:
                    fields = {"question": question, "answer": answer}
                    prompts.append(to_prompt(tokenizer, True, enable_thinking, None, tools, fields))
    return both[0], both[1]
