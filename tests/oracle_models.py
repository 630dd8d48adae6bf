"""Random tiny models in two independent hands: transformers' Qwen3 classes and ours.

The numbers of a model are drawn as keyword arguments of transformers' configuration; `ours` spells
the same numbers as an LMConfig, by hand, so that neither side's reader or writer is trusted.
"""

import json
import random
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3MoeConfig
from transformers.utils import logging

from model.config import LMConfig
from model.hf_format import load_model, save_model
from model.model import MiniMindLM

torch.set_num_threads(1)
logging.disable_progress_bar()
logging.set_verbosity_error()

EOS = 2


def random_numbers(seed: int, moe: bool = False, **fixed) -> dict:
    """Keyword arguments of Qwen3Config or Qwen3MoeConfig; even seeds are tied, odd ones not."""
    rng = random.Random(seed)
    heads = 4
    numbers = {
        "vocab_size": rng.choice([61, 97, 128]),
        "hidden_size": rng.choice([24, 32, 40]),
        "num_hidden_layers": rng.choice([1, 2, 3]),
        "num_attention_heads": heads,
        "num_key_value_heads": heads // (1, 2, 4)[seed % 3],
        "head_dim": rng.choice([4, 12, 16, 26]),  # hidden / heads is 6, 8 or 10
        "intermediate_size": rng.choice([17, 40, 56]),
        "max_position_embeddings": 256,
        "rms_norm_eps": rng.choice([1e-6, 1e-5, 1e-2]),
        "tie_word_embeddings": seed % 2 == 0,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": rng.choice([50.0, 10_000.0, 1_000_000.0]),
        },
        "attention_bias": False,
        "use_sliding_window": False,
        "eos_token_id": EOS,
    }
    if seed % 4 > 1:  # YaRN, with a trained context short enough to matter in 48 tokens
        numbers["rope_parameters"] |= {
            "rope_type": "yarn",
            "factor": rng.choice([1.5, 4.0, 16.0]),
            "original_max_position_embeddings": rng.choice([16, 64, 100]),
        }
        for key, values in (
            ("beta_fast", [4.0, 16.0, 32.0]),
            ("beta_slow", [0.5, 1.0, 2.0]),
            ("attention_factor", [0.7, 1.3]),
        ):
            if rng.random() < 0.5:
                numbers["rope_parameters"][key] = rng.choice(values)
    if moe:
        numbers |= {
            "num_experts": rng.choice([3, 4, 8]),
            "num_experts_per_tok": 2,
            "moe_intermediate_size": rng.choice([8, 16, 24]),
            "norm_topk_prob": False,
            "router_aux_loss_coef": rng.choice([0.001, 0.02, 0.5]),
        }
    return numbers | fixed


def ours(numbers: dict) -> LMConfig:
    """The LMConfig with the same meaning."""
    numbers = dict(numbers)
    rope = numbers.pop("rope_parameters")
    for key in ("attention_bias", "use_sliding_window", "eos_token_id"):
        numbers.pop(key, None)
    return LMConfig(
        **numbers,
        use_moe="num_experts" in numbers,
        rope_theta=rope["rope_theta"],
        yarn_factor=rope.get("factor", 1.0),
        yarn_original_length=rope.get("original_max_position_embeddings", 0),
        yarn_beta_fast=rope.get("beta_fast", 32.0),
        yarn_beta_slow=rope.get("beta_slow", 1.0),
        yarn_attention_factor=rope.get("attention_factor", 0.0),
    )


@torch.no_grad()
def shake(model: torch.nn.Module, seed: int = 0):
    """Weights far from their start, so that a wrong one shows: logits of size 1, norms not 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in sorted(model.named_parameters()):
        if p.ndim == 1:
            p.copy_(0.5 + torch.rand(p.shape, generator=generator))
        else:
            std = 2.0 if name.endswith("gate.weight") else 1.0 if "embed" in name else 1.2
            width = 1 if "embed" in name else p.shape[-1]
            p.copy_(torch.randn(p.shape, generator=generator) * std / width**0.5)
    return model


def our_model(numbers: dict, seed: int = 0) -> MiniMindLM:
    return shake(MiniMindLM(ours(numbers)), seed).eval()


def their_model(numbers: dict, seed: int = 0):
    """transformers' model, built from its own configuration class."""
    numbers = json.loads(json.dumps(numbers))  # transformers edits rope_parameters in place
    config = (Qwen3MoeConfig if "num_experts" in numbers else Qwen3Config)(**numbers)
    model = AutoModelForCausalLM.from_config(config, **_plain(config), dtype=torch.float32)
    return shake(model, seed).eval()


def open_there(folder: Path, **options):
    """transformers opens the folder, with its plainest attention and experts."""
    config = json.loads((folder / "config.json").read_text())
    options = {"dtype": torch.float32} | _plain(config) | options
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, local_files_only=True, **options
    )
    assert not any(info.values()), info  # nothing missing, nothing unexpected
    return model.eval()


def _plain(config) -> dict:
    kind = config["model_type"] if isinstance(config, dict) else config.model_type
    return {"attn_implementation": "eager"} | (
        {"experts_implementation": "eager"} if kind == "qwen3_moe" else {}
    )


def save_here(model: MiniMindLM, folder: Path) -> Path:
    folder.mkdir(parents=True)
    save_model(model, folder, EOS)
    return folder


def save_there(model, folder: Path, **options) -> Path:
    model.save_pretrained(folder, **options)
    return folder


def pair(numbers: dict, folder: Path, seed: int = 0):
    """The same weights in both hands, through a folder that we wrote: (ours, theirs)."""
    folder = save_here(our_model(numbers, seed), folder)
    return load_model(folder), open_there(folder)


def random_ids(numbers: dict, rows: int = 2, tokens: int = 48, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(numbers["vocab_size"], (rows, tokens), generator=generator)


def same_bits(a: dict, b: dict) -> bool:
    """Two state dicts have the same names, shapes, dtypes and bits."""
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a
    )
