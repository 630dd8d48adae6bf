"""Writes a model folder, or an adapter for one, as a GGUF file: what llama.cpp and Ollama read.

Keys and tensor names are those of llama.cpp's own converter for Qwen3 and Qwen3-MoE. Tensors are
read, converted and written one at a time, so memory holds the largest of them, not the model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors import safe_open
from torch import Tensor, nn

from model.config import LMConfig
from model.hf_format import StoredTensor, checked_tensors
from model.lora import LoRAConfig, adapters

FILE_TYPES = {  # --dtype, and how its matrices are stored
    "f32": (Kind.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (Kind.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (Kind.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (Kind.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
LARGEST_F16 = 65504.0
_EXPERT = re.compile(r"(model\.layers\.\d+\.mlp)\.experts\.(\d+)\.(\w+_proj)\.weight")


def check_architecture(config: LMConfig):
    """ValueError for a model that llama.cpp would open and compute otherwise."""
    if config.use_moe and not config.norm_topk_prob:
        raise ValueError(
            "norm_topk_prob is false, but llama.cpp always renormalises the chosen experts' "
            "weights: it would compute another model without a word"
        )
    if config.yarn_factor > 1 and (config.yarn_beta_fast, config.yarn_beta_slow) != (32, 1):
        raise ValueError(
            f"YaRN's beta_fast {config.yarn_beta_fast:g} and beta_slow {config.yarn_beta_slow:g}: "
            "llama.cpp reads neither from a Qwen3 file and computes with 32 and 1"
        )


def new_writer(path: Path, config: LMConfig, kind: str, name: str) -> gguf.GGUFWriter:
    """A writer for a model or an adapter (`kind`: "model" or "adapter"), not yet opened."""
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[_architecture(config)])
    writer.add_type(kind)
    writer.add_name(name)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    return writer


def add_architecture(writer: gguf.GGUFWriter, config: LMConfig):
    """The numbers of the network."""
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_freq_base(config.rope_theta)
    if config.yarn_factor > 1:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(config.yarn_factor)
        writer.add_rope_scaling_orig_ctx_len(config.yarn_original_length)
        if config.yarn_attention_factor:  # there it multiplies the usual one
            usual = 0.1 * math.log(config.yarn_factor) + 1
            writer.add_rope_scaling_attn_factors(config.yarn_attention_factor / usual)
    if config.use_moe:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def write_model(writer: gguf.GGUFWriter, folder: Path, config: LMConfig, dtype: str) -> list[str]:
    """Write the weights of a model folder and close the file; the tensors that q8_0 cannot hold.

    dtype: a key of FILE_TYPES. Vectors and routers stay float32, as llama.cpp's converter has
    them; rows that 32 does not divide are stored as f16 in place of q8_0.
    """
    matrices, file_type = FILE_TYPES[dtype]
    writer.add_file_type(file_type)
    stored = checked_tensors(folder, config)
    if config.tie_word_embeddings:
        stored.pop("lm_head.weight", None)
    kinds, parts, as_f16 = {}, {}, []
    for name, names in _grouped(stored, config).items():
        shape = stored[names[0]].shape
        if len(shape) == 1 or name.endswith("ffn_gate_inp.weight"):
            kind = Kind.F32
        elif matrices == Kind.Q8_0 and shape[-1] % 32 != 0:
            kind = Kind.F16
            as_f16.append(name)
        else:
            kind = matrices
        kinds[name], parts[name] = kind, names
        _announce(writer, name, shape if len(names) == 1 else (len(names), *shape), kind)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, names in parts.items():
            read = [_read(stored[part], part) for part in names]
            yield name, read[0] if len(read) == 1 else torch.stack(read)

    _write(writer, tensors(), kinds)
    return as_f16


def write_adapter(writer: gguf.GGUFWriter, model: nn.Module, config: LoRAConfig):
    """Write the adapters attached to a model, in float32, and close the file.

    llama.cpp multiplies B A by alpha / rank; an rsLoRA's alpha / √rank is folded into alpha.
    """
    if config.use_dora:
        raise ValueError(
            "a DoRA adapter: GGUF has no place for its lengths; merge it first (merge_lora.py)"
        )
    if model.config.tie_word_embeddings and any(n == "lm_head" for n, _ in adapters(model)):
        raise ValueError(
            "an adapter of lm_head, which is tied to the embedding: the GGUF model has no head of "
            "its own for it; merge it first (merge_lora.py)"
        )
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, config.scale * config.lora_rank)
    names = _tensor_names(model.config)
    tensors = {}
    for name, layer in adapters(model):
        base = names(f"{name}.weight")
        tensors[f"{base}.lora_a"] = layer.lora_A.weight.detach()
        tensors[f"{base}.lora_b"] = layer.lora_B.weight.detach()
    for name, tensor in tensors.items():
        _announce(writer, name, tuple(tensor.shape), Kind.F32)
    _write(writer, iter(tensors.items()), dict.fromkeys(tensors, Kind.F32))


def _architecture(config: LMConfig) -> gguf.MODEL_ARCH:
    return gguf.MODEL_ARCH.QWEN3MOE if config.use_moe else gguf.MODEL_ARCH.QWEN3


def _tensor_names(config: LMConfig) -> Callable[[str], str]:
    """From a parameter's name to the one in GGUF."""
    table = gguf.get_tensor_name_map(_architecture(config), config.num_hidden_layers)

    def translate(name: str) -> str:
        found = table.get_name(name, try_suffixes=(".weight",))
        assert found is not None, name
        return found

    return translate


def _grouped(stored: dict[str, StoredTensor], config: LMConfig) -> dict[str, list[str]]:
    """The tensors on disk that make up each one of the GGUF file: one, or one of every expert."""
    translate = _tensor_names(config)
    groups: dict[str, list[str]] = {}
    for name in sorted(stored, key=_reading_order):
        if match := _EXPERT.fullmatch(name):
            groups.setdefault(translate(f"{match[1]}.experts.{match[3]}.weight"), []).append(name)
        else:
            groups[translate(name)] = [name]
    return groups


def _reading_order(name: str) -> list:
    """Layers and experts by their number, all else by name."""
    return [(int(p), "") if p.isdigit() else (-1, p) for p in name.split(".")]


def _read(tensor: StoredTensor, name: str) -> Tensor:
    with safe_open(tensor.file, framework="pt") as f:
        return f.get_tensor(name)


def _announce(writer: gguf.GGUFWriter, name: str, shape: tuple[int, ...], kind: Kind):
    """A tensor's header, which stands before all data."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    count = int(np.prod(shape, dtype=np.int64))
    writer.add_tensor_info(name, shape, np.dtype(np.float32), count // block * size, kind)


def _write(writer: gguf.GGUFWriter, tensors: Iterator[tuple[str, Tensor]], kinds: dict[str, Kind]):
    """Header, keys and then every tensor, converted to its kind."""
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in tensors:
            values = tensor.float().numpy()
            if kinds[name] == Kind.F16 and not np.abs(values).max() <= LARGEST_F16:
                raise ValueError(f"--dtype f16 cannot hold the values of {name}; take bf16 or f32")
            writer.write_tensor_data(gguf.quantize(values, kinds[name]))
    finally:
        writer.close()
