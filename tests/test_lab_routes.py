"""/lab/models and /lab/look: text to ids and back, the model's numbers, bounded and in order."""

import asyncio
import json
import math
import threading
import time

import httpx
import pytest
import torch
import torch.nn.functional as F
from fastapi.testclient import TestClient
from lab_server import Entry, make_app

from dataset.chat import NO_THINKING, THINKING, encode_conversation
from dataset.tokenizer import load_tokenizer
from model.config import LMConfig
from model.inside import look_inside
from model.model import MiniMindLM
from serving import lab

TEXT = "The cat liked the moon.\n小猫喜欢月亮，鼠😀。<|im_end|>\t<b>"


def tiny_model(use_moe: bool = False) -> MiniMindLM:
    torch.manual_seed(0)
    experts = {"use_moe": True, "num_experts": 4} if use_moe else {}
    config = LMConfig(
        vocab_size=512, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=64, initializer_range=0.3,
        max_position_embeddings=512, **experts,
    )  # fmt: skip
    return MiniMindLM(config).eval()


def entries(tokenizer_dir) -> dict[str, Entry]:
    """A base model, one that chats and one that thinks first."""
    made = {}
    for name, template in (("base", None), ("chat", NO_THINKING), ("thinker", THINKING)):
        tokenizer = load_tokenizer(tokenizer_dir)
        tokenizer.chat_template = template
        made[name] = Entry(tiny_model(use_moe=name == "chat"), tokenizer)
    return made


@pytest.fixture(scope="module")
def models(tiny_tokenizer_dir):
    return entries(tiny_tokenizer_dir)


@pytest.fixture(scope="module")
def client(models):
    with TestClient(make_app(models), raise_server_exceptions=False) as client:
        yield client


def strict_json(text: str):
    """JSON as the standard has it: no NaN, no Infinity."""

    def refuse(word):
        raise AssertionError(f"{word} in JSON")

    return json.loads(text, parse_constant=refuse)


def look(client, **fields) -> dict:
    response = client.post("/lab/look", json=fields)
    assert response.status_code == 200, response.text
    return strict_json(response.text)


def test_models_are_listed_in_order_with_what_they_can(client):
    """Names, the longest text in tokens, and whether turns of a chat mean anything to it."""
    found = client.get("/lab/models").json()["models"]
    assert [model["name"] for model in found] == ["base", "chat", "thinker"]
    assert [model["chat"] for model in found] == [False, True, True]
    assert {model["longest"] for model in found} == {512}


def test_the_numbers_are_those_of_the_model_run_by_hand(client, models):
    """Surprise, its mean, perplexity and bits per byte, from logits and the text's own bytes."""
    entry, found = models["base"], look(client, text=TEXT)
    ids = [entry.tokenizer.eos_id, *entry.tokenizer.encode_text(TEXT)]
    assert found["tokens"] == ids
    with torch.no_grad():
        logits = entry.model(torch.tensor([ids]))[0][0]
    nats = F.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none").double()
    assert found["surprise"] == pytest.approx(nats.tolist(), rel=1e-4)
    totals = found["totals"]
    assert totals["tokens"] == len(ids) - 1 and totals["bytes"] == len(TEXT.encode())
    assert totals["nats_per_token"] == pytest.approx(nats.mean().item(), rel=1e-4)
    assert totals["perplexity"] == pytest.approx(nats.mean().exp().item(), rel=1e-3)
    bits = nats.sum().item() / math.log(2) / len(TEXT.encode())
    assert totals["bits_per_byte"] == pytest.approx(bits, rel=1e-4)
    assert found["lens"] is found["attention"] is found["experts"] is found["trained"] is None


def test_attention_lens_and_experts_come_where_they_are_asked_for(client, models):
    """The routes hand on what model/inside.py finds, in the same order."""
    found = look(client, model="chat", text=TEXT, layer=1, head=3, lens=True)
    inside = look_inside(models["chat"].model, found["tokens"], 1, 3, lens=True)
    assert found["attention"][-1] == pytest.approx(inside.attention[-1].tolist(), rel=1e-4)
    assert [reading["ids"] for reading in found["lens"]] == [
        reading.ids.tolist() for reading in inside.lens
    ]
    assert found["experts"]["ids"] == inside.experts.tolist()
    named = {id for reading in found["lens"] for row in reading["ids"] for id in row}
    assert named <= {int(id) for id in found["pieces"]}


def test_a_document_begins_after_the_end_of_another_or_in_the_middle(client, models):
    """begin puts <|endoftext|> first, as the stream of pretraining has it; else nothing is put."""
    tokenizer = models["base"].tokenizer
    for begin in (True, False):
        found = look(client, text="The cat", begin=begin)
        assert found["tokens"][begin:] == tokenizer.encode_text("The cat")
        assert (found["tokens"][0] == tokenizer.eos_id) == begin
    assert look(client, text="")["tokens"] == [tokenizer.eos_id]


def test_pieces_give_the_text_back_byte_by_byte(client, models):
    """Text stays text, bytes that are no characters are shown as such, control tokens by name."""
    found = look(client, text=TEXT)
    pieces = [found["pieces"][str(id)] for id in found["tokens"]]
    assert pieces[0] == {"text": "<|endoftext|>", "control": True}
    assert not any(piece.get("control") for piece in pieces[1:])  # "<|im_end|>" was written
    data = [
        bytes.fromhex(piece["bytes"]) if "bytes" in piece else piece["text"].encode()
        for piece in pieces[1:]
    ]
    assert b"".join(data) == TEXT.encode()
    halves = {place for place, piece in enumerate(pieces) if "bytes" in piece}
    assert halves == {int(place) for place in found["characters"]} and len(halves) > 4
    assert any("😀" in text for text in found["characters"].values())


@pytest.mark.parametrize("name", ["chat", "thinker"])
def test_a_chat_turn_is_encoded_as_training_has_it(client, models, name):
    """Ids and mask of dataset/chat.py; what counts for training has totals of its own."""
    chat = {"system": "Be kind.", "user": "Hi <|im_end|>", "assistant": "The cat."}
    found = look(client, model=name, chat=chat)
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi <|im_end|>"},
        {"role": "assistant", "content": "The cat."},
    ]
    ids, mask = encode_conversation(models[name].tokenizer, messages)
    assert (found["tokens"], found["trained"]) == (ids, mask)
    nats = [cost for cost, counts in zip(found["surprise"], mask[1:]) if counts]
    assert found["answer"]["tokens"] == len(nats) > 3
    assert found["answer"]["nats_per_token"] == pytest.approx(sum(nats) / len(nats), rel=1e-3)
    assert found["answer"]["nats_per_token"] != found["totals"]["nats_per_token"]


def test_a_chat_without_an_answer_ends_where_the_model_would_speak(client, models):
    """The last distribution is then that of the answer's first token; nothing counts yet."""
    found = look(client, model="chat", chat={"user": "Hi"})
    ids, _ = encode_conversation(
        models["chat"].tokenizer, [{"role": "user", "content": "Hi"}], add_generation_prompt=True
    )
    assert found["tokens"] == ids and found["answer"]["tokens"] == 0
    assert found["answer"]["nats_per_token"] is None


def test_a_long_text_is_cut_and_it_is_said_by_how_much(models):
    """Never more tokens than the limit, or than the model's context."""
    with TestClient(make_app(models, longest=16)) as client:
        found = look(client, text="cat " * 100)
        whole = [models["base"].tokenizer.eos_id]
        whole += models["base"].tokenizer.encode_text("cat " * 100)
        assert found["tokens"] == whole[:16]
        assert found["left_out"] == len(whole) - 16
        chat = {"user": "Hi", "assistant": "cat " * 100}
        found = look(client, model="chat", chat=chat)
        assert len(found["tokens"]) == len(found["trained"]) == 16 and found["left_out"] > 50


@pytest.mark.parametrize(
    ("fields", "status", "word"),
    [
        ({"text": "a", "model": "gone"}, 404, "gone"),
        ({}, 400, "one of text and chat"),
        ({"text": "a", "chat": {"user": "b"}}, 400, "one of text and chat"),
        ({"text": "", "begin": False}, 400, "empty"),
        ({"chat": {"user": "a"}}, 400, "chat template"),
        ({"text": "a", "layer": 2, "head": 0}, 400, "layer: expected 0 to 1"),
        ({"text": "a", "layer": 0, "head": 4}, 400, "head: expected 0 to 3"),
        ({"text": "a", "layer": 0}, 400, "both or neither"),
        ({"text": "a", "layer": -1, "head": 0}, 422, ""),
        ({"text": "a", "layer": 10**9, "head": 0}, 422, ""),
        ({"text": "a", "layer": "0", "head": 0}, 422, ""),
        ({"text": "a" * (lab.LONGEST_TEXT + 1)}, 422, ""),
        ({"text": 5}, 422, ""),
        ({"text": "a", "template": "{{ x }}"}, 422, ""),
        ({"chat": {"user": "a", "role": "system"}}, 422, ""),
        ([], 422, ""),
    ],
)
def test_what_cannot_be_looked_at_is_refused(client, fields, status, word):
    """Every bad request has an answer of the 400s that says why; none is an error of ours."""
    response = client.post("/lab/look", json=fields)
    assert response.status_code == status and word in response.text


def test_half_of_a_surrogate_pair_is_refused(client):
    """JSON can write it, UTF-8 cannot."""
    headers = {"Content-Type": "application/json"}
    response = client.post("/lab/look", content=b'{"text": "a \\ud800 b"}', headers=headers)
    assert response.status_code in (400, 422)


class Fake:
    """A model whose look does as it is told."""

    def __init__(self, tokenizer, act):
        self.tokenizer, self.context, self.act = tokenizer, 64, act

    def look(self, ids, layer, head, lens):
        self.act()
        bad = [math.nan, math.inf, -math.inf] * len(ids)
        rows = [[5, 6, 7]] * len(ids)
        return {
            "layers": 1, "heads": 1, "experts_per_layer": 0, "ids": rows, "probs": [bad[:3]],
            "surprise": bad[: len(ids) - 1], "rank": [1] * (len(ids) - 1),
            "attention": None, "lens": None, "experts": None,
        }  # fmt: skip


def test_numbers_that_json_does_not_have_are_null(tiny_tokenizer):
    """A model whose weights are NaN is looked at like any other."""
    with TestClient(make_app({"bad": Fake(tiny_tokenizer, lambda: None)})) as client:
        found = look(client, text="The cat sat")
    assert found["probs"] == [[None, None, None]]
    assert set(found["surprise"]) == {None}
    assert found["totals"]["nats_per_token"] is found["totals"]["bits_per_byte"] is None


def test_looks_happen_one_after_the_other_and_few_may_wait(tiny_tokenizer):
    """One at a time, beside the event loop; who comes when several wait is told to come again."""
    go, running, most = threading.Event(), [], []

    def act():
        running.append(1)
        most.append(len(running))
        go.wait(20)
        running.pop()

    async def crowd():
        transport = httpx.ASGITransport(make_app({"slow": Fake(tiny_tokenizer, act)}))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            ask = {"text": "The cat"}
            looks = [asyncio.ensure_future(client.post("/lab/look", json=ask)) for _ in range(9)]
            start = time.monotonic()
            while sum(task.done() for task in looks) < 9 - 1 - lab.MOST_WAITING:
                await asyncio.sleep(0.01)
                assert time.monotonic() - start < 10
            assert (await client.get("/lab/models")).status_code == 200  # nobody blocks the loop
            go.set()
            answers = await asyncio.gather(*looks)
            after = await client.post("/lab/look", json=ask)
            return [answer.status_code for answer in answers], after.status_code, answers

    statuses, after, answers = asyncio.run(crowd())
    assert sorted(statuses) == [200] * (1 + lab.MOST_WAITING) + [503] * (8 - lab.MOST_WAITING)
    assert after == 200 and max(most) == 1
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert refused.json()["error"]["code"] == "overloaded"
