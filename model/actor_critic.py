"""ActorCritic: a language model and, beside it, a critic with weights of its own, for PPO.

Shapes in this file:
    B  rows in the batch      T  tokens per row      n  positions asked for      V  vocab_size
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.config import LMConfig
from model.model import MiniMindLM
from model.reward_model import RewardModel


class ActorCritic(MiniMindLM):
    """MiniMindLM, whose weights keep their names, and `critic`, a RewardModel of the same size.

    The critic's score of a position is the value of the state after its token: the reward that is
    still to come.
    """

    def __init__(self, config: LMConfig):
        super().__init__(config)
        self.critic = RewardModel(config)

    def forward(self, input_ids: Tensor, document_ids: Tensor, places=None, prefixes=None):
        """(logits, aux_loss) as MiniMindLM's; with places: logits [n, V], values [n], aux_loss.

        The auxiliary losses of both are added up.
        """
        of = {"places": places, "prefixes": prefixes}
        logits, aux_loss = super().forward(input_ids, document_ids, **of)
        values, critic_aux_loss = self.critic(input_ids, document_ids, **of)
        if places is None:  # as memory is tried: the critic has a part in the loss
            return logits + 0 * values, aux_loss + critic_aux_loss
        return logits, values[:, 0], aux_loss + critic_aux_loss

    def make_buffers(self, device: str | torch.device | None = None):
        super().make_buffers(device)
        if "critic" in self._modules:
            self.critic.make_buffers(device)

    def policy(self) -> MiniMindLM:
        """The language model alone, over the same weights."""
        with torch.device("meta"):
            model = MiniMindLM(self.config)
        model.model, model.lm_head = self.model, self.lm_head
        model.make_buffers(self.inv_freq.device)
        return model.train(self.training)


def actor_critic(policy: MiniMindLM, critic: RewardModel) -> ActorCritic:
    """Both as one module, which takes their weights."""
    with torch.device("meta"):
        model = ActorCritic(policy.config)
    model.model, model.lm_head, model.critic = policy.model, policy.lm_head, critic
    model.make_buffers(policy.inv_freq.device)
    return model
