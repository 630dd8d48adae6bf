"""POST /v1/completions: texts or token ids to go on from, as evaluation harnesses ask for."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
from fastapi import APIRouter
from starlette.requests import Request as HTTPRequest

from model.request import Drawn, LogProb, Request
from serving import answers
from serving.answer import TextStream
from serving.errors import APIError
from serving.protocol import CompletionRequest
from serving.worker import Job, ServedModel, Worker

DEFAULT_TOKENS = 16  # OpenAI's


def router(worker: Worker) -> APIRouter:
    routes = APIRouter()
    encoders = anyio.CapacityLimiter(answers.MOST_ENCODERS)

    @routes.post("/v1/completions")
    async def completions(body: CompletionRequest, http: HTTPRequest):
        model = answers.find_model(worker.models, body.model)
        worker.check_room(len(body.prompts) * body.choices)  # before anything takes long
        prompts = await anyio.to_thread.run_sync(prompts_ids, model, body, limiter=encoders)
        requests = []
        most = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
        if most == 0 and not body.echo:
            raise APIError(400, "max_tokens: 0 is for echo: true alone", "max_tokens")
        prompt_logprobs = bool(body.echo) and body.logprobs is not None
        for number, prompt in enumerate(prompts):
            requests += answers.engine_requests(
                model, prompt, body, most, body.logprobs, prompt_logprobs, number * body.choices
            )
        job = worker.submit(model, requests)
        choices = [Choice(model, request, i, body) for i, request in enumerate(requests)]
        if body.stream:
            return answers.streamed(job, stream(job, choices, body.wants_usage, len(prompts)))
        return await answers.unless_gone(http, job, whole(job, choices, len(prompts)))

    return routes


def prompts_ids(model: ServedModel, body: CompletionRequest) -> list[list[int]]:
    """Each prompt as ids. Text never becomes a control token; ids are taken as they are."""
    vocabulary, found = model.vocab_size, []
    for prompt in body.prompts:
        if isinstance(prompt, str):
            model.check_text(len(prompt))
            try:
                ids = model.tokenizer.encode_text(prompt)
            except ValueError as error:
                raise APIError(400, f"prompt: {error}", "prompt") from None
            found.append(ids or [model.tokenizer.eos_id])  # what begins a text
        elif max(prompt) >= vocabulary:
            text = f"prompt: ids go up to {vocabulary - 1}, got {max(prompt)}"
            raise APIError(400, text, "prompt")
        else:
            found.append(prompt)
    return found


class Choice:
    """One of the continuations, while it comes."""

    def __init__(self, model: ServedModel, request: Request, index: int, body: CompletionRequest):
        self.model, self.request, self.index = model, request, index
        self.text_stream = TextStream(model.tokenizer, body.stops)
        self.finish_reason: str | None = None
        self.wants_logprobs = body.logprobs is not None
        self.pending: list[tuple[int, LogProb | None]] = []  # tokens not covered by a piece yet
        self.echo = bool(body.echo)
        self.length = self.prompt_length = 0  # characters told; of these, the echo's
        self.num_tokens = 0

    def echoed(self) -> tuple[str, dict | None]:
        """The prompt, with the log-probabilities of its tokens; once it has been read."""
        if not self.echo:
            return "", None
        self.echo, ids = False, self.request.prompt
        whole = TextStream(self.model.tokenizer)
        pieces = [whole.feed(ids), whole.finish()]
        text = "".join(piece.text for piece in pieces)
        starts = [start for piece in pieces for start in piece.starts]
        self.length = self.prompt_length = len(text)
        if not self.wants_logprobs:
            return text, None
        known = [None, *self.request.prompt_tops]
        return text, self._logprobs(list(zip(ids, known)), starts)

    def take(self, drawn: Drawn, job: Job) -> tuple[str, dict | None]:
        """The text that a token adds, and the log-probabilities of the tokens in it.

        A token that ends the text has no text, but a log-probability: evaluation harnesses, which
        ask for one token after the prompt, take it that there is one.
        """
        if self.finish_reason is not None:
            return "", None
        self.num_tokens += drawn.token is not None
        is_end = drawn.token is None or drawn.token in self.request.stop_ids
        pieces = []
        if not is_end:
            self.pending.append((drawn.token, drawn.logprob))
            pieces.append(self.text_stream.feed([drawn.token]))
        if self.text_stream.stopped:
            job.end(self.request)
            self.finish_reason = "stop"
        elif drawn.last:
            pieces.append(self.text_stream.finish())
            self.finish_reason = "length" if self.request.ending == "length" else "stop"
        text = "".join(piece.text for piece in pieces)
        starts = [self.prompt_length + start for piece in pieces for start in piece.starts]
        covered, self.pending = self.pending[: len(starts)], self.pending[len(starts) :]
        self.length += len(text)
        if is_end and drawn.token is not None:
            covered.append((drawn.token, drawn.logprob))
            starts.append(self.length)
        if not self.wants_logprobs or not covered:
            return text, None
        return text, self._logprobs(covered, starts)

    def _logprobs(self, tokens: list[tuple[int, LogProb | None]], starts: list[int]) -> dict:
        def name(id: int) -> str:
            return answers.token_text(self.model.tokenizer, id)

        return {
            "tokens": [name(id) for id, _ in tokens],
            "token_logprobs": [known and known.token for _, known in tokens],
            "top_logprobs": [
                known and {name(id): value for id, value in _with_own(own, known)}
                for own, known in tokens
            ],
            "text_offset": starts,
        }


def _with_own(own: int, known: LogProb) -> list[tuple[int, float]]:
    """The likeliest, and the token itself where it is not among them."""
    return known.likeliest + [(own, known.token)] * (own not in dict(known.likeliest))


def written(choices: list[Choice]) -> int:
    return sum(choice.num_tokens for choice in choices)


def joined(parts: list[dict | None]) -> dict | None:
    """Log-probabilities of consecutive tokens as one object."""
    given = [part for part in parts if part is not None]
    if not given:
        return None
    return {name: [item for part in given for item in part[name]] for name in given[0]}


async def whole(job: Job, choices: list[Choice], prompts: int) -> dict:
    """The answer of a request that does not stream."""
    by_request = {choice.request: choice for choice in choices}
    parts: dict[Choice, list[tuple[str, dict | None]]] = {choice: [] for choice in choices}
    async for news in job:
        for drawn in news:
            choice = by_request[drawn.request]
            parts[choice] += [choice.echoed(), choice.take(drawn, job)]
    told = [
        {
            "index": choice.index,
            "text": "".join(text for text, _ in parts[choice]),
            "logprobs": joined([logprobs for _, logprobs in parts[choice]]),
            "finish_reason": choice.finish_reason,
        }
        for choice in choices
    ]
    head = answers.head("cmpl", "text_completion", job.model)
    return head | {"choices": told, "usage": answers.usage(job, written(choices), prompts)}


async def stream(
    job: Job, choices: list[Choice], wants_usage: bool, prompts: int
) -> AsyncIterator[dict]:
    """The chunks of a request that streams."""
    head = answers.head("cmpl", "text_completion", job.model)
    if wants_usage:
        head["usage"] = None
    by_request = {choice.request: choice for choice in choices}
    async for news in job:
        for drawn in news:
            choice = by_request[drawn.request]
            if choice.finish_reason is not None:
                continue
            for text, logprobs in (choice.echoed(), choice.take(drawn, job)):
                if text or logprobs:
                    yield head | {"choices": [_place(choice, text, logprobs, None)]}
            if choice.finish_reason is not None:
                yield head | {"choices": [_place(choice, "", None, choice.finish_reason)]}
    if wants_usage:
        yield head | {"choices": [], "usage": answers.usage(job, written(choices), prompts)}


def _place(choice: Choice, text: str, logprobs: dict | None, reason: str | None) -> dict:
    return {"index": choice.index, "text": text, "logprobs": logprobs, "finish_reason": reason}
