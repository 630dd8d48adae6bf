"""model/hf_format.py: folders go to transformers and back; unfit ones are refused in one line."""

import json
import struct
import tracemalloc

import pytest
import torch
from oracle_models import (
    EOS,
    open_there,
    our_model,
    ours,
    random_ids,
    random_numbers,
    same_bits,
    save_here,
    save_there,
    their_model,
)
from safetensors.torch import load_file, save_file

from model.hf_format import load_config, load_model, read_json

KINDS = [(moe, tied) for moe in (False, True) for tied in (False, True)]


def numbers_of(moe: bool, tied: bool) -> dict:
    return random_numbers(3, moe, tie_word_embeddings=tied, num_hidden_layers=2)


@pytest.mark.parametrize(("moe", "tied"), KINDS)
def test_our_folder_survives_transformers_bit_by_bit(moe, tied, tmp_path):
    """save here → open and save in transformers → open here: same config, equal bits."""
    model = our_model(numbers_of(moe, tied))
    theirs = open_there(save_here(model, tmp_path / "ours"))
    assert theirs.config.tie_word_embeddings is tied
    back = load_model(save_there(theirs, tmp_path / "theirs"))
    assert back.config == model.config
    assert same_bits(model.state_dict(), back.state_dict())


@pytest.mark.parametrize(("moe", "tied"), KINDS)
def test_a_folder_of_transformers_survives_here_bit_by_bit(moe, tied, tmp_path):
    """save in transformers → open and save here → open in transformers: equal bits."""
    theirs = their_model(numbers_of(moe, tied))
    first = save_there(theirs, tmp_path / "first")
    second = save_here(load_model(first), tmp_path / "second")
    assert same_bits(
        load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    )
    assert same_bits(theirs.state_dict(), open_there(second).state_dict())


@pytest.mark.parametrize(("moe", "tied"), KINDS)
def test_a_sharded_folder_opens(moe, tied, tmp_path):
    """Weights in several files, as transformers writes large models, open like one file."""
    theirs = their_model(numbers_of(moe, tied))
    folder = save_there(theirs, tmp_path / "sharded", max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    whole = load_model(save_there(theirs, tmp_path / "whole"))
    assert same_bits(load_model(folder).state_dict(), whole.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("moe", [False, True])
def test_half_precision_files_open_as_float32(moe, dtype, tmp_path):
    """bf16 and f16 weights become the float32 numbers that they stand for."""
    theirs = their_model(numbers_of(moe, True)).to(dtype)
    folder = save_there(theirs, tmp_path / "half")
    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {dtype}
    model = load_model(folder)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.inv_freq.dtype == torch.float32
    wide = save_here(model, tmp_path / "wide")
    assert same_bits(
        open_there(folder, dtype=torch.float32).state_dict(), open_there(wide).state_dict()
    )


def test_saved_files_name_their_dtype_and_stop_token(tmp_path):
    """config.json and generation_config.json carry what transformers' generate needs."""
    model = our_model(numbers_of(False, True)).to(torch.bfloat16)
    folder = save_here(model, tmp_path / "m")
    assert read_json(folder / "config.json")["dtype"] == "bfloat16"
    assert load_model(folder, dtype=torch.bfloat16).lm_head.weight.dtype == torch.bfloat16
    assert open_there(folder).generation_config.eos_token_id == EOS


@pytest.mark.parametrize("tied", [False, True])
def test_an_opened_model_is_ready_to_train(tied, tmp_path):
    """Eval mode, every parameter trainable, and a tied head is one parameter with one gradient."""
    model = load_model(save_here(our_model(numbers_of(False, tied)), tmp_path / "m"))
    assert not model.training
    assert all(p.requires_grad for p in model.parameters())
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    model(torch.tensor([[1, 2, 3]]))[0].sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_an_opened_model_does_not_follow_its_file(tmp_path):
    """A file overwritten in place after opening leaves the model as it was."""
    folder = save_here(our_model(numbers_of(False, True)), tmp_path / "m")
    model = load_model(folder)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    file = folder / "model.safetensors"
    with open(file, "r+b") as f:
        f.seek(file.stat().st_size // 2)
        f.write(b"\x11" * (file.stat().st_size // 2))
    assert same_bits(model.state_dict(), before)


def test_a_given_config_takes_the_place_of_the_folders(tmp_path):
    """dropout and YaRN may be changed on opening; the rotary table follows."""
    numbers = random_numbers(0)
    folder = save_here(our_model(numbers), tmp_path / "m")
    config = load_config(folder).with_changes(dropout=0.1, yarn_factor=4.0, yarn_original_length=16)
    model = load_model(folder, config=config)
    assert model.config == config and model.model.layers[0].dropout.p == 0.1
    numbers["rope_parameters"] |= {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    ids = random_ids(numbers)
    with torch.no_grad():
        assert (model(ids)[0] - their_model_with(folder, numbers, ids)).abs().max() <= 1e-4


def their_model_with(folder, numbers: dict, ids: torch.Tensor) -> torch.Tensor:
    theirs = their_model(numbers)
    theirs.load_state_dict(open_there(folder).state_dict())
    return theirs(ids).logits


def test_a_tied_head_in_the_file_is_read_as_transformers_reads_it(tmp_path):
    """A redundant lm_head.weight that equals the embedding is fine; another one is refused."""
    folder = save_here(our_model(numbers_of(False, True)), tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    load_model(folder)
    tensors["lm_head.weight"][0, 0] += 1  # transformers would not tie these
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, "lm_head.weight", "tie_word_embeddings")


# ---- folders that must be refused


def refused(folder, *fragments):
    """Opening raises ValueError with one line that names the folder and every fragment."""
    with pytest.raises(ValueError) as error:
        load_model(folder)
    message = str(error.value)
    assert "\n" not in message and len(message) < 400, message
    for fragment in (str(folder), *fragments):
        assert fragment in message, message


@pytest.fixture(params=[False, True], ids=["dense", "moe"])
def folder(request, tmp_path):
    return save_here(our_model(numbers_of(request.param, False)), tmp_path / "model")


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        if value is None:
            config.pop(key)
        else:
            config[key] = value
    (folder / "config.json").write_text(json.dumps(config))


def edit_tensors(folder, edit):
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_the_untouched_folder_opens(folder):
    """The folder that the tests below damage is sound."""
    load_model(folder)


@pytest.mark.parametrize(
    "content",
    ["not json", '{"a": ', "[1, 2]", "null", '"text"', "", b"\xff\xfe\x00", "[" * 100_000],
)
def test_a_config_that_is_no_json_object_is_refused(folder, content):
    """Anything but a JSON object in config.json is named as such."""
    data = content if isinstance(content, bytes) else content.encode()
    (folder / "config.json").write_bytes(data)
    refused(folder, "config.json", "JSON")


def test_a_missing_config_is_refused(folder):
    """Without config.json, and without the folder, the message names the path."""
    (folder / "config.json").unlink()
    refused(folder, "config.json", "no such file")
    with pytest.raises(ValueError, match="no such file"):
        load_config(folder / "nowhere")


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"model_type": "llama"}, ["model_type", "llama", "qwen3"]),
        ({"model_type": None}, ["model_type"]),
        ({"model_type": ["qwen3"]}, ["model_type"]),
        ({"auto_map": {"AutoModel": "evil.Model"}}, ["auto_map"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "gelu", "silu"]),
        ({"attention_bias": True}, ["attention_bias"]),
        ({"use_sliding_window": True}, ["use_sliding_window"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config"]),
        ({"layer_types": ["sliding_attention"] * 2}, ["layer_types"]),
        ({"hidden_size": "64"}, ["hidden_size", "64"]),
        ({"hidden_size": 48.5}, ["hidden_size", "48.5"]),
        ({"hidden_size": -8}, ["hidden_size", "-8"]),
        ({"vocab_size": True}, ["vocab_size"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads", "divisor"]),
        ({"rms_norm_eps": "x"}, ["rms_norm_eps"]),
        ({"tie_word_embeddings": 1}, ["tie_word_embeddings"]),
        ({"hidden_size": None}, ["hidden_size is missing"]),
        ({"num_attention_heads": None}, ["num_attention_heads is missing"]),
        ({"rope_parameters": "yarn", "rope_scaling": None}, ["rope_parameters"]),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2}}, ["llama3"]),
        ({"rope_scaling": {"rope_type": "yarn"}}, ["rope_parameters.factor"]),
        ({"rope_scaling": {"type": "yarn", "factor": "x"}}, []),
        ({"rope_scaling": {"type": "yarn", "factor": 0.5}}, ["yarn_factor", "0.5"]),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "mscale": 1}}, ["mscale"]),
        ({"rope_scaling": {"rope_theta": 10**400}}, []),
        ({"rope_scaling": {"rope_theta": 0}}, ["rope_theta"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor"]),
    ],
)
def test_a_config_that_asks_for_something_else_is_refused(folder, changes, fragments):
    """A config.json that MiniMindLM would compute differently is refused by the key's name."""
    edit_config(folder, **changes)
    refused(folder, "config.json", *fragments)


def test_a_missing_tensor_is_refused(folder):
    """The first missing names are listed."""
    name = "model.layers.1.self_attn.q_norm.weight"
    edit_tensors(folder, lambda tensors: tensors.pop(name))
    refused(folder, name, "missing")


def test_a_missing_expert_is_refused(tmp_path):
    """One expert's weight missing is named as on disk."""
    folder = save_here(our_model(numbers_of(True, True)), tmp_path / "moe")
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    edit_tensors(folder, lambda tensors: tensors.pop(name))
    refused(folder, name, "missing")


def test_an_extra_tensor_is_refused(folder):
    """Weights that the config has no place for are listed, such as a bias."""
    name = "model.layers.0.self_attn.q_proj.bias"
    edit_tensors(folder, lambda tensors: tensors.update({name: torch.zeros(4)}))
    refused(folder, name, "not expected")


def test_a_wrong_shape_is_refused(folder):
    """Both shapes are in the message."""
    edit_tensors(folder, lambda t: t.update({"model.norm.weight": torch.ones(7)}))
    refused(folder, "model.safetensors", "model.norm.weight", "(7,)")


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.float64, torch.bool])
def test_a_wrong_dtype_is_refused(folder, dtype):
    """Only F32, BF16 and F16 are weights."""
    edit_tensors(
        folder, lambda t: t.update({"model.norm.weight": t["model.norm.weight"].to(dtype)})
    )
    refused(folder, "model.safetensors", "model.norm.weight", "F32")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(folder, keep):
    """A file that ends early is named, wherever it was cut."""
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused(folder, "model.safetensors", "not a readable safetensors file")


@pytest.mark.parametrize(
    "header",
    [b"{}", b"[]", b"\xff\xff", b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'],
)
def test_a_file_with_a_false_header_is_refused(folder, header):
    """A header that describes other bytes than the file holds is refused."""
    file = folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    refused(folder)


def test_a_folder_without_weights_is_refused(folder):
    """config.json alone is no model; a pickle beside it is not read."""
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, "no model.safetensors")


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", "", "x.bin", 7]
)
def test_an_index_that_points_elsewhere_is_refused(folder, name):
    """Shard names are plain names of .safetensors files in the folder: no path is followed."""
    good = folder / "model.safetensors"
    weight_map = dict.fromkeys(load_file(good), "here.safetensors")
    good.rename(folder / "here.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    load_model(folder)
    (folder.parent / "model.safetensors").write_bytes((folder / "here.safetensors").read_bytes())
    weight_map["model.norm.weight"] = name
    index.write_text(json.dumps({"weight_map": weight_map}))
    refused(folder, "index.json", repr(str(name)))


@pytest.mark.parametrize("content", ["{}", '{"weight_map": {}}', '{"weight_map": [1]}', "nope"])
def test_a_broken_index_is_refused(folder, content):
    """An index without a weight_map is named."""
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    refused(folder, "index.json")


def test_a_missing_shard_is_refused(folder):
    """An index that names a file which is not there says which."""
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}'
    )
    refused(folder, "model-00001-of-00002.safetensors")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_size", 10**9),
        ("vocab_size", 10**15),
        ("vocab_size", 10**30),
        ("hidden_size", 10**9),
        ("hidden_size", 8 * 10**15),
        ("intermediate_size", 10**9),
        ("intermediate_size", 10**25),
        ("num_hidden_layers", 10**9),
        ("num_attention_heads", 4 * 10**9),
        ("head_dim", 10**12),
        ("num_experts", 10**9),
        ("num_experts", 10**25),
        ("moe_intermediate_size", 8 * 10**9),
    ],
)
def test_huge_declared_sizes_are_refused_before_memory_is_taken(key, value, tmp_path):
    """A config.json of a few bytes cannot make us allocate: no weights of that size are there."""
    moe = "exper" in key or "moe" in key
    folder = save_here(our_model(numbers_of(moe, False)), tmp_path / "model")
    edit_config(folder, **{key: value})
    tracemalloc.start()
    refused(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # bytes of Python objects; a real tensor of this size would fail at once


def test_the_message_of_a_misread_number_is_the_configs(folder):
    """A config that contradicts the weights is told in the config's and the weights' numbers."""
    edit_config(folder, vocab_size=4096)
    refused(folder, "config.json", "4096")


def test_opening_gives_the_config_that_was_saved(tmp_path):
    """load_config reads what save_model wrote, dropout included."""
    numbers = numbers_of(True, False)
    config = ours(numbers).with_changes(dropout=0.125)
    model = our_model(numbers)
    model.config = config
    assert load_config(save_here(model, tmp_path / "m")) == config
