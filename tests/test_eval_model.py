"""eval_model.py as a user meets it: one prompt, a chat, chat format, mistakes."""

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

import eval_model
from dataset.chat import encode_conversation, training_sequences
from dataset.chat_turns import TRAINED
from dataset.tokenizer import load_tokenizer
from model.decoding_layers import Int8Linear
from model.engine import Engine
from model.generation import generate
from model.hf_format import load_model
from model.model import MiniMindLM
from model.request import Drawn
from training import cli

TEMPLATE = Path(__file__).resolve().parent.parent / "model" / "tokenizer" / "chat_template.jinja"


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory, tiny_tokenizer_dir) -> Path:
    """A base model that transformers has written, with our tokenizer and no chat template."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=512, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, intermediate_size=64, max_position_embeddings=512,
        tie_word_embeddings=True, initializer_range=0.4,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    load_tokenizer(tiny_tokenizer_dir).save(folder, chat_template=False)
    return folder


@pytest.fixture
def chat_folder(base_folder, tmp_path) -> Path:
    """The same model as a chat-tuned one: its folder has a chat template."""
    folder = tmp_path / "chat"
    shutil.copytree(base_folder, folder)
    shutil.copyfile(TEMPLATE, folder / "chat_template.jinja")
    return folder


def run(monkeypatch, capsys, *flags, stdin=""):
    """What the script prints for these flags and this typed input."""
    monkeypatch.setattr(sys, "argv", ["eval_model.py", *map(str, flags)])
    monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
    capsys.readouterr()
    eval_model.main()
    return capsys.readouterr().out


def greedy(folder, ids, count):
    """The answer's text, by the decoder that test_generation.py holds against transformers."""
    tokenizer, model = load_tokenizer(folder), load_model(folder)
    stops = {tokenizer.eos_id, tokenizer.control_id("<|im_end|>")}
    new = list(generate(model, ids, count, stops, temperature=0))
    return tokenizer.decode([token for token in new if token not in stops])


def test_a_base_model_continues_the_prompt(monkeypatch, capsys, base_folder):
    """Without a chat template the prompt is shown and continued as it stands, as other tools do."""
    tokenizer = load_tokenizer(base_folder)
    ids = tokenizer.encode_text("The cat <|im_end|>")
    out = run(
        monkeypatch, capsys, "--model", base_folder, "--prompt", "The cat <|im_end|>",
        "--temperature", "0", "--max_new_tokens", "12",
    )  # fmt: skip
    assert out == "The cat <|im_end|>" + greedy(base_folder, ids, 12) + "\n"


@pytest.mark.parametrize("prompt", ["The cat", "从前有一只小猫", "  def f(x):"])
def test_transformers_continues_a_prompt_alike(monkeypatch, capsys, base_folder, prompt):
    """generate(**tokenizer(prompt)) gives what eval_model.py prints: both begin with one prompt."""
    out = run(
        monkeypatch, capsys, "--model", base_folder, "--prompt", prompt,
        "--temperature", "0", "--max_new_tokens", "12",
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    model = AutoModelForCausalLM.from_pretrained(base_folder).eval()
    ids = model.generate(
        **tokenizer(prompt, return_tensors="pt"), max_new_tokens=12, do_sample=False,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )[0]  # fmt: skip
    assert out == tokenizer.decode(ids, skip_special_tokens=True) + "\n"


def test_a_chat_keeps_thoughts_and_calls_as_training_has_them(monkeypatch, capsys, chat_folder):
    """What the assistant wrote goes into the next prompt as a message, not as letters: its think
    block is gone there, its tool call stands between the control tokens."""
    tokenizer = load_tokenizer(chat_folder)
    call = {"name": "add", "arguments": {"a": 1}}
    message = {
        "role": "assistant", "content": "Gladly.", "reasoning_content": "Hm.", "tool_calls": [call],
    }  # fmt: skip
    talk = [{"role": "user", "content": "1?"}, message]
    ((ids, mask),) = training_sequences(tokenizer, talk)
    said = [id for id, on in zip(ids, mask) if on & TRAINED]
    prompts = []

    def fake(engine, request):
        prompts.append(request.prompt)
        for id in said:
            yield Drawn(request, id, None, id == said[-1])

    monkeypatch.setattr(Engine, "stream", fake)
    out = run(monkeypatch, capsys, "--model", chat_folder, "--thinking", stdin="1?\nagain\n")
    assert "<think>\nHm.\n</think>\n\nGladly." in out and '{"name": "add"' in out
    talk.append({"role": "user", "content": "again"})
    assert prompts[1] == encode_conversation(tokenizer, talk, None, True, True).ids
    assert prompts[1].count(tokenizer.control_id("<tool_call>")) == 1
    assert tokenizer.control_id("<think>") not in prompts[1]


def test_a_chat_model_answers_in_chat_format(monkeypatch, capsys, chat_folder):
    """With a chat template in the folder the prompt becomes a user turn; only the answer shows."""
    tokenizer = load_tokenizer(chat_folder)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    ids, _ = encode_conversation(tokenizer, messages, add_generation_prompt=True)
    out = run(
        monkeypatch, capsys, "--model", chat_folder, "--prompt", "Hello", "--system", "Be brief.",
        "--temperature", "0", "--max_new_tokens", "12",
    )  # fmt: skip
    assert out == greedy(chat_folder, ids, 12) + "\n"


def test_chat_keeps_the_history_until_reset(monkeypatch, capsys, chat_folder):
    """The second answer sees the first turn; after /reset the same line is answered as at first.

    Lines that come from a pipe are shown.
    """
    out = run(
        monkeypatch, capsys, "--model", chat_folder, "--temperature", "0",
        "--max_new_tokens", "8", stdin="Hello\nHello\n/reset\nHello\n/nonsense\n/help\n/exit\n",
    )  # fmt: skip
    first, second, _reset, third, unknown = out.split("> ")[1:6]
    assert first == third and first != second
    assert "(a new conversation)" in out and "/nonsense: no such command" in unknown
    assert "/retry" in out.split("> ")[6]

    tokenizer = load_tokenizer(chat_folder)
    messages = [{"role": "user", "content": "Hello"}]
    ids, _ = encode_conversation(tokenizer, messages, add_generation_prompt=True)
    answer = greedy(chat_folder, ids, 8)
    assert first == "Hello\n" + answer + "\n"
    messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "Hello"}]
    ids, _ = encode_conversation(tokenizer, messages, add_generation_prompt=True)
    assert second == "Hello\n" + greedy(chat_folder, ids, 8) + "\n"


def test_end_of_input_leaves_the_chat(monkeypatch, capsys, base_folder):
    """Ctrl-D (end of input) ends the chat with status 0."""
    assert "a base model" in run(monkeypatch, capsys, "--model", base_folder, stdin="")


def test_a_seed_repeats_an_answer(monkeypatch, capsys, base_folder):
    """The same --seed gives the same text, another seed another."""
    flags = ["--model", base_folder, "--prompt", "The", "--temperature", "1.5"]
    a, b, c = (run(monkeypatch, capsys, *flags, "--seed", seed) for seed in (1, 1, 2))
    assert a == b != c


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--model", "{tmp}"], "--model"),
        (["--model", "{tmp}/none"], "--model"),
        (["--model", "{base}", "--eval_data", "{tmp}/none.jsonl"], "--eval_data"),
        (["--model", "{base}", "--prompt", "a " * 600], "max_position_embeddings"),
        (["--model", "{base}", "--temperature", "-1"], "--temperature"),
        (["--model", "{base}", "--temperature", "1e-39"], "expected 0 or 0.001 to 100"),
        (["--model", "{base}", "--seed", "9" * 20], "--seed"),
        (["--model", "{base}", "--max_new_tokens", "512"], "--max_new_tokens 512"),
        (["--model", "{base}", "--eval_data", "x", "--max_seq_len", "513"], "--max_seq_len 513"),
    ],
)
def test_mistakes_end_with_status_2(monkeypatch, capsys, base_folder, tmp_path, flags, expected):
    """One clear line that names the flag, and exit status 2."""
    flags = [flag.format(tmp=tmp_path, base=base_folder) for flag in flags]
    monkeypatch.setattr(sys, "argv", ["eval_model.py", *flags])
    with pytest.raises(SystemExit) as stopped:
        cli.run(eval_model.main)
    assert stopped.value.code == 2
    assert expected in capsys.readouterr().err


def test_loss_on_held_out_data_ends_with_a_json_line(monkeypatch, capsys, base_folder, tmp_path):
    """--eval_data prints loss, perplexity = e^loss and bits per byte as a last JSON line."""
    data = tmp_path / "held_out.jsonl"
    data.write_text('{"text": "The cat sat on the mat."}\n{"text": "小猫"}\n')
    out = run(
        monkeypatch, capsys, "--model", base_folder, "--eval_data", data, "--cache_dir", tmp_path
    )
    result = json.loads(out.splitlines()[-1])
    assert result["perplexity"] == pytest.approx(torch.tensor(result["loss"]).exp().item())
    nats = result["loss"] * result["tokens"]
    num_bytes = len("The cat sat on the mat.小猫".encode())
    assert result["bits_per_byte"] == pytest.approx(nats / 0.6931471805599453 / num_bytes)


def test_extremes_of_sampling_give_an_answer(monkeypatch, capsys, base_folder):
    """The smallest and largest values that the flags take draw tokens and never fail."""
    flags = ["--model", base_folder, "--prompt", "The", "--max_new_tokens", "3", "--seed", "1"]
    for temperature in ("0", "0.001", "100"):
        for extreme in (
            ["--top_p", "1e-6"], ["--top_p", "1"], ["--top_k", "1"], ["--top_k", "2147483647"],
            ["--repetition_penalty", "0.1"], ["--repetition_penalty", "10"],
        ):  # fmt: skip
            out = run(monkeypatch, capsys, *flags, "--temperature", temperature, *extreme)
            assert out.startswith("The")


def test_measuring_shows_its_progress(monkeypatch, capsys, base_folder, tmp_path):
    """--eval_data tells on stderr how many batches there are and how many are done."""
    data = tmp_path / "held_out.jsonl"
    data.write_text(json.dumps({"text": "The cat sat on the mat. " * 50}) + "\n")
    monkeypatch.setattr(sys, "argv", [
        "eval_model.py", "--model", str(base_folder), "--eval_data", str(data), "--cache_dir",
        str(tmp_path), "--max_seq_len", "16", "--batch_size", "2",
    ])  # fmt: skip
    capsys.readouterr()
    eval_model.main()
    shown = capsys.readouterr()
    rows = -(-json.loads(shown.out.splitlines()[-1])["tokens"] // 16)
    batches = -(-rows // 2)
    assert batches > 3 and f"{batches}/{batches}" in shown.err


def test_a_chat_computes_each_token_once(monkeypatch, capsys, chat_folder):
    """A turn's first forward pass takes what the turn before has not seen, and nothing else.

    An answer's text may be cut into other tokens than the model wrote; from there on it is read
    again. The beginning of the chat format is known even after /reset.
    """
    computed, held, forward, stream = [], [[]], MiniMindLM.forward, Engine.stream

    def counting_forward(self, input_ids, *args, **options):
        computed.append(input_ids.shape[1])
        return forward(self, input_ids, *args, **options)

    def recording_stream(engine, request):
        before = len(computed)
        yield from stream(engine, request)
        same = [a == b for a, b in zip(held[-1], request.prompt[:-1])]
        known = same.index(False) if False in same else len(same)
        new = [len(request.prompt) - known] + [1] * (len(request.tokens) - 1)
        assert computed[before:] == new
        assert known > 0 or len(held) == 1
        # nothing came after the last token: it is not computed
        held.append(request.prompt + request.tokens[:-1])

    monkeypatch.setattr(MiniMindLM, "forward", counting_forward)
    monkeypatch.setattr(Engine, "stream", recording_stream)
    run(
        monkeypatch, capsys, "--model", chat_folder, "--temperature", "0", "--max_new_tokens", "8",
        stdin="Hello\nAnd again, please\nAnd again, please\n/reset\nHello\n",
    )  # fmt: skip
    assert len(held) == 5


def test_help_says_what_eight_bits_are_for(monkeypatch, capsys):
    """Speed on CPUs; on CUDA the linear layers' memory alone, which --help tells."""
    monkeypatch.setattr("sys.argv", ["eval_model.py", "--help"])
    with pytest.raises(SystemExit):
        eval_model.parse_args()
    text = " ".join(capsys.readouterr().out.split())
    assert "on CUDA for their memory, not for speed" in text and "(not measured)" in text


def test_eight_bits_take_a_quarter_of_the_memory_of_float32():
    """Of the linear layers: a byte a weight, and a scale for each row."""
    linear = nn.Linear(64, 32, bias=False)
    bits = Int8Linear(linear.weight)
    sizes = [b.numel() * b.element_size() for b in bits.buffers()]
    assert sum(sizes) == 64 * 32 + 4 * 32 and not list(bits.parameters())


def test_eight_bits_cost_little(monkeypatch, capsys, base_folder, tmp_path):
    """--quantize int8 answers and measures; a loss of 8-bit weights is near that of bfloat16."""
    data = tmp_path / "held_out.jsonl"
    data.write_text('{"text": "The cat sat on the mat, and the dog sleeps on."}\n')
    results = []
    for quantize in ("none", "int8"):
        flags = ["--model", base_folder, "--quantize", quantize, "--dtype", "bfloat16"]
        assert run(monkeypatch, capsys, *flags, "--prompt", "The", "--seed", "1").startswith("The")
        out = run(monkeypatch, capsys, *flags, "--eval_data", data, "--cache_dir", tmp_path)
        results.append(json.loads(out.splitlines()[-1])["bits_per_byte"])
    assert results[0] != results[1]
    assert results[1] == pytest.approx(results[0], rel=0.02)
