"""Reads and writes a model folder: config.json + model.safetensors, as transformers does for Qwen3.

Dense weights have the same names in memory and on disk. A mixture of experts is stacked per layer
in memory (`mlp.gate_proj [E, I, C]`) and split per expert on disk
(`mlp.experts.3.gate_proj.weight [I, C]`).
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.config import LMConfig
from model.model import MiniMindLM

_STACKED = re.compile(r"(model\.layers\.\d+\.mlp)\.(gate_proj|up_proj|down_proj)")
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def save_model(
    model: MiniMindLM,
    folder: str | Path,
    eos_token_id: int | list[int],
    weights: dict[str, Tensor] | None = None,
):
    """Write model.safetensors, config.json and generation_config.json into an existing folder.

    eos_token_id: the token, or tokens, at which generation stops. weights: in place of the model's
    own, under its names (a copy, while the model is training on). Weights keep their dtype.
    """
    folder = Path(folder)
    weights = model.state_dict() if weights is None else weights
    tensors = {name: t.contiguous() for name, t in _to_disk(weights, model.config).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    config = model.config.to_hf_dict() | {"dtype": dtype, "eos_token_id": eos_token_id}
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", {"eos_token_id": eos_token_id})


def load_config(folder: str | Path) -> LMConfig:
    """The LMConfig of a model folder. ValueError names the file if it is missing or unfit."""
    path = Path(folder) / "config.json"
    config = read_json(path)
    try:
        return LMConfig.from_hf_dict(config)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{path}: {error}") from None


def load_model(
    folder: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    config: LMConfig | None = None,
) -> MiniMindLM:
    """Open a Qwen3 or Qwen3-MoE folder, ours or anyone's, single-file or sharded.

    config: in place of the folder's own, to change what the weights do not decide (dropout, YaRN).
    Names, shapes and dtypes are checked against the config before memory is taken. Raises
    ValueError with the path and what does not fit.
    """
    folder = Path(folder)
    config = config or load_config(folder)
    where = _tensor_files(folder)
    if config.num_hidden_layers > len(where):
        raise ValueError(
            f"{folder}: config.json asks for {config.num_hidden_layers} layers, "
            f"the weights hold {len(where)} tensors"
        )
    if config.use_moe and config.num_experts > len(where):
        raise ValueError(
            f"{folder}: config.json asks for {config.num_experts} experts, "
            f"the weights hold {len(where)} tensors"
        )
    with torch.device("meta"):
        model = MiniMindLM(config)
    expected = {name: tuple(t.shape) for name, t in _to_disk(model.state_dict(), config).items()}
    _check_tensors(folder, where, expected, config.tie_word_embeddings)

    tensors = {}
    for file in sorted({where[name] for name in expected}):
        with safe_open(file, framework="pt") as f:
            for name in expected:
                if where[name] == file:
                    tensor = f.get_tensor(name)  # a view of the file: copy before it changes
                    tensors[name] = tensor.to(device=device, dtype=dtype, copy=True)
    if config.tie_word_embeddings and "lm_head.weight" in where:
        with safe_open(where["lm_head.weight"], framework="pt") as f:
            head = f.get_tensor("lm_head.weight").to(device=device, dtype=dtype)
        if not torch.equal(head, tensors["model.embed_tokens.weight"]):
            raise ValueError(
                f"{folder}: config.json ties lm_head.weight to the embedding, but the weights hold "
                "another one; set tie_word_embeddings to false there"
            )
    state = _from_disk(tensors, config)
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True, assign=True)
    if config.tie_word_embeddings:  # assign made two parameters over one storage
        model.lm_head.weight = model.model.embed_tokens.weight
    model.set_rotary_frequencies(device)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model.eval()


def weights_sha256(folder: str | Path) -> str:
    """A hash of a folder's weights: names, shapes, dtypes and bits, however split into files."""
    where = _tensor_files(Path(folder))
    digest = hashlib.sha256()
    for name in sorted(where):
        with safe_open(where[name], framework="pt") as f:
            tensor = f.get_tensor(name)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_json(path: Path) -> dict:
    """A JSON object from a file. ValueError names the path if it is missing or not an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path}: no such file; expected a model folder there") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _write_json(path: Path, content: dict):
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _to_disk(weights: dict[str, Tensor], config: LMConfig) -> dict[str, Tensor]:
    """Tensors under their names on disk: a tied head left out, experts split."""
    tensors = {}
    for name, tensor in weights.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if match := _STACKED.fullmatch(name):
            for e, expert in enumerate(tensor):
                tensors[f"{match[1]}.experts.{e}.{match[2]}.weight"] = expert
        else:
            tensors[name] = tensor
    return tensors


def _from_disk(tensors: dict[str, Tensor], config: LMConfig) -> dict[str, Tensor]:
    """The inverse of _to_disk: experts stacked again."""
    if not config.use_moe:
        return tensors
    state = {name: t for name, t in tensors.items() if ".mlp.experts." not in name}
    for layer in range(config.num_hidden_layers):
        for part in ("gate_proj", "up_proj", "down_proj"):
            prefix = f"model.layers.{layer}.mlp"
            experts = (f"{prefix}.experts.{e}.{part}.weight" for e in range(config.num_experts))
            state[f"{prefix}.{part}"] = torch.stack([tensors[name] for name in experts])
    return state


def _tensor_files(folder: Path) -> dict[str, Path]:
    """Which file of the folder holds each tensor: name → path."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        files = {folder / "model.safetensors"}
    elif index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{index}: expected an object 'weight_map'")
        names = set(map(str, weight_map.values()))
        for name in names:  # a path out of the folder is never followed
            if name != Path(name).name or not name.endswith(".safetensors"):
                raise ValueError(f"{index}: {name!r} is not the name of a .safetensors file here")
        files = {folder / name for name in names}
    else:
        raise ValueError(f"{folder}: no model.safetensors; expected a model folder")
    where = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as f:
                where |= dict.fromkeys(f.keys(), file)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{file}: not a readable safetensors file ({error})") from None
    return where


def _check_tensors(folder: Path, where: dict, expected: dict[str, tuple], tied: bool):
    extra = set(where) - set(expected) - ({"lm_head.weight"} if tied else set())
    missing = set(expected) - set(where)
    for names, what in ((missing, "missing from"), (extra, "not expected in")):
        if names:
            some = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
            raise ValueError(f"{folder}: {len(names)} tensors {what} the weights: {some}")
    for file in sorted(set(where.values())):
        with safe_open(file, framework="pt") as f:
            for name in f.keys():  # noqa: SIM118 (safe_open is not iterable)
                tensor = f.get_slice(name)
                if name in expected and tuple(tensor.get_shape()) != expected[name]:
                    raise ValueError(
                        f"{file}: {name} is {tuple(tensor.get_shape())}, "
                        f"config.json makes it {expected[name]}"
                    )
                if tensor.get_dtype() not in _DTYPES:
                    raise ValueError(
                        f"{file}: {name} is {tensor.get_dtype()}; expected {', '.join(_DTYPES)}"
                    )
