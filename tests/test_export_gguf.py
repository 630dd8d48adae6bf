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
from conftest import SENTENCES
from llama_cpp import LlamaCpp
from oracle_models import our_model, random_numbers, shake
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dataset.chat import NO_THINKING, THINKING, encode_conversation
from dataset.gguf_tokenizer import SPLITS
from dataset.tokenizer import load_tokenizer
from model import lora
from model.config import LMConfig
from model.generation import generate
from model.gguf_format import new_writer, write_model
from model.hf_format import load_config, load_model, save_model, weights_sha256
from model.json_file import read_json
from model.model import MiniMindLM
from scripts import export_gguf

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER = ROOT / "model" / "tokenizer"
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 24, "intermediate_size": 96}  # fmt: skip
EXPERTS = {"use_moe": True, "num_experts": 6, "num_experts_per_tok": 2,
           "moe_intermediate_size": 32, "norm_topk_prob": True}  # fmt: skip
STORIES = [
    "Once upon a time there was a little fox who counted 12 stars every night.",
    "从前有一只小猫，它喜欢在花园里看月亮，数了3颗星星。",
]
CHATS = [("Who are you?", "A very small model."), ("你好，你是谁？", "我是一个很小的模型。")]
TEXTS = [
    *SENTENCES, "", " ", "   ", "\n", "\n\n\n", "\t\tx", "a  b   c    d",
    "line \n  next\r\n\r\nend ", "12345 3.14159 2024年10月1日", "I'm you're WE'LL it's 'tis don''t",
    "🚀🙂👨\u200d👩\u200d👧 ✅ é ü ñ e\u0301", "def f(x):\n    return x**2  # 平方\n\n\tif x: pass",
    "https://a.b/c?d=e&f=%20", "<b>&amp;</b>", "混合text和数字123，以及标点！？…——“引号”",
    "¿Qué? Привет مرحبا שלום नमस्ते สวัสดี", "안녕하세요 こんにちは", "\u00a0\u3000\u2003x", "a\u200bb",
    "ＡＢＣ １２３ Ⅳ ½ ²", "___---===***", "'", "x'S",
]  # fmt: skip


@torch.enable_grad()
def teach(model: MiniMindLM, rows: list[tuple[list[int], list[int]]], steps: int = 80):
    """Rows (ids, mask) by heart, so that the likeliest token leads by far."""
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    for _ in range(steps):
        total = 0
        for ids, mask in rows:
            X, Y = torch.tensor([ids[:-1]]), torch.tensor(ids[1:])
            losses = torch.nn.functional.cross_entropy(model(X)[0][0], Y, reduction="none")
            weights = torch.tensor(mask[1:], dtype=torch.float32)
            total = total + (losses * weights).sum() / weights.sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert total.item() < 0.5
    model.eval()


def chat_row(tokenizer, question: str, answer: dict, tools=None, thinking=False):
    """(ids, mask) of one answer where it is generated."""
    ids, _ = encode_conversation(
        tokenizer, ask(question), tools, add_generation_prompt=True, enable_thinking=thinking
    )
    whole, _ = encode_conversation(tokenizer, [*ask(question), answer], tools)
    assert whole[: len(ids)] == ids and whole[-2] == tokenizer.control_id("<|im_end|>")
    return whole[:-1], [0] * len(ids) + [1] * (len(whole) - 1 - len(ids))


def ask(question: str) -> list[dict]:
    return [{"role": "user", "content": question}]


def lessons(tokenizer) -> list[tuple[list[int], list[int]]]:
    """STORIES and CHATS as ids and masks."""
    rows = []
    for story in STORIES:
        ids = [*tokenizer.encode_text(story), tokenizer.eos_id]
        rows.append((ids, [1] * len(ids)))
    for question, answer in CHATS:
        rows.append(chat_row(tokenizer, question, {"role": "assistant", "content": answer}))
    return rows


def make_folder(folder: Path, taught=True, template=NO_THINKING, rows=lessons, **numbers) -> Path:
    """A model folder with the shipped tokenizer; taught, or with random weights of large size."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(TOKENIZER)
    tokenizer.chat_template = template
    model = MiniMindLM(LMConfig(**{"vocab_size": 6400} | SIZES | numbers))
    if taught:
        teach(model, rows(tokenizer))
    else:
        shake(model)
    folder.mkdir()
    save_model(model, folder, [tokenizer.control_id("<|im_end|>"), tokenizer.eos_id])
    tokenizer.save(folder, chat_template=True)
    return folder


@pytest.fixture(scope="module")
def dense(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("dense") / "model")


@pytest.fixture(scope="module")
def experts(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("experts") / "model", **EXPERTS)


def export(monkeypatch, *flags) -> Path:
    """Run the script; the folder it wrote."""
    monkeypatch.setattr(sys, "argv", ["export_gguf.py", *map(str, flags)])
    export_gguf.main()
    return Path(flags[flags.index("--out_dir") + 1])


def greedy(folder: Path, ids: list[int], count: int = 40) -> list[int]:
    return list(generate(load_model(folder), ids, count, {0, 2}, temperature=0))


def largest_difference(llama: LlamaCpp, model: MiniMindLM, ids: list[int]) -> float:
    """Between the log-probabilities of all next tokens after ids."""
    theirs = llama.log_probs(ids, model.config.vocab_size)
    assert len(theirs) == model.config.vocab_size
    with torch.no_grad():
        ours = model(torch.tensor([ids]))[0][0, -1].log_softmax(-1).tolist()
    return max(abs(theirs[id] - log_prob) for id, log_prob in enumerate(ours))


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


def test_tokens_are_ours(monkeypatch, tmp_path, dense):
    """Every kind of text gets the same ids in llama.cpp, control tokens where they are named."""
    out = export(monkeypatch, "--model", dense, "--dtype", "f16", "--out_dir", tmp_path / "out")
    llama, tokenizer = LlamaCpp(out / "model-f16.gguf"), load_tokenizer(dense)
    for text in TEXTS:
        assert llama.tokenize(text) == tokenizer.encode_text(text), text
    pieces = ["<|im_start|>", "<think>", "<|reserved_3|>", "</tool_call>"]
    for piece in pieces:
        assert llama.tokenize(f"a {piece}b") == [
            *tokenizer.encode_text("a "), tokenizer.control_id(piece), *tokenizer.encode_text("b"),
        ]  # fmt: skip
    assert llama.tokenize("<|im_end|>", special=False) == tokenizer.encode_text("<|im_end|>")


def foreign_folder(folder: Path, tokenizer: Tokenizer, **more) -> Path:
    """A tiny model with a tokenizer of another make."""
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.decoder = decoders.ByteLevel()
    model = our_model(random_numbers(0, vocab_size=640, hidden_size=32, eos_token_id=0))
    folder.mkdir()
    save_model(model, folder, 0)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>", **more
    ).save_pretrained(folder)
    return folder


def split_by(expression: str):
    step = pre_tokenizers.Split(Regex(expression), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([step, byte_level])


@pytest.mark.parametrize("name", [*SPLITS, "gpt-2"])
def test_every_pre_tokenisation_with_a_name_gives_the_same_tokens(monkeypatch, tmp_path, name):
    """Tokenizers of other makes: the name that is written makes llama.cpp cut texts alike."""
    expression, ignore_merges = SPLITS.get(name, (None, False))
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = (
        split_by(expression) if expression else pre_tokenizers.ByteLevel(add_prefix_space=False)
    )
    folder = foreign_folder(tmp_path / "model", tokenizer)
    out = export(monkeypatch, "--model", folder, "--dtype", "f32", "--out_dir", tmp_path / "out")
    llama = LlamaCpp(out / "model-f32.gguf")
    for text in TEXTS:
        assert llama.tokenize(text) == tokenizer.encode(text).ids, text


def test_a_tokenizer_of_qwen3_is_named(monkeypatch, tmp_path, capsys):
    """Qwen2's splitting behind NFC, as Qwen3 has it: exported, and what differs is said."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = split_by(SPLITS["qwen2"][0])
    folder = foreign_folder(tmp_path / "model", tokenizer)
    out = export(monkeypatch, "--model", folder, "--dtype", "q8_0", "--out_dir", tmp_path / "out")
    assert "llama.cpp does not compose characters (NFC)" in capsys.readouterr().out
    llama = LlamaCpp(out / "model-q8_0.gguf")
    for text in SENTENCES:
        assert llama.tokenize(text) == tokenizer.encode(text).ids, text


def test_an_eos_that_is_no_token_is_refused(monkeypatch, tmp_path, dense):
    """A stop token beyond the vocabulary, and more of them than GGUF has places for, are named."""
    folder = shutil.copytree(dense, tmp_path / "model")
    for ids, message in (([2, 6400], "eos_token_id 6400"), ([0, 1, 2, 3], "places for three")):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
        with pytest.raises(ValueError, match=message):
            export(monkeypatch, "--model", folder, "--out_dir", tmp_path / "out")


def other_split(tokenizer):
    tokenizer.pre_tokenizer = split_by(r"\s+|\w+|[^\s\w]+")


def lower_case(tokenizer):
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.normalizer = normalizers.Lowercase()


def prefix_space(tokenizer):
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_split, "tokenizer.json: llama.cpp has no name for this pre-tokenisation"),
        (lower_case, "tokenizer.json: llama.cpp knows no normalizer.*Lowercase"),
        (prefix_space, "tokenizer.json: llama.cpp has no name for this pre-tokenisation"),
    ],
)
def test_a_tokenizer_llama_cpp_does_not_have_is_refused(monkeypatch, tmp_path, change, message):
    """What cuts texts otherwise is named, and nothing is written."""
    tokenizer = Tokenizer(models.BPE())
    change(tokenizer)
    folder = foreign_folder(tmp_path / "model", tokenizer)
    with pytest.raises(ValueError, match=message):
        export(monkeypatch, "--model", folder, "--out_dir", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_token_that_the_tokenizer_puts_first_is_put_first_there(monkeypatch, tmp_path, dense):
    """A post-processor that begins every text with a token becomes add_bos_token."""
    folder = shutil.copytree(dense, tmp_path / "model")
    spec = json.loads((folder / "tokenizer.json").read_text())
    token = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    processor = {
        "type": "TemplateProcessing", "single": [token, text], "pair": [token, text, text],
        "special_tokens": {
            "<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
        },
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(spec | {"post_processor": processor}))
    out = export(monkeypatch, "--model", folder, "--out_dir", tmp_path / "out")
    llama = LlamaCpp(out / "model-f16.gguf")
    expected = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("a b").ids
    assert expected[0] == 0
    assert llama.tokenize("a b") == expected
    processor["single"] = [text, token]
    (folder / "tokenizer.json").write_text(json.dumps(spec | {"post_processor": processor}))
    with pytest.raises(ValueError, match="one token before a text; the post_processor does more"):
        export(monkeypatch, "--model", folder, "--out_dir", tmp_path / "other")


def test_chat_in_llama_cpp_is_ours(monkeypatch, tmp_path, dense):
    """With a server's defaults its chat endpoint builds our prompt, stops where we stop and gives
    the answer as the answer, not as thoughts."""
    out = export(monkeypatch, "--model", dense, "--out_dir", tmp_path / "out")
    llama, tokenizer = LlamaCpp(out / "model-f16.gguf"), load_tokenizer(dense)
    for question, answer in CHATS:
        ids, _ = encode_conversation(tokenizer, ask(question), add_generation_prompt=True)
        expected = greedy(dense, ids)
        assert tokenizer.decode(expected) == answer + "<|im_end|>"
        assert llama.tokenize(llama.prompt_of(ask(question))) == ids
        choice = llama.chat(ask(question))
        assert choice["finish_reason"] == "stop" and choice["prompt_tokens"] == len(ids)
        assert choice["message"] == {"role": "assistant", "content": answer}
    messages = [{"role": "system", "content": "Be brief."}, *ask("Hi?"),
                {"role": "assistant", "content": "Yes."}, *ask("你好")]  # fmt: skip
    ids, _ = encode_conversation(tokenizer, messages, add_generation_prompt=True)
    assert llama.tokenize(llama.prompt_of(messages)) == ids


TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds. 相加。",
          "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}}]  # fmt: skip
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 12}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
THOUGHT = {"role": "assistant", "content": "It is 7.", "reasoning_content": "3 and 4."}


def thoughts_and_calls(tokenizer) -> list[tuple[list[int], list[int]]]:
    """Answers with and without thoughts, and one that calls a tool."""
    plain = {"role": "assistant", "content": "At once."}
    return [
        chat_row(tokenizer, "What is 3+4?", THOUGHT, thinking=True),
        chat_row(tokenizer, "What is 3+4?", plain),
        chat_row(tokenizer, "Add 12.", CALLING | {"reasoning_content": "A tool."}, TOOLS, True),
    ]


def test_a_model_that_thinks_keeps_its_switch_there(monkeypatch, tmp_path):
    """Thoughts arrive as thoughts, calls as calls; with the switch off the answer comes at once."""
    folder = make_folder(tmp_path / "model", template=THINKING, rows=thoughts_and_calls)
    out = export(monkeypatch, "--model", folder, "--out_dir", tmp_path / "out")
    llama = LlamaCpp(out / "model-f16.gguf")
    message = llama.chat(ask("What is 3+4?"))["message"]
    assert message["content"] == "It is 7." and message["reasoning_content"].strip() == "3 and 4."
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    message = llama.chat(ask("What is 3+4?"), **off)["message"]
    assert message == {"role": "assistant", "content": "At once."}
    choice = llama.chat(ask("Add 12."), tools=TOOLS)
    call = choice["message"]["tool_calls"][0]["function"]
    assert choice["finish_reason"] == "tool_calls"
    assert (call["name"], json.loads(call["arguments"])) == ("add", {"a": 12})


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("template", [THINKING, NO_THINKING], ids=["thinking", "no_thinking"])
def test_long_chats_and_tools_are_rendered_there_as_here(monkeypatch, tmp_path, template, thinking):
    """System prompt, earlier turns, thoughts, calls as JSON strings, results: equal ids."""
    folder = make_folder(tmp_path / "model", taught=False, template=template)
    out = export(monkeypatch, "--model", folder, "--out_dir", tmp_path / "out")
    llama, tokenizer = LlamaCpp(out / "model-f16.gguf"), load_tokenizer(folder)
    system, result = (
        {"role": "system", "content": "简短。"},
        {"role": "tool", "content": '{"x": 1}'},
    )
    text_call = CALLING | {"tool_calls": [{"type": "function", "function": {
        "name": "add", "arguments": '{"a": 12}'}}]}  # fmt: skip
    answer = THOUGHT if template == THINKING else {"role": "assistant", "content": "It is 7."}
    chats = [
        ([system, *ask("Hi"), answer, *ask("你好")], None),
        ([*ask("Add 12."), CALLING, result, result], TOOLS),
        ([system, *ask("Add 12."), text_call, result, answer, *ask("Again")], TOOLS),
    ]
    if template == THINKING:
        chats.append(([*ask("Add"), CALLING | {"reasoning_content": "Hm."}, result], TOOLS))
    for messages, tools in chats:
        more = {"tools": tools} if tools else {}
        prompt = llama.prompt_of(
            messages, chat_template_kwargs={"enable_thinking": thinking}, **more
        )
        messages = [m | {"tool_calls": [CALL]} if m.get("tool_calls") else m for m in messages]
        ids, _ = encode_conversation(tokenizer, messages, tools, True, thinking)
        assert llama.tokenize(prompt) == ids, prompt


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
