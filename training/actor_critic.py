"""PPO's part of a run: policy and critic in one checkpoint, and what is made of rollouts."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from dataset.chat import stop_ids
from dataset.tokenizer import Tokenizer
from model.actor_critic import ActorCritic, actor_critic
from model.hf_format import (
    RESUME_FOLDER,
    Inherited,
    load_config,
    load_model,
    read_header,
    save_model,
    some_names,
    write_tensors,
)
from model.model import MiniMindLM
from model.reward_model import RewardModel, untied
from training.cli import CHANGEABLE
from training.ppo_losses import gae, token_rewards, whiten
from training.rollouts import Rows, token_log_probs
from training.run import Run
from training.scoring import scorer_from

CRITIC_FILE, PREFIX = "critic.tensors", "critic."


def load_actor_critic(run: Run, checkpoint: Path | None = None) -> ActorCritic:
    """Both as the run began with them, or as a checkpoint of the run has them; not yet placed.

    The critic begins as --critic_from, a reward model or a language model, which gets a fresh head.
    """
    args, folder = run.args, checkpoint or run.args.init_from
    exact = run.exact_weights if checkpoint else None
    policy = load_model(folder, run.home, config=run.config, weights_file=exact)
    if checkpoint:
        return actor_critic(policy, _load_critic(run, checkpoint / RESUME_FOLDER / CRITIC_FILE))
    folder, found = args.critic_from, untied(load_config(args.critic_from)).to_dict()
    for name, wanted in untied(run.config).to_dict().items():
        if name not in CHANGEABLE and found[name] != wanted:
            raise ValueError(
                f"--critic_from {folder}: its {name} is {found[name]}, --init_from's {wanted}; the "
                "critic is as large as the policy"
            )
    return actor_critic(policy, scorer_from(run, folder))


def _load_critic(run: Run, file: Path) -> RewardModel:
    """The critic of a checkpoint; ValueError unless its tensors are those of the config."""
    with torch.device("meta"):
        critic = RewardModel(run.config)
    expected = {name: tuple(p.shape) for name, p in critic.named_parameters()}
    stored = {name: tensor.shape for name, tensor in read_header(file).items()}
    if stored != expected:
        wrong = {n for n in {*stored, *expected} if stored.get(n) != expected.get(n)}
        raise ValueError(f"{file}: not this model's critic: {some_names(wrong)}")
    tensors = {name: tensor.to(run.home) for name, tensor in load_file(file).items()}
    critic.load_state_dict(tensors, strict=True, assign=True)
    critic.make_buffers(run.home)
    return critic.requires_grad_(True)


def write_actor_critic(
    run: Run, tokenizer: Tokenizer, base: Inherited, folder: Path, weights: dict
):
    """Write the policy's folder, with the critic among what only resuming needs."""
    critic = {n.removeprefix(PREFIX): t for n, t in weights.items() if n.startswith(PREFIX)}
    with torch.device("meta"):
        policy = MiniMindLM(run.config)
    of_policy = {name: t for name, t in weights.items() if not name.startswith(PREFIX)}
    save_model(policy, folder, stop_ids(tokenizer), of_policy, base)
    (folder / RESUME_FOLDER).mkdir(exist_ok=True)
    write_tensors(folder / RESUME_FOLDER / CRITIC_FILE, critic)
    tokenizer.save(folder, chat_template=True)


def minibatches(run: Run, numbers: list[int], count: int) -> list[list[int]]:
    """Which of this rank's prompts, by their places in `numbers`, are in which minibatch.

    That depends on --seed, the step and all ranks' prompts alone, not on which rank has which:
    minibatches are as large as they can be equally. Collective; at most as many as prompts.
    """
    every: list[list[int]] = [numbers]
    if run.ranks.is_distributed:
        every = [[] for _ in range(run.ranks.world_size)]
        dist.all_gather_object(every, numbers)

    def drawn(number: int) -> bytes:
        return hashlib.sha256(f"{run.args.seed}/{run.step}/{number}".encode()).digest()

    order = sorted((number for some in every for number in some), key=drawn)
    count = max(1, min(count, len(order)))
    part = {number: place * count // len(order) for place, number in enumerate(order)}
    return [[i for i, number in enumerate(numbers) if part[number] == k] for k in range(count)]


@torch.no_grad()
def look_back(run: Run, batches: list[Rows], args) -> list[tuple[Rows, Tensor, Tensor]]:
    """Of a whole rollout: (rows, values, returns) of every micro-batch, before anything is learned.

    rows.old becomes the log-probabilities under the policy, rows.advantages, so far the scores of
    the completions, the whitened advantages. values, returns: float32 [n]. Collective.
    """
    was_training = run.model.training
    run.model.eval()
    found = []
    for rows in batches:
        with run.autocast:
            logits, values, _ = run.compiled(**rows.inputs)
        rows.old, _ = token_log_probs(logits, rows.Y, args.temperature)
        kl = torch.zeros_like(rows.old) if rows.reference is None else rows.old - rows.reference
        columns = by_sequence(rows, torch.stack([rows.advantages, kl, values.float(), rows.mask]))
        scores, kl, values, mask = columns
        rewards = token_rewards(scores, kl, mask, args.kl_coef)
        advantages, returns = gae(rewards, values, mask, args.gamma, args.lam)
        found.append((rows, values, returns, advantages, mask))
    run.model.train(was_training)
    white = whiten([part[3] for part in found], [part[4] for part in found])
    result = []
    for (rows, values, returns, _, _), advantages in zip(found, white):
        flat = from_sequences(rows, torch.stack([values, returns, advantages]))
        values, returns, rows.advantages = flat
        result.append((rows, values, returns))
    return result


def _positions(rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Of tokens that are masked in: their places among all, their sequences, their places there."""
    index = torch.nonzero(rows.mask)[:, 0]
    sequences = rows.sequences[index]
    order = torch.arange(len(index), device=index.device)
    first = order.new_full((len(rows.mask) + 2,), len(index))
    first = first.scatter_reduce(0, sequences, order, "amin")
    return index, sequences, order - first[sequences]


def by_sequence(rows: Rows, values: Tensor) -> Tensor:
    """[k, n] → [k, completions, longest], a completion in each row, 0 behind its end."""
    index, sequences, at = _positions(rows)
    shape = [int(x.max()) + 1 if len(index) else 1 for x in (sequences, at)]
    result = values.new_zeros(len(values), *shape)
    result[:, sequences, at] = values[:, index]
    return result


def from_sequences(rows: Rows, values: Tensor) -> Tensor:
    """The inverse of `by_sequence`: [k, completions, longest] → [k, n], 0 where the mask is 0."""
    index, sequences, at = _positions(rows)
    result = values.new_zeros(len(values), len(rows.mask))
    result[:, index] = values[:, sequences, at]
    return result
