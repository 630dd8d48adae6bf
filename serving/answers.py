"""What both routes do alike: from settings to engine requests, from a job to an answer."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable

from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from dataset.tokenizer import Tokenizer
from model.request import Request
from serving.errors import APIError, error_object
from serving.protocol import SamplingFields
from serving.worker import Job, ServedModel

MOST_ENCODERS = 4  # prompts that are made ids at a time: one of 4 MiB takes seconds, and 200 MiB
SECONDS_TO_READ = 10.0  # of the end of an answer, after the time for it is over


def new_id(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(12)}"


def head(kind: str, object: str, model: ServedModel) -> dict:
    """What every answer, and every chunk of it, begins with."""
    return {"id": new_id(kind), "object": object, "created": int(time.time()), "model": model.name}


def find_model(models: dict[str, ServedModel], name: str | None) -> ServedModel:
    """The model of this name; without a name, the first one."""
    if name is None:
        return next(iter(models.values()))
    if name not in models:
        have = ", ".join(models)
        raise APIError(404, f"no model {name!r} here, only {have}", "model", "model_not_found")
    return models[name]


def engine_requests(
    model: ServedModel, prompt: list[int], body: SamplingFields, most: int | None,
    logprobs: int | None, prompt_logprobs: bool = False, number: int = 0,
) -> list[Request]:  # fmt: skip
    """The choices that a prompt asks for. Raises APIError where they do not fit the context.

    most: tokens of each answer; None: as many as are left.
    """
    room = model.context - len(prompt)
    if room < 1:
        raise APIError(
            400,
            f"the prompt has {len(prompt)} tokens, and {model.context} are the longest that prompt "
            "and answer may have together",
            code="context_length_exceeded",
        )
    if most is not None and most > room:
        raise APIError(
            400,
            f"the prompt has {len(prompt)} tokens, {most} more are asked for, and {model.context} "
            "are the longest that both may have together",
            "max_tokens",
            "context_length_exceeded",
        )
    vocabulary = model.vocab_size
    sampling = body.sampling()
    for id in sampling.logit_bias:
        if id >= vocabulary:
            raise APIError(
                400, f"logit_bias: ids go up to {vocabulary - 1}, got {id}", "logit_bias"
            )
    return [
        Request(
            prompt, room if most is None else most, model.ends, sampling, body.seed, number + i,
            logprobs, prompt_logprobs,
        )
        for i in range(body.choices)
    ]  # fmt: skip


def usage(job: Job, written: int, prompts: int = 1) -> dict:
    """Tokens read and written.

    written: tokens of all answers, up to the stop string; the engine may have gone a little further
    prompts: how many different ones the job's requests are of
    """
    first = job.requests[:: len(job.requests) // prompts]  # of each prompt
    read = sum(len(request.prompt) for request in first)
    cached = sum(request.cached for request in first)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def token_text(tokenizer: Tokenizer, id: int) -> str:
    """A token by itself; one that is a part of a character by its bytes."""
    data = tokenizer.bytes_of(id)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


async def unless_gone(request: HTTPRequest, job: Job, answer: Awaitable[dict]) -> JSONResponse:
    """The answer, or an end of all work when the client goes away before it is there."""

    async def gone():
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(answer), asyncio.ensure_future(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return JSONResponse(tasks[0].result())  # not FastAPI's way: it goes through all of it
        raise APIError(400, "the client has gone away")
    finally:
        for task in tasks:
            task.cancel()
        job.close()


def event(content: dict) -> bytes:
    return b"data: " + json.dumps(content, ensure_ascii=False).encode("utf-8") + b"\n\n"


def streamed(job: Job, chunks: AsyncIterator[dict | bytes]) -> StreamingResponse:
    """Chunks as server-sent events; an error in the middle is the last of them."""

    async def events() -> AsyncIterator[bytes]:
        try:
            async for chunk in chunks:
                yield chunk if isinstance(chunk, bytes) else event(chunk)
            yield b"data: [DONE]\n\n"
        except APIError as error:
            yield event(error_object(error.status, error.message, error.param, error.code))

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return Streamed(job, events(), media_type="text/event-stream", headers=headers)


class Streamed(StreamingResponse):
    """Closes the job whatever happens: a client may be gone before the first chunk is asked for.

    A client that does not read is left when the time for its answer is over.
    """

    def __init__(self, job: Job, events: AsyncIterator[bytes], **more):
        super().__init__(events, **more)
        self.job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        left = self.job.deadline - time.perf_counter() + SECONDS_TO_READ
        try:
            await asyncio.wait_for(super().__call__(scope, receive, send), left)
        except asyncio.TimeoutError:
            pass  # uvicorn closes the connection of an answer without an end
        finally:
            self.job.close()
