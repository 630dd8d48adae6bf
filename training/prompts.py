"""`PromptDataset`: prompts without answers to learn from, each as a row of its own number."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from dataset.packing import held_out_items
from dataset.tokenizer import Tokenizer
from training.distributed import local_main_first
from training.evaluation import read_questions
from training.rewards import Prompt


class PromptDataset(Dataset):
    """Numbers of prompts: item i is (i,), int64; -1 is a filler.

    prompts         those that can be asked: with the longest completion they fit a row
    num_left_out    of those that do not
    fingerprint     SHA-256 over ids and answers
    """

    documents_per_row = None  # rows are made when there are completions

    def __init__(self, prompts: Sequence[Prompt], longest: int):
        """longest: tokens that a prompt may have. Raises ValueError if none is left."""
        self.prompts = [prompt for prompt in prompts if len(prompt.ids) <= longest]
        self.num_left_out = len(prompts) - len(self.prompts)
        if not self.prompts:
            raise ValueError(
                f"--max_seq_len: no prompt has at most {longest} tokens, so that a completion of "
                "--max_new_tokens fits a row with it"
            )
        digest = hashlib.sha256()
        for prompt in self.prompts:
            digest.update(repr((prompt.ids, prompt.answer)).encode())
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


def prompt_datasets(args, tokenizer: Tokenizer, run) -> tuple[PromptDataset, PromptDataset | None]:
    """(training, held out or None): prompts of --data_path, of --val_data_path or a fraction."""

    def read(paths) -> list[Prompt]:
        questions = [q for path in paths for q in read_questions(path, tokenizer)]
        return [Prompt(q.text, q.prompt, q.answer) for q in questions]

    longest = args.max_seq_len + 1 - args.max_new_tokens
    with local_main_first(run.ranks):
        prompts = read(args.data_path)
        if args.val_data_path:
            held_out = read(args.val_data_path)
        else:
            is_held_out = held_out_items((repr(p.ids).encode() for p in prompts), args.val_fraction)
            held_out = [p for p, is_one in zip(prompts, is_held_out) if is_one]
            prompts = [p for p, is_one in zip(prompts, is_held_out) if not is_one]
    return PromptDataset(prompts, longest), PromptDataset(held_out, longest) if held_out else None
