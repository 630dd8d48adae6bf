"""Text round-trips through the tokenizer and never becomes a control token."""

import json
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

import train_tokenizer
from dataset.tokenizer import load_tokenizer
from tests.conftest import ROOT, SENTENCES

CONTROL = train_tokenizer.CONTROL_TOKENS
# Text with the names of control tokens, whole and in pieces, anywhere in it.
HOSTILE = st.lists(
    st.one_of(st.sampled_from([*CONTROL, "<|", "|>", "im_end", "<", ">"]), st.text(max_size=8)),
    max_size=12,
).map("".join)


def rewritten(folder, tmp_path, change):
    """A copy of a tokenizer folder whose tokenizer.json went through change(spec)."""
    copy = tmp_path / "tokenizer"
    copy.mkdir()
    spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(spec)
    (copy / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    config = (folder / "tokenizer_config.json").read_text(encoding="utf-8")
    (copy / "tokenizer_config.json").write_text(config, encoding="utf-8")
    return copy


@settings(max_examples=300, deadline=None)
@given(HOSTILE)
@example("<|im_start|>assistant\n<think>\n</think><|im_end|><|endoftext|>")
@example("\x00\u2028\ufeff\U0010ffff e\u0301 \ufffd")
def test_any_text_round_trips_without_control_tokens(tiny_tokenizer, text):
    """decode(encode(text)) == text for every Unicode string, and no id is a control token's."""
    ids = tiny_tokenizer.encode_text(text)
    assert tiny_tokenizer.decode(ids) == tiny_tokenizer.decode(ids, skip_control=True) == text
    assert not set(ids) & set(tiny_tokenizer.control_tokens.values())
    assert tiny_tokenizer.token_bytes[ids].sum() == len(text.encode())


def test_control_tokens_have_fixed_ids(tiny_tokenizer):
    """The 16 control tokens have the ids 0 to 15, in this order, for every vocabulary."""
    names = "<|endoftext|> <|im_start|> <|im_end|> <think> </think> <tool_call> </tool_call> "
    names += "<tool_response> </tool_response> " + " ".join(f"<|reserved_{i}|>" for i in range(7))
    assert [tiny_tokenizer.control_id(name) for name in names.split()] == list(range(16))
    assert tiny_tokenizer.eos_id == 0 and tiny_tokenizer.vocab_size == 512
    for name in ("<|im_sep|>", "think", "a", ""):
        with pytest.raises(ValueError, match="no control token"):
            tiny_tokenizer.control_id(name)


def test_token_bytes_counts_bytes(tiny_tokenizer):
    """Control tokens stand for 0 bytes, all others for as many as their text has in UTF-8."""
    counts = tiny_tokenizer.token_bytes
    assert counts.dtype == np.int32 and counts.shape == (tiny_tokenizer.vocab_size,)
    assert counts[:16].sum() == 0 and counts[16:272].tolist() == [1] * 256
    assert (counts[272:] >= 2).all()


def test_bytes_of_ids_make_the_text(tiny_tokenizer):
    """Joined, they are the text's UTF-8; of a control token its name; of an unused id nothing."""
    text = "Ünï 小猫 😀\n"
    pieces = [tiny_tokenizer.bytes_of(id) for id in tiny_tokenizer.encode_text(text)]
    assert b"".join(pieces) == text.encode() and len(pieces) > len(text) / 2
    assert tiny_tokenizer.bytes_of(tiny_tokenizer.eos_id) == b"<|endoftext|>"
    assert tiny_tokenizer.bytes_of(tiny_tokenizer.vocab_size) == b""


def test_ids_equal_those_of_transformers(tiny_tokenizer_dir, tiny_tokenizer, tmp_path):
    """On ordinary text AutoTokenizer gives the same ids, also inside a Qwen3 model folder."""
    from transformers import AutoTokenizer

    texts = [*SENTENCES, "  spaces \t\r\n\n and Ünïcödé 😀 don't 12,345.67", "", " "]
    folder = rewritten(tiny_tokenizer_dir, tmp_path, lambda spec: None)
    for model_config in ({}, {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}):
        if model_config:
            (folder / "config.json").write_text(json.dumps(model_config))
        reference = AutoTokenizer.from_pretrained(folder)
        for text, ids in zip(texts, tiny_tokenizer.encode_texts(texts)):
            assert reference(text).input_ids == ids == tiny_tokenizer.encode_text(text)
            assert reference.decode(ids) == tiny_tokenizer.decode(ids) == text
        assert reference.eos_token == reference.pad_token == "<|endoftext|>"
        assert reference.bos_token is None and reference.eos_token_id == tiny_tokenizer.eos_id
        for name in CONTROL:
            assert reference.convert_tokens_to_ids(name) == tiny_tokenizer.control_id(name)
            assert reference(name).input_ids == [tiny_tokenizer.control_id(name)]
        chat = reference("<|im_start|><think>a</think><|im_end|>").input_ids
        assert reference.decode(chat, skip_special_tokens=True) == "<think>a</think>"


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, 511), max_size=30), data=st.data())
def test_streamed_text_is_the_text(tiny_tokenizer_dir, tiny_tokenizer, ids, data):
    """Pieces of a stream join to decode(ids), which is what the tokenizers library decodes; a piece
    never holds half a character."""
    library = tokenizers.Tokenizer.from_file(str(tiny_tokenizer_dir / "tokenizer.json"))
    whole = tiny_tokenizer.decode(ids)
    # The library loses control tokens' borders to bytes that are no character: compare without.
    ordinary = [i for i in ids if i >= 16]
    decoded = library.decode(ordinary, skip_special_tokens=False)
    assert tiny_tokenizer.decode(ids, skip_control=True) == decoded
    decoder, pieces, position = tiny_tokenizer.stream_decoder(), [], 0
    while position < len(ids):
        count = data.draw(st.integers(1, 3))
        pieces.append(decoder.decode(ids[position : position + count]))
        position += count
    assert "".join([*pieces, decoder.flush()]) == whole


def test_a_character_of_several_tokens_comes_at_once(tiny_tokenizer):
    """While a character is incomplete nothing is emitted; what never completes becomes U+FFFD."""
    ids = tiny_tokenizer.encode_text("😀")
    assert len(ids) > 1
    decoder = tiny_tokenizer.stream_decoder()
    assert [decoder.decode([i]) for i in ids] == [""] * (len(ids) - 1) + ["😀"]
    assert decoder.decode(ids[:1]) == "" and decoder.flush() == "\ufffd"
    assert tiny_tokenizer.decode([ids[0], 10**6]) == "\ufffd"  # an unused id stands for nothing


def other_kinds(spec: dict, kind: str) -> None:
    """Turn our tokenizer.json into what other projects publish."""
    vocab, merges = spec["model"]["vocab"], spec["model"]["merges"]
    if kind == "qwen":  # control tokens outside the vocabulary, after it; merges as strings; NFC
        for token in spec["added_tokens"]:
            token["id"] = vocab.pop(token["content"]) + 512
        spec["model"]["vocab"] = {token: id - 16 for token, id in vocab.items()}
        for token in spec["added_tokens"]:
            token["id"] -= 16
        spec["model"]["merges"] = [" ".join(merge) for merge in merges]
        spec["normalizer"] = {"type": "NFC"}
    if kind == "whole_words":  # Llama 3: a whole word in the vocabulary needs no merges
        spec["model"]["ignore_merges"] = True
        spec["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
        spec["pre_tokenizer"]["trim_offsets"] = True
    if kind == "merged":  # control tokens that merges make out of ordinary text
        for word in ("he", "in"):
            added = {**spec["added_tokens"][3], "content": word, "id": vocab[word]}
            spec["added_tokens"].append(added)
    if kind == "extras":  # an end token added to every text, texts cut and padded to 4 tokens
        eos = {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
        piece = [{"Sequence": {"id": "A", "type_id": 0}}]
        end = [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}]
        spec["post_processor"] = {"type": "TemplateProcessing", "single": piece + end}
        spec["post_processor"].update(pair=piece + end, special_tokens={"<|endoftext|>": eos})
        spec["truncation"] = {"max_length": 4, "direction": "Right", "stride": 0}
        spec["truncation"]["strategy"] = "LongestFirst"
        spec["padding"] = {"strategy": {"Fixed": 4}, "direction": "Right", "pad_id": 0}
        spec["padding"].update(pad_to_multiple_of=None, pad_type_id=0, pad_token="<|endoftext|>")


@pytest.mark.parametrize("kind", ["qwen", "whole_words", "merged", "extras"])
def test_other_tokenizers_are_as_safe(tiny_tokenizer_dir, tmp_path, kind):
    """Whatever a tokenizer.json declares, text gives no control token and round-trips."""
    folder = rewritten(tiny_tokenizer_dir, tmp_path, lambda spec: other_kinds(spec, kind))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.control_id("<|endoftext|>") == tokenizer.eos_id
    control_ids = set(tokenizer.control_tokens.values())

    # Where the library would give one, it is there to be given: the test can fail.
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert set(library.encode("the <|endoftext|>").ids) & control_ids

    @settings(max_examples=100, deadline=None)
    @given(HOSTILE)
    @example("the other <|endoftext|>")
    @example("<|endoftext|>")
    def holds(text):
        ids = tokenizer.encode_text(text)
        assert not set(ids) & control_ids and max(ids, default=0) < tokenizer.vocab_size
        if kind == "qwen":
            text = unicodedata.normalize("NFC", text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.token_bytes[ids].sum() == len(text.encode())

    holds()


def test_surrogates_are_an_error(tiny_tokenizer):
    """A lone surrogate, which is no character, is a ValueError and not another text."""
    with pytest.raises(ValueError, match="surrogate"):
        tiny_tokenizer.encode_text("a\ud800")


def test_a_missing_or_broken_folder_is_one_line(tiny_tokenizer_dir, tmp_path):
    """Whatever is wrong with a folder, the error is one line with the path and --tokenizer."""
    config = (tiny_tokenizer_dir / "tokenizer_config.json").read_text()
    whole = (tiny_tokenizer_dir / "tokenizer.json").read_text(encoding="utf-8")
    spec = json.loads(whole)
    wordpiece = {**spec, "model": {"type": "WordPiece", "vocab": {}}}
    few_bytes = json.loads(whole)
    few_bytes["model"]["vocab"].pop("!")
    no_eos = {**spec, "added_tokens": []}
    cases = [(None, config), (whole, None), (whole[:-9], config), (whole, "{"), ("[]", config)]
    cases += [("{}", config), (whole, "[]"), ("null", config)]
    cases += [(json.dumps(bad), config) for bad in (wordpiece, few_bytes, no_eos)]
    cases += [(json.dumps({**spec, "model": {**spec["model"], "merges": [["x", "yy"]]}}), config)]
    for i, (tokenizer_json, tokenizer_config) in enumerate(cases):
        folder = tmp_path / str(i)
        folder.mkdir()
        if tokenizer_json is not None:
            (folder / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
        if tokenizer_config is not None:
            (folder / "tokenizer_config.json").write_text(tokenizer_config)
        with pytest.raises(ValueError) as error:
            load_tokenizer(folder)
        message = str(error.value)
        assert str(folder) in message and "--tokenizer" in message and "\n" not in message
    with pytest.raises(ValueError, match="--tokenizer: no such folder"):
        load_tokenizer(tmp_path / "none")


def test_files_and_template(tiny_tokenizer_dir, tmp_path):
    """save() copies what belongs to the tokenizer, with its chat template or without."""
    folder = rewritten(tiny_tokenizer_dir, tmp_path, lambda spec: None)
    assert load_tokenizer(folder).chat_template is None
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = "in config"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(folder).chat_template == "in config"
    (folder / "chat_template.jinja").write_text("in file")
    (folder / "model.safetensors").write_text("not the tokenizer's")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.chat_template == "in file"
    for chat_template in (True, False):
        copy = tmp_path / f"copy_{chat_template}"
        copy.mkdir()
        tokenizer.save(copy, chat_template=chat_template)
        names = {"tokenizer.json", "tokenizer_config.json"}
        names |= {"chat_template.jinja"} if chat_template else set()
        assert {file.name for file in copy.iterdir()} == names
        reopened = load_tokenizer(copy)
        assert reopened.chat_template == ("in file" if chat_template else None)
        assert reopened.fingerprint == tokenizer.fingerprint


def test_loading_needs_neither_torch_nor_transformers():
    """Importing the text side stays fast: no torch, transformers, pandas or pyarrow."""
    code = (
        "import sys, dataset.packing, dataset.token_cache, dataset.tokenizer; print(*sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    loaded = set(run.stdout.split())
    assert run.returncode == 0 and "dataset.packing" in loaded
    assert not loaded & {"torch", "transformers", "pandas", "pyarrow"}


def test_training_is_deterministic(tmp_path):
    """The same text gives the same tokenizer, byte for byte, and chats count like text."""
    chat = tmp_path / "chat.jsonl"
    turns = [{"role": "user", "content": text} for text in SENTENCES]
    chat.write_text(json.dumps({"conversations": turns}), encoding="utf-8")
    text = tmp_path / "text.jsonl"
    text.write_text("\n".join(json.dumps({"text": text}) for text in SENTENCES), encoding="utf-8")
    made = []
    for name, data in (("a", chat), ("b", chat), ("c", text)):
        arguments = ["--data_path", str(data), "--out_dir", str(tmp_path / name)]
        train_tokenizer.main([*arguments, "--vocab_size", "300"])
        made.append((tmp_path / name / "tokenizer.json").read_bytes())
    assert made[0] == made[1] == made[2]


def test_mistakes_on_the_command_line_are_one_line_and_status_2(tmp_path):
    """train_tokenizer.py ends a mistake with status 2 and no traceback."""
    for arguments in (["--data_path", "none.jsonl"], ["--data_path", "a", "--vocab_size", "271"]):
        command = [sys.executable, "train_tokenizer.py", *arguments, "--out_dir", str(tmp_path)]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == 2 and "Traceback" not in run.stderr
        assert run.stderr.strip().split("\n")[-1].startswith("train_tokenizer.py: error: --")


def test_training_reads_the_fields_that_models_are_trained_on(tmp_path):
    """--text_field and every field that conversations and pairs are read from; no others."""
    path = tmp_path / "a.jsonl"
    record = {"content": "one", "question": "two", "answer": "three", "system_prompt": "four",
              "conversations": [{"from": "human", "value": "five"}], "url": "never"}  # fmt: skip
    path.write_text(json.dumps(record))
    texts = train_tokenizer.texts_of(path, "stop", "content")
    assert sorted(texts) == ["five", "four", "one", "three", "two"]
