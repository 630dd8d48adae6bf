"""Completions sampled with the weights of this step, judged, and packed into rows to learn from.

Shapes: B rows, T tokens of a row, n tokens of completions in them, V vocab_size.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from dataset.shared_prompts import rows_of_groups
from dataset.tokenizer import Tokenizer
from model import lora
from model.model import MiniMindLM
from model.sampling import Sampling
from tasks.rewards import judged
from tasks.task import Prompt
from training.completions import Sample, Tools, decoding_copy, sample
from training.distributed import sum_over_ranks
from training.losses import in_chunks

# completions of the longest kind; of these lengths the one that leaves the least room unfilled is
# taken: shorter rows hold more prompts twice, longer ones make attention dearer
ROW_OF = range(4, 9)
SHOWN = 3  # held-out completions that a log line is followed by


@dataclass
class Rows:
    """A micro-batch of packed completions [B, T], and what its n tokens to learn from count.

    X             int64 [B, T]
    document_ids  int64 [B, T]: from 1 on in every row; 0 is filling
    places        int64 [n]: the positions that predict a completion's tokens, through all rows
    Y             int64 [n]: these tokens
    mask          float32 [n]: 1; more where a completion stands for others that are alike; 0 where,
                  for the compiler's sake, a place is told again
    sequences     int64 [n], below n: which tokens are of one completion
    advantages    float32 [n], those of a token's completion
    weights       float32 [n], what a token counts in the loss: parts of a mean over all the update
    sampled       float32 [n]: log-probabilities as the sampler had them
    share         of the tokens in rows of the update, over all ranks, that are in here
    figures       parts of what is logged of the update; they add up over micro-batches and ranks
    old           float32 [n]: log-probabilities in the first of the inner updates; None before
    reference     float32 [n]: those under the reference, where there is one
    prefixes      int64 [B, T]: of a completion's tokens the document of its prompt, of others their
                  own; None: every completion stands in one document with its prompt
    """

    X: Tensor
    document_ids: Tensor
    places: Tensor
    Y: Tensor
    mask: Tensor
    sequences: Tensor
    advantages: Tensor
    weights: Tensor
    sampled: Tensor
    share: Tensor
    figures: dict[str, Tensor] = field(default_factory=dict)
    old: Tensor | None = None
    reference: Tensor | None = None
    prefixes: Tensor | None = None

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What to call the model with, for logits [n, V]."""
        return {
            "input_ids": self.X, "document_ids": self.document_ids, "prefixes": self.prefixes,
            "places": self.places,
        }  # fmt: skip

    def means(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of values [n]: parts of their means over the tokens of the whole update."""
        share = self.share / self.mask.sum().clamp(min=1)
        return {name: (v.detach() * self.mask).sum() * share for name, v in values.items()}


def token_log_probs(logits: Tensor, Y: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """log p of every token and the entropy it was drawn from, in nats: float32 [n] each.

    Of the distribution softmax(logits / temperature) that is sampled from; logits [n, V]. The
    entropy is only looked at: no gradient goes through it.
    """

    def both(logits: Tensor, Y: Tensor) -> Tensor:  # [n, 2]
        scaled = logits.float() if temperature == 1 else logits.float() / temperature
        scores = scaled.log_softmax(-1)  # [n, V]
        with torch.no_grad():
            entropy = -scores.exp().mul_(scores).sum(-1)
        return torch.stack((scores.gather(1, Y[:, None])[:, 0], entropy), -1)

    return in_chunks(both, logits, Y).unbind(-1)


def sequence_means(values: Tensor, rows: Rows) -> Tensor:
    """At every token the mean of its completion's values: [n], gradients through all of them."""
    zeros = values.new_zeros(len(values))
    sums = zeros.scatter_add(0, rows.sequences, values * rows.mask)
    counts = zeros.scatter_add(0, rows.sequences, rows.mask)
    return (sums / counts.clamp(min=1))[rows.sequences]


def stand_ins(
    samples: list[Sample], advantages: Tensor, with_zeros: bool
) -> tuple[list[int], Tensor]:
    """Numbers of the samples to learn from, and of how many each stands: float32.

    One stands for all of the same prompt and ids with the same advantage: their gradients are
    equal. Without with_zeros there is none with an advantage of 0, whose gradient is 0.
    """
    alike: dict[tuple, list[int]] = {}
    for number, (one, advantage) in enumerate(zip(samples, advantages.tolist())):
        if advantage or with_zeros:
            key = (*one.completion.prompt.ids,), (*one.ids,), (*one.is_said,), advantage
            alike.setdefault(key, []).append(number)
    counts = torch.tensor([len(numbers) for numbers in alike.values()], dtype=torch.float32)
    return [numbers[0] for numbers in alike.values()], counts


class Rollouts:
    """What a Run samples, how it is judged, and the rows that are made of it.

    rewards  (name, weight, function of completions) as make_rewards has them
    tools    what completions may call
    """

    def __init__(self, run, tokenizer: Tokenizer, rewards: list, tools: Tools | None = None):
        self.run, self.tokenizer, self.rewards = run, tokenizer, rewards
        self.tools = tools or Tools()
        self.own = [reward for _, _, reward in rewards if getattr(reward, "is_own", False)]
        self.num_failed = 0  # times that one of them could not judge a completion, the last time

    def prompts(self, dataset, loader, epoch: int) -> Iterator[list[tuple[int, Prompt]]]:
        """This rank's prompts of every update of an epoch, with their numbers."""
        numbers: list[int] = []
        for (some,) in self.run.batches(loader, epoch):
            numbers += [number for number in some.tolist() if number >= 0]
            if self.run.at_boundary:
                yield [(number, dataset.prompts[number]) for number in numbers]
                numbers = []

    def sample(self, prompts: list[tuple[int, Prompt]]) -> list[list[Sample]]:
        """--num_generations of each prompt, with the weights as they are now.

        Draws depend on --seed, the step, and the numbers of prompt and completion alone.
        """
        begin, args = time.perf_counter(), self.run.args
        sampling = Sampling(temperature=args.temperature)
        groups = self._sample(prompts, self.run.step, args.num_generations, sampling)
        self.run.log.sampled += time.perf_counter() - begin
        return groups

    def _sample(self, prompts, name, count: int, sampling: Sampling, is_over=None):
        if not prompts and not self.run.args.fsdp:  # else weights are gathered from all ranks
            return []
        args = self.run.args
        return sample(
            decoding_copy(self.run), self.tokenizer, [prompt for _, prompt in prompts],
            [f"{args.seed}/{name}/{number}" for number, _ in prompts], count, args.max_new_tokens,
            sampling, args.max_running, is_over, self.tools,
        )  # fmt: skip

    def judge(self, groups: list[list[Sample]]) -> Tensor:
        """float32 [prompts, completions]: the weighted sum of the rewards of each completion."""
        samples = [sample for group in groups for sample in group]
        if not samples:
            self.num_failed = 0
            return torch.zeros(0, self.run.args.num_generations)
        before = sum(reward.num_failed for reward in self.own)
        with torch.no_grad():  # what a function of the user's does to gradients ends here
            totals, parts = judged(self.rewards, [one.completion for one in samples])
        self.num_failed = sum(reward.num_failed for reward in self.own) - before
        for one, *values in zip(samples, *parts.values()):
            one.rewards = values
        return torch.tensor(totals, dtype=torch.float32).view(len(groups), -1)

    def rows(
        self, groups: list[list[Sample]], rewards: Tensor, advantages: Tensor, weights_of: Callable,
        compact: bool = False, figures: dict[str, Tensor] | None = None,
    ) -> list[Rows]:  # fmt: skip
        """An update's completions as micro-batches, equally many on every rank. Collective.

        rewards, advantages                              [prompts, completions]
        weights_of(lengths, completions, tokens, args)   what a token of each completion counts
        compact                                          leave out what `policy_loss` of
                                                         train_grpo.py does not need (`stand_ins`);
                                                         experts' auxiliary loss needs all tokens
        figures                                          `figures` of the whole update, where this
                                                         is a part of it; None: those of these
        """
        run, args = self.run, self.run.args
        samples = [sample for group in groups for sample in group]
        is_told = [not (args.mask_truncated and s.completion.is_cut) for s in samples]
        told = [sample for sample, is_in in zip(samples, is_told) if is_in]
        of_told = advantages.flatten()[torch.tensor(is_told, dtype=torch.bool)]
        lengths = torch.tensor([len(s.completion.ids) for s in told], dtype=torch.float32)
        numbers, copies = list(range(len(told))), torch.ones(len(told))
        if compact and not run.config.use_moe:
            numbers, copies = stand_ins(told, of_told, with_zeros=args.beta > 0)
        in_rows = (lengths[numbers] * copies).sum()
        mine = [lengths.sum(), in_rows, len(samples)]
        counts = torch.tensor(mine, dtype=torch.float64, device=run.device)
        tokens, in_rows, completions = sum_over_ranks(counts).tolist()
        weights = weights_of(lengths, completions, max(tokens, 1), args)
        told = [told[number] for number in numbers]
        parts = of_told[numbers], weights[numbers] * copies, copies, max(in_rows, 1)
        batches = self._packed(told, *parts)
        figures = figures or self.figures(groups, rewards)
        for number, batch in enumerate(batches):  # the first batch tells for all
            batch.figures = {
                name: (number == 0) * value.to(run.device) for name, value in figures.items()
            }
        return batches

    def figures(self, groups: list[list[Sample]], rewards: Tensor) -> dict[str, Tensor]:
        """This rank's parts of what is logged of an update's completions, by name. Collective."""
        samples = [sample for group in groups for sample in group]
        counts = torch.tensor([len(samples), len(groups)], device=self.run.device)
        completions, prompts = sum_over_ranks(counts.double()).tolist()
        spread = (rewards - rewards[:, :1]).std(-1)  # of each group; of equal ones exactly 0
        figures = {
            "reward": rewards.sum() / completions,
            **{name: total / completions for name, total in self._by_reward(samples).items()},
            "reward_std": spread.sum() / prompts,
            "no_spread": (spread == 0).sum() / prompts,
            "length": torch.tensor(sum(len(s.completion.ids) for s in samples) / completions),
            "truncated": torch.tensor(sum(s.completion.is_cut for s in samples) / completions),
        }
        if self.own:
            share = self.num_failed / len(self.own) / completions
            figures["reward_failed"] = torch.tensor(share)
        if self.tools.functions:
            answers = [answer for s in samples for answer in tool_answers(s)]
            refused = sum(answer.startswith("error: ") for answer in answers)
            figures["calls"] = torch.tensor(len(answers) / completions)
            figures["failed_calls"] = torch.tensor(refused / completions)
        return figures

    def _by_reward(self, samples: list[Sample]) -> dict[str, Tensor]:
        """Where there are several rewards, the sum of each over the samples, by its name."""
        names = [f"reward_{name}" for name, _, _ in self.rewards] if len(self.rewards) > 1 else []
        sums = torch.tensor([s.rewards for s in samples]).view(-1, len(self.rewards)).sum(0)
        return dict(zip(names, sums))

    def _packed(self, samples: list[Sample], *told) -> list[Rows]:
        """Samples in rows; told: what `_batch` needs to know of each."""
        run, args = self.run, self.run.args
        prompts = [tuple(s.completion.prompt.ids) for s in samples]
        before = [len(prompt) - 1 for prompt in prompts]
        lengths = [len(s.ids) for s in samples]
        T, B = args.max_seq_len, args.batch_size
        is_compiled = run.compiled is not run.model  # then all micro-batches have one shape
        choices = {T}
        if not is_compiled:
            longest = max(map(sum, zip(before, lengths)), default=8)
            choices = {min(T, -(-of * longest // 16) * 16) for of in ROW_OF}
        rows_by_length = {T: rows_of_groups(prompts, before, lengths, T) for T in sorted(choices)}
        T, arranged = min(rows_by_length.items(), key=lambda item: item[0] * len(item[1]))
        if not is_compiled:
            B = B * args.max_seq_len // T
        count = torch.tensor(max(1, -(-len(arranged) // B)), device=run.device)  # micro-batches
        if run.ranks.is_distributed:
            dist.all_reduce(count, dist.ReduceOp.MAX)
        count = int(count)
        if not is_compiled:
            B = max(1, -(-len(arranged) // count))
        make = partial(self._batch, samples, *told, (B, T), is_compiled)
        return [make(arranged[B * i : B * (i + 1)]) for i in range(count)]

    def _batch(
        self, samples, advantages, weights, copies, tokens, shape, is_compiled, rows
    ) -> Rows:  # fmt: skip
        """A micro-batch of rows, each the numbers of its samples by prompt; the rest is filling.

        A prompt but for its last token stands there once, and behind it, each a document that
        continues it, this token and the completion but for its own last: what predicts all of it.
        """
        X = np.full(shape, self.tokenizer.eos_id, np.int64)
        document_ids, prefixes, Y, sequences = np.zeros((4, *shape), np.int64)
        mask, of_sequence, counted, sampled = np.zeros((4, *shape), np.float32)
        count = 0
        for row, groups in enumerate(rows):
            end = document = 0
            for numbers in groups:
                *prompt, last = samples[numbers[0]].completion.prompt.ids
                begin, end, document = end, end + len(prompt), document + 1
                X[row, begin:end], prefix = prompt, document
                document_ids[row, begin:end] = prefixes[row, begin:end] = document
                for number in numbers:
                    one = samples[number]
                    begin, end, document = end, end + len(one.ids), document + 1
                    X[row, begin:end], Y[row, begin:end] = [last, *one.ids[:-1]], one.ids
                    document_ids[row, begin:end], prefixes[row, begin:end] = document, prefix
                    said = row, begin + np.flatnonzero(one.is_said)
                    mask[said], sampled[said] = copies[number], one.log_probs
                    of_sequence[said], counted[said] = advantages[number], weights[number]
                    sequences[said], count = count, count + 1
        places = np.flatnonzero(mask)
        is_filling = np.arange(mask.size if is_compiled else len(places)) >= len(places)
        last = places[-1] if len(places) else 0  # told again, for nothing
        places = np.concatenate((places, np.full(is_filling.sum(), last)))
        told = (Y, mask, sequences, of_sequence, counted, sampled)
        told = tuple(values.ravel()[places] for values in told)
        told[1][is_filling] = told[4][is_filling] = 0  # mask and weight
        tensors = (X, document_ids, places, *told)
        share = torch.tensor(mask.sum() / tokens, device=self.run.device)
        *tensors, prefixes = (torch.from_numpy(t).to(self.run.device) for t in (*tensors, prefixes))
        return Rows(*tensors, share=share, prefixes=prefixes)

    @torch.no_grad()
    def ask_reference(self, reference: MiniMindLM | None, batches: list[Rows]):
        """What the reference of `load_reference` says of all rows."""
        if reference is None:
            return
        was_training = reference.training
        reference.eval()
        with lora.turned_off(reference), self.run.autocast:
            for rows in batches:
                logits, _ = reference(**rows.inputs)
                rows.reference, _ = token_log_probs(logits, rows.Y, self.run.args.temperature)
        reference.train(was_training)

    def measure(self, dataset) -> tuple[dict, list[str]]:
        """For `Run.begin`: how held-out prompts are answered, greedily and as sampled.

        val_reward      mean of greedy answers; of several rewards val_reward_NAME, too
        greedy          share of prompts whose greedy answer is right: the first reward is 1 or more
        sampled_reward  mean of sampled completions, --eval_generations a prompt
        sampled_std     … and standard deviation of all of them
        pass@1          share of them that are right
        pass@k          share of prompts with a right one among all k of them
        """
        run, args = self.run, self.run.args
        ranks, count = run.ranks, args.eval_generations
        prompts = list(enumerate(dataset.prompts))[ranks.rank :: ranks.world_size]

        def asked_to_stop() -> bool:
            return run.stop.signal != 0

        def rights(groups) -> Tensor:  # bool [prompts, completions]
            return torch.tensor([[s.rewards[0] >= 1 for s in group] for group in groups]) > 0

        greedy = self._sample(prompts, "greedy", 1, Sampling(temperature=0), asked_to_stop)
        sums = [self.judge(greedy).sum(), rights(greedy).sum()]
        parts = self._by_reward([group[0] for group in greedy])
        names = ["val_reward", "greedy", *(f"val_{name}" for name in parts)]
        sums += parts.values()
        if count:
            sampling = Sampling(temperature=args.temperature)
            sampled = self._sample(prompts, "held out", count, sampling, asked_to_stop)
            scores = self.judge(sampled).double()
            right = rights(sampled).view(len(prompts), -1 if prompts else 0)
            sums += [scores.mean(-1).sum(), (scores**2).mean(-1).sum()]
            sums += [right.float().mean(-1).sum() if prompts else 0, right.any(-1).sum()]
            names += ["sampled_reward", "sampled_std", "pass@1", f"pass@{count}"]
        totals = torch.tensor(sums, dtype=torch.float64, device=run.device)
        figures = dict(zip(names, (sum_over_ranks(totals) / len(dataset)).tolist()))
        if count:
            mean, mean_of_squares = figures["sampled_reward"], figures["sampled_std"]
            figures["sampled_std"] = max(0.0, mean_of_squares - mean**2) ** 0.5
        return figures, [self._shown(group[0]) for group in greedy[:SHOWN]]

    def _shown(self, sample: Sample) -> str:
        names = (name for name, _, _ in self.rewards)
        told = ", ".join(f"{name} {value:g}" for name, value in zip(names, sample.rewards))
        text = sample.completion.prompt.text + in_words(sample)
        return f"{' '.join(text.split())} ({told})"


def tool_answers(sample: Sample) -> list[str]:
    """What tools have answered in a completion."""
    return [m["content"] for m in sample.completion.messages if m["role"] == "tool"]


def in_words(sample: Sample) -> str:
    """A completion for people: ⟶ before what the model says, ⟵ before what a tool answers."""
    *before, _ = sample.completion.messages
    text = ""
    for message in before:
        text += f" {'⟵' if message['role'] == 'tool' else '⟶'} {message['content']}"
        for call in message.get("tool_calls", []):
            text += f" {call['name']}({json.dumps(call['arguments'], ensure_ascii=False)})"
    return f"{text} ⟶ {sample.completion.raw}"
