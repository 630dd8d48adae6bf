"""The routes behind the page /lab: what a model thinks while it reads a text. No tensors here.

    GET  /lab/models   which models there are, and how long a text they can look at
    POST /lab/look     surprise, likeliest tokens, attention, logit lens and experts, as JSON

A text or a chat turn becomes ids here, and ids become pieces that a person can read; everything
between is `look` of the model's object (model/inside.py). Looks happen one after the other, beside
the event loop.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Protocol

import anyio.to_thread
from fastapi import APIRouter, Response
from pydantic import Field

from dataset.chat import encode_conversation
from dataset.tokenizer import Tokenizer
from serving.errors import APIError
from serving.protocol import Fields

LONGEST = 1024  # tokens of a text that are looked at; as in model/inside.py
LONGEST_TEXT = 20_000  # characters of a request's text: more than fit so many tokens
MOST_WAITING = 4  # looks beside the one that is being made
DIGITS = 5  # significant ones of a number that is sent


class Lookable(Protocol):
    """What the server gives for each model.

    context  its longest sequence, in tokens
    look     (ids, layer or None, head or None, lens) → the dict of model.inside.as_numbers;
             ValueError for a layer or head that is not there. Called in another thread
    """

    tokenizer: Tokenizer
    context: int

    def look(self, ids: list[int], layer: int | None, head: int | None, lens: bool) -> dict: ...


Text = Annotated[str, Field(max_length=LONGEST_TEXT)]
Index = Annotated[int, Field(ge=0, le=4095)]


class ChatTurn(Fields):
    """A question and its answer; without an answer the text ends where the model would speak."""

    system: Text = ""
    user: Text
    assistant: Text = ""


class LookRequest(Fields):
    """What to look at: `text` or `chat`, one of them.

    model        one of /lab/models; None: the first
    begin        put what begins a document before a text, as training has it
    layer, head  whose attention to send, counted from 0; None: none
    lens         send what each layer would say
    """

    model: Annotated[str, Field(max_length=200)] | None = None
    text: Text | None = None
    chat: ChatTurn | None = None
    begin: bool = True
    layer: Index | None = None
    head: Index | None = None
    lens: bool = False


def router(models: Mapping[str, Lookable], longest: int = LONGEST) -> APIRouter:
    """The routes, for models by name. longest: tokens that are looked at; the rest is left out."""
    routes = APIRouter(prefix="/lab", tags=["lab"])
    one = anyio.CapacityLimiter(1)
    waiting = 0

    @routes.get("/models")
    async def lab_models() -> dict:
        """The models, the first one first, and whether they know turns of a chat."""
        found = [
            {
                "name": name,
                "longest": min(longest, model.context),
                "chat": model.tokenizer.chat_template is not None,
            }
            for name, model in models.items()
        ]
        return {"models": found}

    @routes.post("/look")
    async def lab_look(request: LookRequest) -> Response:
        """Look inside one model while it reads one text."""
        nonlocal waiting
        name = next(iter(models), None) if request.model is None else request.model
        if name is None or name not in models:
            raise APIError(404, f"no such model: {name}", "model", "model_not_found")
        if waiting > MOST_WAITING:
            raise APIError(503, "several looks are waiting already; try again", None, "overloaded")
        waiting += 1
        try:
            body = await anyio.to_thread.run_sync(
                look_at, models[name], name, request, longest, limiter=one
            )
        finally:
            waiting -= 1
        return Response(body, media_type="application/json")

    return routes


def look_at(model: Lookable, name: str, request: LookRequest, longest: int) -> bytes:
    """The answer to a request as JSON; runs in a thread. Raises APIError."""
    ids, trained = ids_of(model.tokenizer, request)
    kept = min(longest, model.context)
    left_out = max(0, len(ids) - kept)
    ids, trained = ids[:kept], trained and trained[:kept]
    try:
        found = model.look(ids, request.layer, request.head, request.lens)
    except ValueError as error:
        raise APIError(400, str(error), "layer") from None
    answer = {"model": name, "tokens": ids, "left_out": left_out, "trained": trained, **found}
    nats = found["surprise"]
    answer["totals"] = totals(model.tokenizer, ids[1:], nats)
    answer["answer"] = trained and totals(model.tokenizer, ids[1:], nats, trained[1:])
    named = {*ids, *ids_in(found, *(found["lens"] or []))}
    answer["pieces"] = {id: piece(model.tokenizer, id) for id in sorted(named)}
    answer["characters"] = characters(model.tokenizer, ids)
    text = json.dumps(short(answer), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode()


def ids_in(*readings: dict) -> Iterator[int]:
    return (id for reading in readings for row in reading["ids"] for id in row)


def ids_of(tokenizer: Tokenizer, request: LookRequest) -> tuple[list[int], list[int] | None]:
    """The ids of what is asked for, and of a chat which are an answer's (1) and which are not."""
    if (request.text is None) == (request.chat is None):
        raise APIError(400, "expected one of text and chat", "text")
    try:
        if request.chat is None:
            ids, trained = tokenizer.encode_text(request.text), None
            ids = [tokenizer.eos_id] * request.begin + ids  # documents follow each other's end
        else:
            ids, trained = chat_ids(tokenizer, request.chat)
    except ValueError as error:
        raise APIError(400, str(error), "text" if request.chat is None else "chat") from None
    if not ids:
        raise APIError(400, "expected a text, got an empty one", "text")
    return ids, trained


def chat_ids(tokenizer: Tokenizer, chat: ChatTurn) -> tuple[list[int], list[int]]:
    if tokenizer.chat_template is None:
        raise ValueError("this model was not taught to chat: it has no chat template")
    messages = [{"role": "system", "content": chat.system}] if chat.system else []
    messages.append({"role": "user", "content": chat.user})
    if not chat.assistant:
        return encode_conversation(tokenizer, messages, add_generation_prompt=True)
    messages.append({"role": "assistant", "content": chat.assistant})
    return encode_conversation(tokenizer, messages)


def totals(
    tokenizer: Tokenizer, came: list[int], nats: list[float], counts: list[int] | None = None
) -> dict:
    """Mean surprise of the tokens that came: nats per token, perplexity, bits per byte.

    counts: 1 for a token that counts; None: all do. Control tokens have no bytes, and what they
    cost is shared out over the others', as `held_out_loss` has it. None where nothing was measured.
    """
    chosen = [i for i in range(len(came)) if counts is None or counts[i]]
    total = sum(nats[i] for i in chosen) if chosen else math.nan
    size = sum(int(tokenizer.token_bytes[came[i]]) for i in chosen)
    loss = total / len(chosen) if chosen else math.nan
    return {
        "tokens": len(chosen),
        "bytes": size,
        "nats_per_token": loss,
        "perplexity": math.exp(min(loss, 700)) if chosen else math.nan,
        "bits_per_byte": total / math.log(2) / size if size else math.nan,
    }


def piece(tokenizer: Tokenizer, id: int) -> dict:
    """How to show a token: {"text"}, {"text", "control": true}, or {"bytes"} in hexadecimal.

    The last is for bytes that are no whole characters. An id without a token is an empty text.
    """
    found = tokenizer.bytes_of(id)
    if id < tokenizer.vocab_size and found and not tokenizer.token_bytes[id]:
        return {"text": found.decode("utf-8"), "control": True}
    try:
        return {"text": found.decode("utf-8")}
    except UnicodeDecodeError:
        return {"bytes": found.hex(" ").upper()}


def characters(tokenizer: Tokenizer, ids: list[int]) -> dict[int, str]:
    """For tokens that are parts of characters: place → the text of all parts side by side there."""
    found, run = {}, []
    for place, id in enumerate([*ids, None]):
        if id is not None and "bytes" in piece(tokenizer, id):
            run.append(place)
            continue
        text = b"".join(tokenizer.bytes_of(ids[i]) for i in run).decode("utf-8", "replace")
        if run and "\ufffd" not in text:
            found.update(dict.fromkeys(run, text))
        run = []
    return found


def short(value):
    """The same with floats of few digits; None for what JSON has no number for (NaN, infinity)."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: short(item) for key, item in value.items()}
    if isinstance(value, list):
        return [short(item) for item in value]
    return value
