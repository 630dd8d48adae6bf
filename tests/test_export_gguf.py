"""scripts/export_gguf.py: llama.cpp reads the files and computes what we compute."""

import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import gguf
import pytest
import torch
from llama_cpp import (
    EXPERTS,
    ROOT,
    STORIES,
    LlamaCpp,
    export,
    greedy,
    largest_difference,
    make_folder,
)

from dataset.tokenizer import load_tokenizer
from model import lora
from model.config import LMConfig
from model.gguf_format import new_writer, write_model
from model.hf_format import load_config, load_model, save_model, weights_sha256
from model.json_file import read_json
from model.model import MiniMindLM
from scripts import export_gguf


@pytest.fixture(scope="module")
def dense(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("dense") / "model")


@pytest.fixture(scope="module")
def experts(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("experts") / "model", **EXPERTS)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize("kind", ["dense", "experts"])
def test_greedy_tokens_in_llama_cpp_are_ours(monkeypatch, request, tmp_path, kind, dtype):
    """English and Chinese prompts, given as text, go on in llama.cpp's defaults as they do here."""
    folder = request.getfixturevalue(kind)
    out = export(monkeypatch, "--model", folder, "--dtype", dtype, "--out_dir", tmp_path / "out")
    llama, tokenizer = LlamaCpp(out / f"model-{dtype}.gguf"), load_tokenizer(folder)
    for story in STORIES:
        prompt = story[:9]
        ids = tokenizer.encode_text(prompt)
        expected = greedy(folder, ids)
        assert len(expected) > 8
        assert tokenizer.decode([*ids, *expected]) == story + "<|endoftext|>"
        assert llama.greedy(prompt, 40) == expected


NUMBERS = {
    "tied": {},
    "untied": {"tie_word_embeddings": False, "rms_norm_eps": 1e-2, "rope_theta": 500.0},
    "yarn": {"yarn_factor": 4.0, "yarn_original_length": 32, "rope_theta": 10000.0},
    "yarn_set": {"yarn_factor": 2.5, "yarn_original_length": 64, "yarn_attention_factor": 1.3,
                 "rope_theta": 10000.0},
    "moe": EXPERTS,
    "moe_top_1": EXPERTS | {"num_experts_per_tok": 1},
    "padded": {"vocab_size": 6432},
}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_logits_of_every_kind_of_model_are_ours(monkeypatch, tmp_path, name):
    """f32 files: log-probabilities of the whole vocabulary agree to 1e-4, 60 tokens in."""
    folder = make_folder(tmp_path / "model", taught=False, **NUMBERS[name])
    out = export(monkeypatch, "--model", folder, "--dtype", "f32", "--out_dir", tmp_path / "out")
    llama, model = LlamaCpp(out / "model-f32.gguf", exact=True), load_model(folder)
    ids = torch.randint(6400, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    assert largest_difference(llama, model, ids) < 1e-4


@pytest.mark.parametrize(("dtype", "bound"), [("f16", 0.05), ("bf16", 0.3), ("q8_0", 0.6)])
def test_smaller_types_are_close(monkeypatch, tmp_path, dense, dtype, bound):
    """Rounded weights change log-probabilities, but a little."""
    out = export(monkeypatch, "--model", dense, "--dtype", dtype, "--out_dir", tmp_path / "out")
    llama = LlamaCpp(out / f"model-{dtype}.gguf", exact=True)
    ids = load_tokenizer(dense).encode_text(STORIES[0][:20])
    assert 1e-6 < largest_difference(llama, load_model(dense), ids) < bound


def test_tensors_are_stored_as_asked(monkeypatch, tmp_path, experts):
    """Matrices in q8_0, vectors and routers in f32, rows that 32 does not divide in f16."""
    folder = tmp_path / "model"
    make_folder(folder, taught=False, **EXPERTS | {"moe_intermediate_size": 40})
    out = export(monkeypatch, "--model", folder, "--dtype", "q8_0", "--out_dir", tmp_path / "out")
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(out / "model-q8_0.gguf").tensors}
    assert kinds["token_embd.weight"] == kinds["blk.1.attn_q.weight"] == "Q8_0"
    assert kinds["blk.0.attn_q_norm.weight"] == kinds["blk.0.ffn_gate_inp.weight"] == "F32"
    assert kinds["blk.0.ffn_up_exps.weight"] == "Q8_0"
    assert kinds["blk.0.ffn_down_exps.weight"] == "F16"
    assert LlamaCpp(out / "model-q8_0.gguf").greedy("a", 2)


@pytest.mark.parametrize("dtype", ["f16", "q8_0"])
def test_memory_holds_a_tensor_not_the_model(tmp_path, dtype):
    """Weights are read, converted and written one at a time."""
    config = LMConfig(
        vocab_size=96, hidden_size=128, num_hidden_layers=24, num_attention_heads=4,
        intermediate_size=512,
    )  # fmt: skip
    save_model(MiniMindLM(config), tmp_path, 0)
    size = (tmp_path / "model.safetensors").stat().st_size
    for file in ("a.gguf", "b.gguf"):  # what is imported on the way belongs to the first
        writer = new_writer(tmp_path / file, config, "model", "m")
        tracemalloc.start()
        write_model(writer, tmp_path, config, dtype)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert size > 20e6 and peak < size / 5


def test_a_bfloat16_folder_in_several_files_is_read(monkeypatch, tmp_path, dense):
    """Weights in bfloat16, split by transformers, arrive bit by bit in a bf16 file."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.bfloat16)
    folder = shutil.copytree(dense, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="300KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    out = export(monkeypatch, "--model", folder, "--dtype", "bf16", "--out_dir", tmp_path / "out")
    llama = LlamaCpp(out / "model-bf16.gguf", exact=True)
    ids = load_tokenizer(folder).encode_text(STORIES[1][:12])
    assert largest_difference(llama, load_model(folder), ids) < 0.02


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("kind", ["dense", "experts"])
def test_an_adapter_does_there_what_it_does_here(monkeypatch, request, tmp_path, kind, use_rslora):
    """Base and adapter in llama.cpp give the logits of base and adapter here, rsLoRA included."""
    folder = request.getfixturevalue(kind)
    model = load_model(folder)
    plain = load_model(folder)
    targets = lora.default_targets(model.config.use_moe)
    config = lora.LoRAConfig(4, 12.0, 0.0, targets, use_rslora)
    lora.attach(model, config)
    generator = torch.Generator().manual_seed(2)
    for _, layer in lora.adapters(model):
        layer.lora_B.weight.data.normal_(0, 0.05, generator=generator)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    lora.save_adapter(model, config, adapter, folder, weights_sha256(folder))
    out = export(
        monkeypatch, "--model", folder, "--lora", adapter, "--dtype", "f32",
        "--out_dir", tmp_path / "out",
    )  # fmt: skip
    base, file = out / "model-f32.gguf", out / "adapter.gguf"
    ids = load_tokenizer(folder).encode_text(STORIES[0][:30])
    llama = LlamaCpp(base, file, exact=True)
    assert largest_difference(llama, model, ids) < 1e-4
    assert largest_difference(llama, plain, ids) > 0.1
    assert "ADAPTER ./adapter.gguf" in (out / "Modelfile").read_text()


def test_a_dora_adapter_is_refused(monkeypatch, tmp_path, dense):
    """GGUF has no place for DoRA's lengths: named, with the way out, and nothing is written."""
    model = load_model(dense)
    config = lora.LoRAConfig(use_dora=True)
    lora.attach(model, config)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    lora.save_adapter(model, config, adapter, dense, weights_sha256(dense))
    flags = ["--model", dense, "--lora", adapter, "--out_dir", tmp_path / "out"]
    with pytest.raises(ValueError, match=r"DoRA adapter.*merge"):
        export(monkeypatch, *flags)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_an_adapter_of_a_tied_head_is_refused(monkeypatch, tmp_path, dense):
    """The GGUF model has no head of its own: llama.cpp would not load the adapter."""
    model = load_model(dense)
    assert model.config.tie_word_embeddings
    config = lora.LoRAConfig(lora_targets=("lm_head", "q_proj"))
    lora.attach(model, config)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    lora.save_adapter(model, config, adapter, dense, weights_sha256(dense))
    flags = ["--model", dense, "--lora", adapter, "--out_dir", tmp_path / "out"]
    with pytest.raises(ValueError, match=r"lm_head, which is tied.*merge"):
        export(monkeypatch, *flags)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_experts_that_are_not_renormalised_are_refused(monkeypatch, tmp_path):
    """llama.cpp would compute another model: with the check left out, it does."""
    numbers = EXPERTS | {"norm_topk_prob": False}
    folder = make_folder(tmp_path / "model", taught=False, **numbers)
    flags = ["--model", folder, "--dtype", "f32", "--out_dir", tmp_path / "out"]
    with pytest.raises(ValueError, match=r"config.json: norm_topk_prob is false.*renormalises"):
        export(monkeypatch, *flags)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(export_gguf, "check_architecture", lambda config: None)
    llama = LlamaCpp(export(monkeypatch, *flags) / "model-f32.gguf", exact=True)
    model = load_model(folder)
    normed = MiniMindLM(load_config(folder).with_changes(norm_topk_prob=True))
    normed.load_state_dict(model.state_dict())
    ids = list(range(50, 80))
    assert largest_difference(llama, normed.eval(), ids) < 1e-4
    assert largest_difference(llama, model, ids) > 0.1


def test_yarn_that_llama_cpp_does_not_read_is_refused(monkeypatch, tmp_path):
    """It takes beta_fast and beta_slow from no Qwen3 file: other values than its own are named."""
    numbers = NUMBERS["yarn"] | {"yarn_beta_slow": 2.0}
    folder = make_folder(tmp_path / "model", taught=False, **numbers)
    flags = ["--model", folder, "--dtype", "f32", "--out_dir", tmp_path / "out"]
    with pytest.raises(ValueError, match=r"config.json: YaRN's beta_fast 32 and beta_slow 2:"):
        export(monkeypatch, *flags)
    monkeypatch.setattr(export_gguf, "check_architecture", lambda config: None)
    llama = LlamaCpp(export(monkeypatch, *flags) / "model-f32.gguf", exact=True)
    assert largest_difference(llama, load_model(folder), list(range(50, 100))) > 0.1


def test_an_altered_model_is_refused(monkeypatch, tmp_path, dense):
    """A folder that does not call itself Qwen3 has no name in llama.cpp."""
    folder = shutil.copytree(dense, tmp_path / "model")
    config = read_json(folder / "config.json") | {"model_type": "minimind"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="model_type 'minimind'"):
        export(monkeypatch, "--model", folder, "--out_dir", tmp_path / "out")


def test_values_beyond_f16_are_refused(monkeypatch, tmp_path, dense):
    """f16 ends at 65504: the tensor is named, and nothing is left behind."""
    folder = shutil.copytree(dense, tmp_path / "model")
    model = load_model(folder)
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] = 1e5
    save_model(model, folder, [2, 0])
    with pytest.raises(ValueError, match=r"--dtype f16 cannot hold.*blk.1.ffn_up.weight"):
        export(monkeypatch, "--model", folder, "--out_dir", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    export(monkeypatch, "--model", folder, "--dtype", "bf16", "--out_dir", tmp_path / "out")


def run_script(*flags, **environment) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "scripts" / "export_gguf.py", *flags]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


def test_mistakes_end_with_one_line(tmp_path):
    """A model that is not there, or a package: status 2, one line, what to do."""
    result = run_script("--model", tmp_path / "nothing")
    assert result.returncode == 2 and result.stderr.startswith("error: --model")
    assert result.stderr.count("\n") == 1
    (tmp_path / "gguf.py").write_text("raise ModuleNotFoundError('gguf')")
    result = run_script(PYTHONPATH=str(tmp_path))
    assert result.returncode == 2
    assert result.stderr == "error: this needs the gguf package: pip install gguf==0.19.0\n"


def test_an_existing_folder_is_left_alone(monkeypatch, tmp_path, dense):
    """--out_dir must be new."""
    with pytest.raises(ValueError, match="is there already"):
        export(monkeypatch, "--model", dense, "--out_dir", tmp_path)
