"""LMConfig: every number of the architecture, validated, with presets, to and from config.json.

The field names are those of transformers' Qwen3Config / Qwen3MoeConfig, so a config.json written
here is read there and the other way round. Five `yarn_*` fields hold what config.json keeps in its
nested `rope_parameters`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, replace

PRESETS: dict[str, dict] = {
    # name     what it is for                                            parameters
    "demo": {  # CPUs, tests, `make demo`                                5.0M
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 832,
    },
    "small": {  # one small GPU, or a patient CPU                        30.0M
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 1664,
    },
    "base": {  # one GPU                                                 63.9M
        "hidden_size": 768,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 2432,
    },
}
PRESETS["large"] = PRESETS["base"] | {"num_hidden_layers": 14}  # 108M
PRESETS["moe"] = PRESETS["base"] | {  # 198M in all, 64M active per token
    "use_moe": True,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 1216,
    "norm_topk_prob": True,
}

MOST_MODULES = 4096  # layers, and experts per layer; the largest published models have 126 and 512


def _f(default, help: str):
    """A dataclass field that carries the help text of its command-line flag."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class LMConfig:
    """The architecture of a MiniMindLM. Raises ValueError naming the field if it cannot exist."""

    vocab_size: int = _f(6400, "entries of the embedding table; at least the tokenizer's")
    hidden_size: int = _f(512, "width of the residual stream, in channels")
    num_hidden_layers: int = _f(8, "transformer blocks")
    num_attention_heads: int = _f(8, "query heads per block")
    num_key_value_heads: int = _f(4, "key/value heads per block; must divide num_attention_heads")
    head_dim: int = _f(0, "channels per head; 0 means hidden_size / num_attention_heads")
    intermediate_size: int = _f(1664, "width of the SwiGLU feed-forward, in channels")
    max_position_embeddings: int = _f(32768, "longest sequence the model is meant for, in tokens")
    rms_norm_eps: float = _f(1e-6, "added to the mean square in RMSNorm")
    rope_theta: float = _f(1e6, "base of the rotary frequencies")
    yarn_factor: float = _f(1.0, "YaRN: stretch the context this many times; 1 is plain RoPE")
    yarn_original_length: int = _f(0, "YaRN: trained context in tokens; 0 is the maximum / factor")
    yarn_beta_fast: float = _f(32.0, "YaRN: rotations above which a frequency is kept")
    yarn_beta_slow: float = _f(1.0, "YaRN: rotations below which a frequency is stretched")
    yarn_attention_factor: float = _f(0.0, "YaRN: scale of cos and sin; 0 is 0.1 ln(factor) + 1")
    tie_word_embeddings: bool = _f(True, "the head shares the embedding matrix")
    initializer_range: float = _f(0.02, "standard deviation of fresh weights")
    dropout: float = _f(0.0, "probability of zeroing embeddings and block outputs in training")
    use_moe: bool = _f(False, "mixture of experts in place of every feed-forward")
    num_experts: int = _f(8, "MoE: experts per block")
    num_experts_per_tok: int = _f(2, "MoE: experts each token is sent to")
    moe_intermediate_size: int = _f(
        0, "MoE: width of one expert; 0 means intermediate_size / num_experts_per_tok"
    )
    norm_topk_prob: bool = _f(True, "MoE: renormalise the chosen experts' probabilities to sum 1")
    router_aux_loss_coef: float = _f(0.01, "MoE: weight of the load-balancing loss")

    def __post_init__(self):
        derivable = ("head_dim", "moe_intermediate_size", "yarn_original_length")
        for f in fields(self):
            value = getattr(self, f.name)
            if f.type == "bool":
                _require(isinstance(value, bool), f.name, value, "true or false")
            elif f.type == "int":
                ok = isinstance(value, int) and not isinstance(value, bool)
                _require(ok, f.name, value, "a whole number")
                least = 0 if f.name in derivable else 1
                _require(value >= least, f.name, value, f"at least {least}")
            else:
                ok = isinstance(value, (int, float)) and not isinstance(value, bool)
                _require(ok and math.isfinite(value), f.name, value, "a number")
        for name in derivable:
            if getattr(self, name) == 0:
                object.__setattr__(self, name, self._derived(name))
        H, A, KV = self.hidden_size, self.num_attention_heads, self.num_key_value_heads
        _require(A % KV == 0, "num_key_value_heads", KV, f"a divisor of num_attention_heads ({A})")
        _require(
            self.head_dim % 2 == 0, "head_dim", self.head_dim, "even (channels rotate in pairs)"
        )
        widths = {"vocab_size": 1, "intermediate_size": 1, "head_dim": A}
        if self.use_moe:
            widths |= {"moe_intermediate_size": self.num_experts}
        for name, times in widths.items():  # torch counts elements in int64
            value = getattr(self, name)
            _require(H * value * times < 2**40, name, value, "a size that fits a machine")
        # a file of a few bytes may ask for millions of modules, before any weight is looked at
        for name in ("num_hidden_layers", "num_experts"):
            value = getattr(self, name)
            _require(value <= MOST_MODULES, name, value, f"at most {MOST_MODULES}")
        _require(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")
        _require(self.rms_norm_eps > 0, "rms_norm_eps", self.rms_norm_eps, "positive")
        _require(self.rope_theta > 1, "rope_theta", self.rope_theta, "greater than 1")
        _require(self.yarn_factor >= 1, "yarn_factor", self.yarn_factor, "at least 1")
        for name in ("yarn_beta_fast", "yarn_beta_slow", "initializer_range"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "positive")
        _require(
            self.yarn_attention_factor >= 0,
            "yarn_attention_factor",
            self.yarn_attention_factor,
            "0 (automatic) or positive",
        )
        if self.use_moe:
            k, E = self.num_experts_per_tok, self.num_experts
            _require(k <= E, "num_experts_per_tok", k, f"at most num_experts ({E})")
            for name in ("hidden_size", "moe_intermediate_size"):  # rows of 16 bytes in bfloat16
                value = getattr(self, name)
                _require(value % 8 == 0, name, value, "a multiple of 8 (grouped matrix products)")

    @property
    def router_learns(self) -> bool:
        """Whether the language-model loss reaches the router: a single renormalised weight is 1."""
        return not (self.use_moe and self.norm_topk_prob and self.num_experts_per_tok == 1)

    def _derived(self, name: str) -> int:
        if name == "moe_intermediate_size":  # as many active channels as a dense model has
            return max(1, self.intermediate_size // self.num_experts_per_tok)
        if name == "yarn_original_length":
            return max(1, int(self.max_position_embeddings / max(self.yarn_factor, 1.0)))
        H, A = self.hidden_size, self.num_attention_heads
        _require(H % A == 0, "hidden_size", H, f"a multiple of num_attention_heads ({A})")
        return H // A

    @classmethod
    def preset(cls, name: str, **overrides) -> LMConfig:
        """A named size, single fields overridden: `LMConfig.preset("small", vocab_size=8000)`."""
        if name not in PRESETS:
            raise ValueError(f"preset {name!r}: expected one of {', '.join(PRESETS)}")
        return cls(**PRESETS[name] | overrides)

    def with_changes(self, **changes) -> LMConfig:
        """The same architecture with some fields replaced (validated again)."""
        return replace(self, **changes)

    def to_dict(self) -> dict:
        return asdict(self)

    def to_hf_dict(self) -> dict:
        """config.json of a transformers Qwen3 (dense) or Qwen3-MoE model; `dropout` rides along."""
        rope = {"rope_type": "default", "rope_theta": float(self.rope_theta)}
        if self.yarn_factor > 1:
            rope |= {
                "rope_type": "yarn",
                "factor": float(self.yarn_factor),
                "original_max_position_embeddings": self.yarn_original_length,
                "beta_fast": float(self.yarn_beta_fast),
                "beta_slow": float(self.yarn_beta_slow),
            }
            if self.yarn_attention_factor:
                rope["attention_factor"] = float(self.yarn_attention_factor)
        kind = "Qwen3Moe" if self.use_moe else "Qwen3"
        config = {
            "architectures": [f"{kind}ForCausalLM"],
            "model_type": "qwen3_moe" if self.use_moe else "qwen3",
            "dtype": "float32",
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "use_sliding_window": False,
            "sliding_window": None,
            "use_cache": True,
            "rope_parameters": rope,
            # what transformers 4 and other tools read instead of rope_parameters
            "rope_theta": float(self.rope_theta),
            "rope_scaling": None if self.yarn_factor == 1 else rope,
        }
        for name in _DENSE_FIELDS + _added_fields():
            config[name] = getattr(self, name)
        if self.use_moe:
            config |= {"decoder_sparse_step": 1, "mlp_only_layers": []}
            for name in _MOE_FIELDS:
                config[name] = getattr(self, name)
        return config

    @classmethod
    def from_hf_dict(cls, config: dict) -> LMConfig:
        """The LMConfig of a Qwen3 or Qwen3-MoE config.json.

        Raises ValueError naming the key where the file asks for something MiniMindLM does not
        compute, so that a model is never opened to give other numbers than its owner's.
        """
        kind = config.get("model_type")
        if kind == "minimind":  # an edited model of ours (see qwen3_check.py), the same fields
            use_moe = config.get("use_moe")
            _require(isinstance(use_moe, bool), "use_moe", use_moe, "true or false")
            kind = "qwen3_moe" if use_moe else "qwen3"
        if kind not in ("qwen3", "qwen3_moe"):
            raise ValueError(f"model_type {kind!r}: expected 'qwen3' or 'qwen3_moe'")
        if "auto_map" in config:
            raise ValueError("auto_map asks to run code from the folder; such folders are refused")
        unsupported = {
            "hidden_act": ("silu",),
            "attention_bias": (False,),
            "use_sliding_window": (False,),
            "quantization_config": (None,),
            "decoder_sparse_step": (1,),
            "mlp_only_layers": ([], None),
            "original_max_position_embeddings": (None,),  # belongs in rope_parameters
            "partial_rotary_factor": (1, None),
        }
        for key, allowed in unsupported.items():
            if key in config and config[key] not in allowed:
                raise ValueError(
                    f"{key} is {config[key]!r}; MiniMindLM computes {allowed[0]!r} only"
                )

        if set(config.get("layer_types") or ()) - {"full_attention"}:
            raise ValueError("layer_types: MiniMindLM computes 'full_attention' only")

        # what transformers takes where the file leaves these out; head_dim 0 is hidden / heads
        values = {"use_moe": kind == "qwen3_moe", "head_dim": 128 if kind == "qwen3" else 0}
        values |= {"tie_word_embeddings": False, "rope_theta": 10000.0}
        if values["use_moe"]:
            values |= {"router_aux_loss_coef": 0.001, "norm_topk_prob": False}
        if "num_local_experts" in config:  # the name transformers 5 gives num_experts
            config = config | {"num_experts": config["num_local_experts"]}
        names = _DENSE_FIELDS + _added_fields()
        for name in names + (_MOE_FIELDS if values["use_moe"] else ()):
            if config.get(name) is not None:
                values[name] = config[name]
            elif name in _REQUIRED_FIELDS:
                raise ValueError(f"{name} is missing; expected a whole number")
        rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
        if not isinstance(rope, dict):
            raise ValueError(f"rope_parameters is {rope!r}; expected an object")
        rope = {"rope_theta": config.get("rope_theta")} | rope
        if rope.get("rope_theta") is not None:
            values["rope_theta"] = float(rope["rope_theta"])
        rope_type = rope.get("rope_type", rope.get("type", "default"))
        if rope_type == "yarn":
            for key in ("mscale", "mscale_all_dim"):
                if rope.get(key):
                    raise ValueError(f"rope_parameters.{key} is not supported")
            if rope.get("truncate", True) is not True:
                raise ValueError("rope_parameters.truncate: only true is supported")
            if rope.get("partial_rotary_factor", 1) != 1:
                raise ValueError("rope_parameters.partial_rotary_factor: only 1 is supported")
            if rope.get("factor") is None:
                raise ValueError("rope_parameters.factor is missing; expected a number")
            if rope["factor"] == 1 and rope.get("attention_factor") not in (None, 1):
                raise ValueError("rope_parameters.attention_factor: not supported with factor 1")
            values |= {
                "yarn_factor": float(rope["factor"]),
                "yarn_original_length": int(
                    rope.get("original_max_position_embeddings")
                    or config.get("max_position_embeddings", cls.max_position_embeddings)
                ),
                "yarn_beta_fast": float(rope.get("beta_fast") or 32),
                "yarn_beta_slow": float(rope.get("beta_slow") or 1),
                "yarn_attention_factor": float(rope.get("attention_factor") or 0),
            }
        elif rope_type != "default":
            raise ValueError(f"rope type {rope_type!r}: expected 'default' or 'yarn'")
        return cls(**values)


def _require(ok: bool, name: str, value, expected: str):
    if not ok:
        raise ValueError(f"{name} is {value!r}; expected {expected}")


def _added_fields() -> tuple[str, ...]:
    """Fields that somebody has added to LMConfig: they are saved and loaded as they are."""
    known = {*_DENSE_FIELDS, *_MOE_FIELDS, "use_moe", "rope_theta"}
    names = [f.name for f in fields(LMConfig)]
    return tuple(n for n in names if n not in known and not n.startswith("yarn_"))


_DENSE_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "initializer_range",
    "dropout",
)
# Without these there is no network to speak of: transformers would take those of its largest model.
_REQUIRED_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
)
_MOE_FIELDS = (
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "norm_topk_prob",
    "router_aux_loss_coef",
)
