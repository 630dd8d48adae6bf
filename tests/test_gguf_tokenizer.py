"""Tokens and chats of exported files: llama.cpp cuts, renders and answers as we do."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import SENTENCES
from llama_cpp import CHATS, LlamaCpp, ask, chat_row, export, greedy, make_folder
from oracle_models import our_model, random_numbers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dataset.chat import NO_THINKING, THINKING, encode_conversation
from dataset.gguf_tokenizer import SPLITS
from dataset.tokenizer import load_tokenizer
from model.hf_format import save_model

TEXTS = [
    *SENTENCES, "", " ", "   ", "\n", "\n\n\n", "\t\tx", "a  b   c    d",
    "line \n  next\r\n\r\nend ", "12345 3.14159 2024年10月1日", "I'm you're WE'LL it's 'tis don''t",
    "🚀🙂👨\u200d👩\u200d👧 ✅ é ü ñ e\u0301", "def f(x):\n    return x**2  # 平方\n\n\tif x: pass",
    "https://a.b/c?d=e&f=%20", "<b>&amp;</b>", "混合text和数字123，以及标点！？…——“引号”",
    "¿Qué? Привет مرحبا שלום नमस्ते สวัสดี", "안녕하세요 こんにちは", "\u00a0\u3000\u2003x", "a\u200bb",
    "ＡＢＣ １２３ Ⅳ ½ ²", "___---===***", "'", "x'S",
]  # fmt: skip
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds. 相加。",
          "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}}]  # fmt: skip
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 12}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
THOUGHT = {"role": "assistant", "content": "It is 7.", "reasoning_content": "3 and 4."}


@pytest.fixture(scope="module")
def dense(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("dense") / "model")


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
