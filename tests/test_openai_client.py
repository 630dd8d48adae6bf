"""serve_model.py as the openai package meets it: what the client expects is what it gets."""

import os
import re
import subprocess
import sys
from pathlib import Path

import openai
import pytest
import torch

from dataset.chat import NO_THINKING, THINKING, encode_conversation, parse_answer, stop_ids
from dataset.tokenizer import load_tokenizer
from model import lora
from model.config import LMConfig
from model.generation import generate
from model.hf_format import load_model, save_model, weights_sha256
from model.lora import LoRAConfig
from model.model import MiniMindLM

ROOT = Path(__file__).resolve().parent.parent
ASK = [{"role": "user", "content": "What is 12 + 30? 从前有一只小猫"}]


def make_folder(folder: Path, tokenizer_dir: Path, template: str | None) -> Path:
    folder.mkdir()
    torch.manual_seed(0)
    config = LMConfig(
        vocab_size=512, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=64, initializer_range=0.3,
        max_position_embeddings=512,
    )  # fmt: skip
    tokenizer = load_tokenizer(tokenizer_dir)
    save_model(MiniMindLM(config), folder, tokenizer.eos_id)
    tokenizer.chat_template = template
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_tokenizer_dir) -> dict[str, Path]:
    """A chat model, one that thinks, a base model, and an adapter of the chat model."""
    home = tmp_path_factory.mktemp("models")
    found = {
        name: make_folder(home / name, tiny_tokenizer_dir, template)
        for name, template in (("chat", NO_THINKING), ("thinks", THINKING), ("base", None))
    }
    model = load_model(found["chat"])
    config = LoRAConfig(4, 8.0, 0.0, ("q_proj", "v_proj", "down_proj"), False, False)
    lora.attach(model, config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    found["adapter"] = home / "adapter"
    found["adapter"].mkdir()
    base_sha256 = weights_sha256(found["chat"])
    lora.save_adapter(model, config, found["adapter"], found["chat"], base_sha256)
    return found


def start(*flags) -> tuple[subprocess.Popen, str]:
    """serve_model.py in a process of its own, and its address."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "serve_model.py"), "--port", "0", *map(str, flags)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    line = process.stdout.readline()
    return process, re.search(r"http://\S+:\d+", line)[0]


@pytest.fixture(scope="module")
def servers(folders):
    started = {
        "chat": start("--model", folders["chat"], "--lora", f"other={folders['adapter']}"),
        "thinks": start("--model", folders["thinks"]),
        "base": start("--model", folders["base"], "--api_key", "secret"),
    }
    yield {
        name: openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0)
        for name, (_, url) in started.items()
    }
    for process, _ in started.values():
        process.terminate()
    assert [process.wait(30) for process, _ in started.values()] == [0, 0, 0]


@pytest.fixture
def client(servers):
    return servers["chat"]


def expected(folder: Path, messages=ASK, count=24, seed=None, number=0, **sampling) -> dict:
    """The message that the plain loop gives."""
    tokenizer, model = load_tokenizer(folder), load_model(folder)
    ids, _ = encode_conversation(tokenizer, messages, add_generation_prompt=True)
    assert number == 0
    new = list(generate(model, ids, count, set(stop_ids(tokenizer)), seed, **sampling))
    return parse_answer(tokenizer, new)


def chat(client, **options):
    return client.chat.completions.create(
        **{"model": "chat", "messages": ASK, "max_tokens": 24, "temperature": 0} | options
    )


def test_greedy_and_seeded_answers_are_those_of_generate(client, folders):
    """Temperature 0, and sampling with a seed; the same request again gives the same text."""
    greedy = expected(folders["chat"], temperature=0)["content"]
    assert chat(client).choices[0].message.content == greedy
    options = {"temperature": 1.3, "top_p": 0.9, "seed": 11}
    first = chat(client, **options).choices[0].message.content
    assert first == expected(folders["chat"], **options)["content"]
    assert first == chat(client, **options).choices[0].message.content
    assert first != chat(client, **options | {"seed": 12}).choices[0].message.content


def test_a_stream_is_the_whole_answer_in_pieces(client):
    """For every choice; with usage in the end, which is that of the whole; one id, one model."""
    options = {"temperature": 1.0, "seed": 5, "n": 3, "stop": ["e", "月亮"]}
    whole = chat(client, **options)
    texts, reasons, ids, last = [""] * 3, [None] * 3, set(), None
    stream = chat(client, **options, stream=True, stream_options={"include_usage": True})
    for chunk in stream:
        ids.add((chunk.id, chunk.model, chunk.object))
        last = chunk
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert len(set(texts)) > 1 and len(ids) == 1
    assert last.choices == [] and last.usage.total_tokens == whole.usage.total_tokens


def test_a_stop_string_ends_the_text_before_it(client):
    """Wherever it falls among the tokens; its tokens are not told, the reason is "stop"."""
    free = chat(client, max_tokens=60)
    text = free.choices[0].message.content
    assert free.choices[0].finish_reason == "length" and free.usage.completion_tokens == 60
    for begin in range(2, 12, 3):
        stop = text[begin : begin + 4]
        answer = chat(client, max_tokens=60, stop=stop)
        assert answer.choices[0].message.content == text[: text.find(stop)].rstrip("\r\n")
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage.completion_tokens < 60


def test_log_probabilities_cover_the_text(client, folders):
    """Bytes joined are the answer's; values are those of the model; the likeliest come first."""
    answer = chat(client, logprobs=True, top_logprobs=3)
    entries = answer.choices[0].logprobs.content
    told = b"".join(bytes(entry.bytes) for entry in entries).decode("utf-8", "replace")
    assert told.strip("\r\n") == answer.choices[0].message.content
    tokenizer, model = load_tokenizer(folders["chat"]), load_model(folders["chat"])
    ids, _ = encode_conversation(tokenizer, ASK, add_generation_prompt=True)
    new = list(generate(model, ids, 24, set(stop_ids(tokenizer)), temperature=0))
    with torch.no_grad():
        scores = model(torch.tensor([ids + new]))[0][0, len(ids) - 1 :].log_softmax(-1)
    for place, entry in enumerate(entries):
        assert entry.logprob == pytest.approx(scores[place, new[place]].item(), abs=1e-4)
        top = [one.logprob for one in entry.top_logprobs]
        assert top == sorted(top, reverse=True) and top[0] == pytest.approx(entry.logprob, abs=1e-6)
    pieces = []
    for chunk in chat(client, logprobs=True, top_logprobs=3, stream=True):
        if chunk.choices[0].logprobs:
            pieces += chunk.choices[0].logprobs.content
    assert [piece.token for piece in pieces] == [entry.token for entry in entries]


def test_completions_continue_texts_and_ids(servers, folders):
    """A text, ids, several at once; echo; the text is the plain loop's."""
    client = servers["base"]
    tokenizer, model = load_tokenizer(folders["base"]), load_model(folders["base"])
    ids = tokenizer.encode_text("The cat 小猫")
    new = list(generate(model, ids, 16, set(stop_ids(tokenizer)), temperature=0))
    text = tokenizer.decode([token for token in new if token not in stop_ids(tokenizer)])
    for prompt in ("The cat 小猫", ids):
        answer = client.completions.create(model="base", prompt=prompt, temperature=0, logprobs=0)
        assert answer.choices[0].text == text
    several = client.completions.create(
        model="base", prompt=["The cat 小猫", "Rain"], temperature=0, echo=True, n=2, logprobs=2
    )
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    for choice in several.choices[:2]:
        assert choice.text == "The cat 小猫" + text
        offsets, tokens = choice.logprobs.text_offset, choice.logprobs.tokens
        assert choice.logprobs.token_logprobs[0] is None and offsets[0] == 0
        for offset, token in zip(offsets, tokens):
            rest = choice.text[offset:].lstrip("\ufffd")  # bytes before it that were no character
            assert token.startswith("bytes:") or rest.startswith(token)
        for token, top in list(zip(tokens, choice.logprobs.top_logprobs))[1:]:
            assert token in top
    streamed = client.completions.create(model="base", prompt=ids, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == text


def test_the_token_that_ends_a_text_has_a_log_probability(servers, folders):
    """It is the last of the tokens, at the text's end, and adds no text; streamed, too."""
    client, tokenizer = servers["base"], load_tokenizer(folders["base"])
    options = {"model": "base", "prompt": "Rain", "logit_bias": {str(tokenizer.eos_id): 100},
               "echo": True, "logprobs": 1, "max_tokens": 9, "temperature": 0}  # fmt: skip
    choice = client.completions.create(**options).choices[0]
    assert choice.text == "Rain" and choice.finish_reason == "stop"
    ids = tokenizer.encode_text("Rain")
    with torch.no_grad():
        scores = load_model(folders["base"])(torch.tensor([ids]))[0][0, -1].log_softmax(-1)
    told = choice.logprobs
    assert len(told.tokens) == len(ids) + 1 and told.tokens[-1] == "<|endoftext|>"
    assert told.token_logprobs[-1] == pytest.approx(scores[tokenizer.eos_id].item(), abs=1e-4)
    assert told.text_offset[-1] == len("Rain") and "<|endoftext|>" in told.top_logprobs[-1]
    streamed = [chunk.choices[0].logprobs for chunk in client.completions.create(
        **options, stream=True) if chunk.choices[0].logprobs]  # fmt: skip
    assert [token for piece in streamed for token in piece.tokens] == told.tokens
    assert [at for piece in streamed for at in piece.text_offset] == told.text_offset


def test_models_are_chosen_by_name(client, folders):
    """The adapter's answers are those of the model that it is merged into."""
    assert [model.id for model in client.models.list()] == ["chat", "other"]
    assert client.models.retrieve("other").id == "other"
    model = load_model(folders["chat"])
    lora.load_adapter(model, folders["adapter"], weights_sha256(folders["chat"]))
    tokenizer = load_tokenizer(folders["chat"])
    ids, _ = encode_conversation(tokenizer, ASK, add_generation_prompt=True)
    new = list(generate(model, ids, 24, set(stop_ids(tokenizer)), temperature=0))
    answer = chat(client, model="other").choices[0].message.content
    assert answer == parse_answer(tokenizer, new)["content"]
    assert answer != chat(client).choices[0].message.content


def test_thinking_is_asked_for_and_told_apart(servers, folders):
    """enable_thinking opens the turn as the template does; else the block is closed already."""
    client, tokenizer = servers["thinks"], load_tokenizer(folders["thinks"])
    model = load_model(folders["thinks"])
    for thinking in (True, False, None):
        extra = {"chat_template_kwargs": {"enable_thinking": thinking}}
        answer = chat(client, model="thinks", extra_body=extra)
        ids, _ = encode_conversation(
            tokenizer, ASK, add_generation_prompt=True, enable_thinking=bool(thinking)
        )
        new = list(generate(model, ids, 24, set(stop_ids(tokenizer)), temperature=0))
        assert answer.choices[0].message.content == parse_answer(tokenizer, new)["content"]
        assert answer.usage.prompt_tokens == len(ids)


def test_a_request_that_forces_tokens_comes_back_as_thoughts_and_calls(servers):
    """A bias towards control tokens makes a think block; the client sees reasoning_content."""
    client = servers["thinks"]
    answer = chat(
        client, model="thinks", extra_body={"chat_template_kwargs": {"enable_thinking": True}},
        logit_bias={str(token_id(servers, "<think>")): 100}, max_tokens=4, temperature=0,
    )  # fmt: skip
    message = answer.choices[0].message
    assert "reasoning_content" in message.model_extra and message.content == ""


def token_id(servers, name: str) -> int:
    from dataset.tokenizer import load_tokenizer as load

    return load(ROOT / "model" / "tokenizer").control_id(name)


REFUSED = [
    (openai.NotFoundError, {"model": "nothing"}, "model"),
    (openai.BadRequestError, {"temperature": -0.1}, "temperature"),
    (openai.BadRequestError, {"temperature": float("nan")}, None),
    (openai.BadRequestError, {"n": 0}, "n"),
    (openai.BadRequestError, {"n": 17}, "n"),
    (openai.BadRequestError, {"stop": [""]}, "stop.0"),
    (openai.BadRequestError, {"stop": ["x"] * 17}, "stop"),
    (openai.BadRequestError, {"max_tokens": 10_000}, "max_tokens"),
    (openai.BadRequestError, {"messages": []}, "messages"),
    (openai.BadRequestError, {"messages": [{"role": "nobody", "content": "x"}]}, "messages"),
    (openai.BadRequestError, {"messages": [{"role": "user", "content": "a " * 600}]}, None),
    (openai.BadRequestError, {"logit_bias": {"x": 1}}, None),
    (openai.BadRequestError, {"logit_bias": {"512": 1}}, "logit_bias"),
    (openai.BadRequestError, {"top_logprobs": 2}, None),
    (openai.BadRequestError, {"extra_body": {"chat_template": "{{ x }}"}}, "chat_template"),
    (openai.BadRequestError, {"extra_body": {"prediction": {}}}, "prediction"),
    (openai.BadRequestError, {"audio": {"voice": "a", "format": "wav"}}, "audio"),
    (openai.BadRequestError, {"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}},
     "chat_template_kwargs.enable_thinking"),
]  # fmt: skip


@pytest.mark.parametrize("error, options, param", REFUSED, ids=lambda value: str(value)[:40])
def test_what_is_refused_raises_the_clients_own_exceptions(client, error, options, param):
    """One line that names the field; and the server goes on."""
    if options.get("temperature") != options.get("temperature"):  # the client refuses NaN itself
        with pytest.raises(ValueError):
            chat(client, **options)
        return
    with pytest.raises(error) as caught:
        chat(client, **options)
    body = caught.value.body
    assert set(body) == {"message", "type", "param", "code"}
    assert (param is None or body["param"] == param) and "\n" not in body["message"]


def test_a_base_model_is_not_spoken_to_in_chat_format(servers):
    with pytest.raises(openai.BadRequestError, match="base model"):
        chat(servers["base"], model="base")


def test_a_wrong_key_is_an_authentication_error(servers):
    wrong = servers["base"].with_options(api_key="wrong")
    with pytest.raises(openai.AuthenticationError):
        wrong.models.list()


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "adds",
            "parameters": {"type": "object", "properties": {"a": {"type": "number"}}},
        },
    }
]
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


def test_tools_and_their_answers_are_part_of_the_prompt(client, folders):
    """The prompt has the tokens that encode_conversation makes of them; "none" leaves them out."""
    tokenizer = load_tokenizer(folders["chat"])
    messages = [
        {"role": "developer", "content": "Be brief."},
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "2"},
    ]
    call = {"name": "add", "arguments": {"a": 1}}
    checked = [
        {"role": "system", "content": "Be brief."},
        *ASK,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "2"},
    ]
    for choice, tools in (("auto", TOOLS), ("none", None)):
        answer = chat(client, messages=messages, tools=TOOLS, tool_choice=choice, max_tokens=1)
        ids, _ = encode_conversation(tokenizer, checked, tools, add_generation_prompt=True)
        assert answer.usage.prompt_tokens == len(ids)
