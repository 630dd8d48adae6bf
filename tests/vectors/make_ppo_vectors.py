"""Writes ppo.json: what trl 1.12 computes in PPO, which later versions no longer have.

    python -m venv other && other/bin/pip install trl==1.12.0
    other/bin/python tests/vectors/make_ppo_vectors.py

trl's trainer is one long function. So its very lines, cut out between the first and the last of
each part, are run here on random numbers: rewards, advantages and returns of a batch of rollouts;
then loss, what is logged of it, and gradients of a minibatch. The numbers lie beside this file.
"""

import inspect
import json
import textwrap
from pathlib import Path
from types import SimpleNamespace

import torch
import trl
from trl.experimental.ppo import ppo_trainer

B, T = 4, 7  # completions, tokens of the longest
ROLLOUT = ("# be very careful with `padding_mask_p1`", "advantages = torch.masked_fill(advantages")
LOSS = ("vpred = vpred_temp[:, context_length - 1", "loss = pg_loss + args.vf_coef * vf_loss")
LOGGED = ("pg_clipfrac = masked_mean(", "prob_dist = ")
CASES = [
    {"gamma": 1.0, "lam": 0.95, "kl_coef": 0.05, "kl_estimator": "k1", "whiten_rewards": False},
    {"gamma": 0.9, "lam": 0.5, "kl_coef": 0.2, "kl_estimator": "k3", "whiten_rewards": True},
    {"gamma": 1.0, "lam": 1.0, "kl_coef": 0.0, "kl_estimator": "k1", "whiten_rewards": False},
]
SETTINGS = {"cliprange": 0.2, "cliprange_value": 0.3, "vf_coef": 0.1}


def lines_of_trl(first: str, last: str, is_in: bool = True) -> str:
    """The statements of PPOTrainer.train from the line that has `first` to the one with `last`."""
    lines = inspect.getsource(ppo_trainer.PPOTrainer.train).splitlines()
    begin = next(i for i, line in enumerate(lines) if first in line)
    end = next(i for i, line in enumerate(lines) if i > begin and last in line)
    return textwrap.dedent("\n".join(lines[begin : end + is_in]))


def run(part: tuple[str, str], names: dict, is_in: bool = True):
    """Run a part of trl's function on these variables, which it changes."""
    exec(lines_of_trl(*part, is_in), vars(ppo_trainer) | names, names)


def make_case(number: int, case: dict) -> dict:
    random = torch.Generator().manual_seed(number)

    def normal(*shape):
        return torch.randn(*shape, generator=random)

    args = SimpleNamespace(**case, **SETTINGS)
    lengths = torch.tensor([T, 3, 5, 1])  # the first one is cut off, the others end by themselves
    names = {
        "args": args,
        "empty_cache": lambda: None,
        "responses": torch.zeros(B, T, dtype=torch.long),
        "sequence_lengths": lengths - 1,  # of the last token
        "logprobs": -normal(B, T).abs(),
        "ref_logprobs": -normal(B, T).abs(),
        "values": normal(B, T),
        "scores": normal(B),
    }
    given = {name: names[name].clone() for name in ("logprobs", "ref_logprobs", "scores")}
    run(ROLLOUT, names)
    rollout = {
        **given,
        "lengths": lengths,
        **{name: names[name] for name in ("values", "kl", "rewards", "advantages", "returns")},
    }
    new_logprobs = (names["logprobs"] + 0.3 * normal(B, T)).requires_grad_()
    vpred_temp = torch.cat([names["values"] + 0.5 * normal(B, T), normal(B, 1)], 1)[..., None]
    vpred_temp.requires_grad_()
    more = {
        "micro_batch_inds": torch.arange(B), "context_length": 1, "vpred_temp": vpred_temp,
        "new_logprobs": new_logprobs, "mb_advantage": names["advantages"],
        "mb_logprobs": names["logprobs"], "mb_return": names["returns"],
        "mb_values": names["values"],
    }  # fmt: skip
    names |= more
    run(LOSS, names)
    run(LOGGED, names, is_in=False)
    names["loss"].backward()
    losses = ("pg_loss", "vf_loss", "loss", "pg_clipfrac", "vf_clipfrac")
    update = {
        "new_logprobs": new_logprobs,
        "new_values": vpred_temp[:, :-1, 0],
        **{name: names[name] for name in losses},
        "gradient_of_logprobs": new_logprobs.grad,
        "gradient_of_values": vpred_temp.grad[:, :-1, 0],
    }
    numbers = {name: tensor.tolist() for name, tensor in (rollout | update).items()}
    return {"settings": case | SETTINGS, **numbers}


def main():
    cases = [make_case(number, case) for number, case in enumerate(CASES)]
    text = json.dumps({"trl": trl.__version__, "cases": cases}, indent=None)
    path = Path(__file__).with_name("ppo.json")
    path.write_text(text.replace('{"settings"', '\n{"settings"').replace(', "', ',\n "') + "\n")
    print(f"{path.name}: {len(cases)} cases, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
