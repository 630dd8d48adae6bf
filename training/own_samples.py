"""On-policy updates: the student's own answers take the place of the data's (Agarwal et al. 2024).

In an update that is on-policy every row keeps prompts of its conversations, and the model, with the
weights of this step, answers them. The rows have the shape they had, so that nothing else in a
script changes: X, Y, loss_mask (what the student said) and document_ids.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dataset.chat import stop_ids
from dataset.tokenizer import Tokenizer
from model.engine import Engine
from model.request import Request
from model.sampling import Sampling
from training.completions import decoding_copy
from training.distributed import sum_over_ranks
from training.run import Run

LARGEST_BATCH = 256  # answers drawn together


@dataclass
class Opening:
    """A conversation up to where the assistant is to speak, in some row of an update."""

    row: int
    ids: list[int]
    name: str  # what its draws depend on, beside seed and step: its conversation, and this turn
    most: int  # tokens that its answer may have


class OwnSamples:
    """Which updates of a Run are on-policy, and what the model says there.

    share           of the updates, chosen by seed and step alone
    max_new_tokens  longest answer
    """

    def __init__(self, run: Run, tokenizer: Tokenizer, share: float, max_new_tokens: int):
        self.run, self.tokenizer = run, tokenizer
        self.share, self.max_new_tokens = share, max_new_tokens

    @property
    def is_due(self) -> bool:
        """Whether the update that comes next is on-policy."""
        seed, step = self.run.args.seed, self.run.step
        return random.Random(f"{seed}/{step}/on-policy").random() < self.share

    def batches(self, loader, epoch: int) -> Iterator[tuple[Tensor, ...]]:
        """`run.batches`, those of on-policy updates with the model's own answers.

        All of an update are sampled together: the loss is a mean over every token of it.
        """
        run, held = self.run, []
        for batch in run.batches(loader, epoch):
            if not self.is_due:
                yield batch
                continue
            held.append(batch)
            if run.at_boundary:
                yield from self._answered(held)
                held = []

    def _answered(self, held: list[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
        run = self.run
        by_batch = [self.prompts(*batch) for batch in held]
        answers = iter(self.answers([prompt for prompts in by_batch for prompt in prompts]))
        batches = [
            self.rows(prompts, [next(answers) for _ in prompts], batch[0].shape)
            for prompts, batch in zip(by_batch, held)
        ]
        count = sum_over_ranks(sum(loss_mask.sum() for _, _, loss_mask, _ in batches))
        run.update_size = max(1, int(count))
        yield from run.inner_updates([batches])

    def prompts(self, X: Tensor, Y: Tensor, loss_mask: Tensor, document_ids: Tensor):
        """The prompts (Opening) that a micro-batch is to be answered to, as [B, T] rows have them.

        Of each conversation one answer, drawn by lot, is to be given anew. A row keeps as many
        conversations, in an order drawn by lot, as have room with the longest answers.
        """
        seed, step, T, prompts = self.run.args.seed, self.run.step, X.shape[1], []
        for row, tensors in enumerate(zip(X, Y, loss_mask, document_ids)):
            x, y, mask, documents = (tensor.cpu().numpy() for tensor in tensors)
            begins = np.flatnonzero((mask > 0) & (np.diff(mask > 0, prepend=False)))
            drawn = []
            for document in np.unique(documents[begins]):
                where = np.flatnonzero(documents == document)
                content = np.append(x[where], y[where[-1]])
                name = hashlib.sha256(content.astype("<i8").tobytes()).hexdigest()
                lot = random.Random(f"{seed}/{step}/{name}")
                turns = begins[documents[begins] == document]
                turn = int(lot.choice(turns)) + 1 - int(where[0])  # ids before the answer
                drawn.append((lot.random(), content[:turn].tolist(), f"{name}/{turn}"))
            room, kept = T + 1, []  # the last token of a document takes no position
            for _, ids, name in sorted(drawn):
                if len(ids) + self.max_new_tokens <= room:
                    kept.append(Opening(row, ids, name, self.max_new_tokens))
                    room -= len(ids) + self.max_new_tokens - 1
            if drawn and not kept:
                _, ids, name = min(drawn, key=lambda one: len(one[1]))
                kept = [Opening(row, ids, name, T + 1 - len(ids))]
            prompts += kept
        return prompts

    def answers(self, prompts: list[Opening]) -> list[list[int]]:
        """What the model says to each, with the stop token if it came to one, at temperature 1.

        Draws depend on --seed, the step and the prompt alone.
        """
        run, ends = self.run, set(stop_ids(self.tokenizer))
        requests = [
            Request(p.ids, p.most, ends, Sampling(), f"{run.args.seed}/{run.step}/{p.name}")
            for p in prompts
        ]
        decoder = decoding_copy(run)  # of all ranks together, even if one has no prompt
        most = max(1, min(len(requests), LARGEST_BATCH))
        engine = Engine(decoder, most, kept=0, prompt_tokens=1024)
        for request in requests:
            engine.add(request)
        while engine.has_work:
            engine.step()
        return [request.tokens for request in requests]

    def rows(self, prompts: list[Opening], answers: list[list[int]], shape) -> tuple[Tensor, ...]:
        """X, Y, loss_mask, document_ids, of this shape: prompts and answers, and then filling."""
        X, Y = np.full((2, *shape), self.tokenizer.eos_id, np.int64)
        loss_mask, document_ids = np.zeros(shape, np.float32), np.zeros(shape, np.int64)
        ends = [0] * shape[0]
        for number, (prompt, answer) in enumerate(zip(prompts, answers), start=1):
            ids, begin, row = [*prompt.ids, *answer], ends[prompt.row], prompt.row
            ends[row] = end = begin + len(ids) - 1
            X[row, begin:end], Y[row, begin:end] = ids[:-1], ids[1:]
            loss_mask[row, end - len(answer) : end] = 1
            document_ids[row, begin:end] = number
        made = (X, Y, loss_mask, document_ids)
        return tuple(torch.from_numpy(array).to(self.run.device) for array in made)
