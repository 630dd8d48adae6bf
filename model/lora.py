"""Low-rank adapters as real modules: attach, merge, save and load in PEFT's folder format.

LoRA (Hu et al. 2021): y = W x + s · B A x with W frozen, A [r, in] and B [out, r] trained. The
scale s is alpha / r, or alpha / √r with rsLoRA (Kalajdzievski 2023). DoRA (Liu et al. 2024) also
trains the length m of every row of the sum: y = m · (W + s B A) x / ‖W + s B A‖.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from model.hf_format import read_header, some_names
from model.json_file import read_json, shown

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
_PREFIX = "base_model.model."  # of every tensor name in PEFT's file
_BASE_KEY = "base_sha256"  # in the file's metadata, which other tools leave alone


def default_targets(use_moe: bool) -> tuple[str, ...]:
    """All linear layers of attention and feed-forward; experts are stacked and get none."""
    return ATTENTION if use_moe else ATTENTION + FEED_FORWARD


@dataclass(frozen=True)
class LoRAConfig:
    """The numbers of an adapter. Raises ValueError naming the flag if it cannot exist."""

    lora_rank: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    lora_targets: tuple[str, ...] = ATTENTION + FEED_FORWARD
    use_rslora: bool = False
    use_dora: bool = False

    def __post_init__(self):
        if self.lora_rank < 1:
            raise ValueError(f"--lora_rank: expected at least 1, got {self.lora_rank}")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"--lora_dropout: expected 0 <= p < 1, got {self.lora_dropout}")
        if not self.lora_targets:
            raise ValueError("--lora_targets: expected at least one name")

    @property
    def scale(self) -> float:
        """s, what the product B A is multiplied by."""
        return self.lora_alpha / (math.sqrt(self.lora_rank) if self.use_rslora else self.lora_rank)

    def to_dict(self) -> dict:
        return asdict(self) | {"lora_targets": list(self.lora_targets)}

    def to_peft_dict(self, base: str) -> dict:
        """adapter_config.json for the model in the folder `base`.

        The base's path is absolute: PEFT reads it from whatever folder its process is in.
        """
        base = str(Path(base).resolve())
        return {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base,
            "r": self.lora_rank, "lora_alpha": self.lora_alpha, "lora_dropout": self.lora_dropout,
            "target_modules": list(self.lora_targets), "use_rslora": self.use_rslora,
            "use_dora": self.use_dora, "bias": "none", "fan_in_fan_out": False,
            "inference_mode": True, "init_lora_weights": True,
        }  # fmt: skip

    @classmethod
    def from_peft_dict(cls, content: dict) -> LoRAConfig:
        """Read an adapter_config.json; ValueError for kinds of adapters that are not built here."""
        if content.get("peft_type") != "LORA":
            raise ValueError(f"peft_type: expected 'LORA', got {content.get('peft_type')!r}")
        for key in ("rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform",
                    "fan_in_fan_out", "lora_bias", "layer_replication", "target_parameters",
                    "trainable_token_indices", "exclude_modules",
                    "ensure_weight_tying"):  # fmt: skip
            if content.get(key):
                raise ValueError(f"{key}: not supported here, got {content[key]!r}")
        if content.get("bias", "none") != "none":
            raise ValueError(f"bias: expected 'none', got {content['bias']!r}")
        targets = content.get("target_modules")
        if targets == "all-linear":
            targets = ATTENTION + FEED_FORWARD
        if not isinstance(targets, (list, tuple)) or not all(isinstance(t, str) for t in targets):
            raise ValueError(f"target_modules: expected a list of names, got {targets!r}")
        rank, alpha = content.get("r"), content.get("lora_alpha")
        dropout = content.get("lora_dropout", 0.0)
        for key, value in (("r", rank), ("lora_alpha", alpha), ("lora_dropout", dropout)):
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not is_number or not abs(value) < 1e30:
                raise ValueError(f"{key}: expected a number, got {value!r}")
        if int(rank) != rank:
            raise ValueError(f"r: expected a whole number, got {rank!r}")
        return cls(
            int(rank), float(alpha), float(dropout), tuple(sorted(targets)),
            bool(content.get("use_rslora")), bool(content.get("use_dora")),
        )  # fmt: skip


class LoRALinear(nn.Linear):
    """A frozen linear layer [out, in] with an adapter beside it: x [..., in] → [..., out]."""

    def __init__(self, base: nn.Linear, config: LoRAConfig):
        super().__init__(base.in_features, base.out_features, bias=False, device="meta")
        self.weight = base.weight  # the same parameter: attaching costs no copy
        self.scale = config.scale
        self.is_on = True
        kind = {"bias": False, "device": base.weight.device, "dtype": torch.float32}
        self.lora_A = nn.Linear(base.in_features, config.lora_rank, **kind)
        self.lora_B = nn.Linear(config.lora_rank, base.out_features, **kind)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)  # so that training starts from the base itself
        self.dropout = nn.Dropout(config.lora_dropout)
        self.lora_magnitude_vector = None
        if config.use_dora:
            self.lora_magnitude_vector = nn.Parameter(self.weight.detach().float().norm(dim=1))

    def delta(self) -> Tensor:
        """s · B A, float32 [out, in]: what the adapter adds to the weight."""
        with torch.autocast(self.weight.device.type, enabled=False):
            return self.scale * (self.lora_B.weight @ self.lora_A.weight)

    def merged_weight(self) -> Tensor:
        """The one matrix [out, in] that does what base and adapter do together, in float32."""
        weight = self.weight.detach().float() + self.delta()
        if self.lora_magnitude_vector is not None:
            weight = weight * (self.lora_magnitude_vector / weight.norm(dim=1))[:, None]
        return weight.detach()

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_on:
            return F.linear(x, self.weight)
        dropped = self.dropout(x)
        low_rank = self.scale * self.lora_B(self.lora_A(dropped.to(self._adapter_dtype(x))))
        y = F.linear(x, self.weight)
        if self.lora_magnitude_vector is None:
            return y + low_rank.to(y.dtype)
        # the length ‖W + s B A‖ counts as a constant (the paper's section 4.3)
        norm = (self.weight.float() + self.delta()).norm(dim=1).detach()
        ratio = (self.lora_magnitude_vector / norm).to(y.dtype)
        kept = y if dropped is x else F.linear(dropped, self.weight)
        return y + (ratio - 1) * kept + ratio * low_rank.to(y.dtype)

    def _adapter_dtype(self, x: Tensor) -> torch.dtype:
        """float32 beside a bfloat16 base; under autocast the products choose for themselves."""
        return x.dtype if torch.is_autocast_enabled(x.device.type) else torch.float32


def adapters(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """(name, layer) of every layer with an adapter."""
    return ((n, m) for n, m in model.named_modules() if isinstance(m, LoRALinear))


@contextmanager
def turned_off(model: nn.Module):
    """The model computes as its base does, as long as this lasts."""
    layers = [layer for _, layer in adapters(model)]
    for layer in layers:
        layer.is_on = False
    try:
        yield
    finally:
        for layer in layers:
            layer.is_on = True


def attach(model: nn.Module, config: LoRAConfig):
    """Freeze the model and put a fresh adapter beside every linear layer whose name is a target.

    Raises ValueError for a target that no linear layer of the model has.
    """
    targets = _targets(model, config)
    model.requires_grad_(False)
    for name, layer in targets.items():
        _replace(model, name, LoRALinear(layer, config).train(layer.training))


def _targets(model: nn.Module, config: LoRAConfig) -> dict[str, nn.Linear]:
    """The linear layers that get an adapter, by name; ValueError if the config does not fit."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    for target in config.lora_targets:
        if not any(name.split(".")[-1] == target for name in layers):
            have = ", ".join(sorted({name.split(".")[-1] for name in layers} - {"lm_head"}))
            raise ValueError(
                f"--lora_targets {shown(target)}: the model's linear layers are {have}"
            )
    widest = max(max(layer.weight.shape) for layer in layers.values())
    if config.lora_rank > widest:
        raise ValueError(f"--lora_rank {config.lora_rank}: no matrix is wider than {widest}")
    chosen = set(config.lora_targets)
    return {name: layer for name, layer in layers.items() if name.split(".")[-1] in chosen}


def detach(model: nn.Module):
    """Take all adapters away: the base as it was."""
    for name, layer in list(adapters(model)):
        _replace(model, name, _linear(layer.weight))


def merge(model: nn.Module):
    """Put the adapters into the weights: a plain model that computes the same.

    A head that is tied to the embedding and has an adapter becomes a matrix of its own: in the
    embedding the adapter would change every token that goes in.
    """
    for name, layer in list(adapters(model)):
        if name == "lm_head" and model.config.tie_word_embeddings:
            model.config = model.config.with_changes(tie_word_embeddings=False)
        merged = layer.merged_weight().to(layer.weight.dtype)
        _replace(model, name, _linear(nn.Parameter(merged, requires_grad=False)))


def _linear(weight: nn.Parameter) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = weight
    return layer


def _replace(model: nn.Module, name: str, layer: nn.Module):
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


def _tensors(model: nn.Module, weights: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The adapters' tensors under PEFT's names: the model's own, or those of `weights`."""
    weights = dict(model.named_parameters()) if weights is None else weights
    return {_PREFIX + n: p for n, p in weights.items() if ".lora_" in n}


def save_adapter(
    model: nn.Module,
    config: LoRAConfig,
    folder: str | Path,
    base: str | Path,
    base_sha256: str,
    weights: dict[str, Tensor] | None = None,
):
    """Write adapter_config.json and adapter_model.safetensors into an existing folder.

    base, base_sha256: the folder of the model under the adapter and its `weights_sha256`. weights:
    in place of the model's own, under its names (a copy, while the model is training on).
    """
    tensors = _tensors(model, weights)
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    metadata = {_BASE_KEY: base_sha256, "format": "pt"}
    data = save(tensors, metadata)
    # safetensors writes metadata in a random order; the same adapter shall have the same bytes
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size]) | {"__metadata__": metadata}
    text = json.dumps(header, separators=(",", ":")).encode().ljust(size)
    (Path(folder) / WEIGHTS_FILE).write_bytes(data[:8] + text + data[8 + size :])
    text = json.dumps(config.to_peft_dict(str(base)), indent=2)
    (Path(folder) / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def load_adapter(model: nn.Module, folder: str | Path, base_sha256: str) -> LoRAConfig:
    """Attach the adapter of a folder, ours or PEFT's, in place of any that is there.

    Raises ValueError with the path for an adapter of another base (ours says which; one made by
    PEFT does not, there the shapes decide) or a file that does not fit.
    """
    folder = Path(folder)
    path = folder / CONFIG_FILE
    content = read_json(path)
    try:
        config = LoRAConfig.from_peft_dict(content)
    except ValueError as error:
        raise ValueError(f"{path}: {shown(error)}") from None
    file = folder / WEIGHTS_FILE
    stored = read_header(file)
    with safe_open(file, framework="pt") as f:
        made_for = (f.metadata() or {}).get(_BASE_KEY)
    if made_for not in (None, base_sha256):
        raise ValueError(
            f"{folder}: the adapter was trained on other weights than this model's "
            f"(base {shown(made_for[:12])}, here {base_sha256[:12]})"
        )
    detach(model)
    try:
        expected = _expected_shapes(model, config)
        for names, where in (
            (expected.keys() - stored.keys(), "missing from"),
            (stored.keys() - expected.keys(), "not expected in"),
        ):
            if names:
                raise ValueError(f"{some_names(names)}: {where} the adapter")
        for name, shape in expected.items():
            if stored[name].shape != shape:
                raise ValueError(f"{name} is {stored[name].shape}, this model needs {shape}")
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    attach(model, config)
    with safe_open(file, framework="pt") as f, torch.no_grad():
        for name, parameter in _tensors(model).items():
            parameter.copy_(f.get_tensor(name))
    return config


def _expected_shapes(model: nn.Module, config: LoRAConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of an adapter for this model, under PEFT's names."""
    shapes = {}
    for name, layer in _targets(model, config).items():
        (out_features, in_features), rank = layer.weight.shape, config.lora_rank
        shapes[f"{_PREFIX}{name}.lora_A.weight"] = (rank, in_features)
        shapes[f"{_PREFIX}{name}.lora_B.weight"] = (out_features, rank)
        if config.use_dora:
            shapes[f"{_PREFIX}{name}.lora_magnitude_vector"] = (out_features,)
    return shapes
