"""RewardModel: MiniMindLM with a head of one number, a score, in place of the vocabulary's logits.

A folder of it is one of transformers' Qwen3ForSequenceClassification (with experts: Qwen3Moe…) with
one label: `score.weight [1, C]` stands where `lm_head.weight [V, C]` was. The score of a
conversation is that of its last token: with right padding transformers looks for the last token
that is not `pad_token_id`.

Shapes in this file:
    B  rows in the batch         T  tokens per row         C  hidden_size
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from model import qwen3_check
from model.config import LMConfig
from model.hf_format import (
    Inherited,
    from_disk,
    is_reward_model,
    load_config,
    load_model,
    to_disk,
    write_config,
    write_weights,
)
from model.json_file import read_json
from model.model import MiniMindLM


class ScoreHead(nn.Linear):
    """A linear layer to one number, also under autocast in the weight's own dtype.

    The weight is normal with variance 1 / (size + 1) (Stiennon et al. 2020, arXiv 2009.01325).
    """

    def __init__(self, size: int):
        super().__init__(size, 1, bias=False)
        nn.init.normal_(self.weight, std=(size + 1) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))


class RewardModel(MiniMindLM):
    """Token ids in; a score for every position, of what is read up to there, and aux_loss out.

    `forward` is MiniMindLM's, with scores [B, T, 1] in place of logits. The same module serves as
    a critic, whose scores are values.
    """

    def __init__(self, config: LMConfig):
        super().__init__(untied(config))
        del self._modules["lm_head"]
        self.score = ScoreHead(config.hidden_size)

    @property
    def lm_head(self) -> nn.Linear:  # what `forward` calls its head
        return self.score


def untied(config: LMConfig) -> LMConfig:
    """The same numbers for a model whose head shares nothing with the embedding."""
    return config.with_changes(tie_word_embeddings=False)


def from_language_model(model: MiniMindLM, seed: int) -> RewardModel:
    """A reward model over a language model's own blocks, which it takes; the head is fresh.

    Its weights are drawn from the seed as ScoreHead says. The model may be on the device "meta".
    """
    state = {n: t for n, t in model.state_dict().items() if n != "lm_head.weight"}
    device, C = model.inv_freq.device, model.config.hidden_size
    with torch.device("meta"):
        reward_model = RewardModel(model.config)
    draws = torch.randn(1, C, generator=torch.Generator().manual_seed(seed))
    state["score.weight"] = (draws * (C + 1) ** -0.5).to(device)
    reward_model.load_state_dict(state, strict=True, assign=True)
    reward_model.make_buffers(device)
    return reward_model.requires_grad_(True)


def load_reward_model(
    folder: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    config: LMConfig | None = None,
    weights_file: Path | None = None,
) -> RewardModel:
    """Open a reward model's folder, ours or transformers'. The arguments are `load_model`'s.

    Raises ValueError with the path for a folder that is none, or that has several labels.
    """
    if not is_reward_model(folder):
        raise ValueError(f"{folder}: no reward model: no sequence classification in its config")
    labels = read_json(Path(folder) / "config.json").get("id2label")
    if not isinstance(labels, dict) or len(labels) != 1:
        count = len(labels) if isinstance(labels, dict) else 2  # as transformers takes it
        raise ValueError(f"{folder}: a reward model has one label, this one has {count}")
    config = untied(config or load_config(folder))
    return load_model(folder, device, dtype, config, weights_file, RewardModel)


def save_reward_model(
    model: RewardModel,
    folder: str | Path,
    pad_token_id: int,
    eos_token_id: int,
    weights: dict[str, Tensor] | None = None,
    base: Inherited | None = None,
):
    """Write model.safetensors and config.json into an existing folder.

    pad_token_id: fills rows of several texts in other tools; a text must not end with it. The rest
    is as in `save_model`.
    """
    tensors = to_disk(model.state_dict() if weights is None else weights, model.config)
    dtypes = base.dtypes if base else {}
    dtype = write_weights(Path(folder), tensors, dtypes, weights is not None)
    kind = "Qwen3Moe" if model.config.use_moe else "Qwen3"
    more = {
        "architectures": [f"{kind}ForSequenceClassification"],
        "dtype": dtype,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "pad_token_id": pad_token_id,
        "eos_token_id": eos_token_id,
    }
    # what is asked is the code of the blocks; the head is not one that the check knows
    verdict = qwen3_check.verdict(MiniMindLM, qwen3_check.small(model.config), from_disk)
    write_config(Path(folder), model, verdict, more)


@torch.no_grad()
def score_sequences(
    model: RewardModel, sequences: list[list[int]], batch_size: int = 16
) -> list[float]:
    """The score of each sequence of token ids, read at its last one.

    Sequences of similar lengths are computed together, filled up on the right, where no token that
    counts can see. The model's train/eval mode is restored.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    scores = [0.0] * len(sequences)
    for begin in range(0, len(order), batch_size):
        chosen = order[begin : begin + batch_size]
        lengths = torch.tensor([len(sequences[i]) for i in chosen])
        rows = torch.zeros(len(chosen), int(lengths.max()), dtype=torch.int64)
        for row, i in zip(rows, chosen):
            row[: len(sequences[i])] = torch.tensor(sequences[i])
        found, _ = model(rows.to(device), last_only=(lengths - 1).to(device))  # [B, 1, 1]
        for i, score in zip(chosen, found[:, 0, 0].tolist()):
            scores[i] = score
    model.train(was_training)
    return scores
