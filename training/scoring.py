"""Reward models in runs: how one begins, how its folder is written, and how it scores answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from dataset.chat import encode_conversation, thinks_in
from dataset.tokenizer import Tokenizer, load_tokenizer
from model.hf_format import Inherited, is_reward_model, load_config, load_model
from model.reward_model import (
    RewardModel,
    from_language_model,
    load_reward_model,
    save_reward_model,
    score_sequences,
)
from tasks.rewards import Reward, make_rewards, paths_in
from training import checkpoint
from training.identity import files_sha256
from training.run import Run


def load_scorer(run: Run, checkpoint: Path | None = None) -> RewardModel:
    """The model as the run began with it, or as a checkpoint of the run has it; not yet placed."""
    exact = run.exact_weights if checkpoint else None
    return scorer_from(run, checkpoint or run.args.init_from, exact)


def scorer_from(run: Run, folder: Path, weights_file: Path | None = None) -> RewardModel:
    """A reward model's folder, or a language model's, which gets a fresh head by --seed.

    Both with the run's config in what weights do not decide.
    """
    if is_reward_model(folder):
        return load_reward_model(folder, run.home, config=run.config, weights_file=weights_file)
    tied = load_config(folder).tie_word_embeddings
    config = run.config.with_changes(tie_word_embeddings=tied)
    return from_language_model(load_model(folder, run.home, config=config), run.args.seed)


def write_scorer(run: Run, tokenizer: Tokenizer, base: Inherited, folder: Path, weights: dict):
    """Write a reward model's folder. base: what `hf_format.inherited` said of --init_from."""
    pad = tokenizer.control_tokens.get(tokenizer.special_tokens.get("pad_token"), tokenizer.eos_id)
    save_reward_model(run.model, folder, pad, tokenizer.eos_id, weights, base)
    tokenizer.save(folder, chat_template=True)


def score_conversations(
    model: RewardModel, tokenizer: Tokenizer, conversations: list[list[dict]], batch_size: int = 16,
    tools: list[list | None] | None = None,
) -> list[float]:  # fmt: skip
    """The score of each conversation, messages in their checked form, which an answer ends.

    tokenizer: of the model's folder, whose chat template renders them. tools: of each, if any.
    """
    tools = tools or [None] * len(conversations)
    ids = [encode_conversation(tokenizer, c, t).ids for c, t in zip(conversations, tools)]
    return score_sequences(model, ids, batch_size)


def rewards_of(run: Run) -> list[tuple[str, float, Reward]]:
    """The rewards that --reward names: (name, weight, function) each."""
    with torch.no_grad():  # what a user's file does to gradients ends here
        return make_rewards(run.args.reward, model_reward=model_reward(run.device))


def judged_by(args) -> dict[str, str]:
    """SHA-256 of the files and models that --reward and --tools name, for a run's identity."""
    tools = [Path(name) for name in args.tools or [] if Path(name).is_file()]
    return files_sha256([*paths_in(args.reward), *tools])


def model_reward(device="cpu", batch_size: int = 16) -> Callable:
    """What tasks.rewards.make_rewards makes a reward of: a folder → scores of completions.

    A completion is read as the messages that it is, so that the reward model may have another
    tokenizer and template; thoughts that this template has no place for are left out. One that was
    cut off is read as if it had ended there.
    """

    def reward_of(folder: Path) -> Callable:
        folder = checkpoint.model_folder(folder, "the folder")
        model, tokenizer = load_reward_model(folder, device), load_tokenizer(folder)
        unread = {"reasoning_content"} if thinks_in(tokenizer) is False else set()

        def conversation(completion) -> list[dict]:
            said = [
                {name: value for name, value in message.items() if name not in unread}
                for message in completion.messages
            ]
            return [*completion.prompt.messages, *said]

        def score(completions: list) -> list[float]:
            tools = [c.prompt.tools for c in completions]
            conversations = list(map(conversation, completions))
            return score_conversations(model, tokenizer, conversations, batch_size, tools)

        return score

    return reward_of
