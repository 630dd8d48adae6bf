"""POST /v1/chat/completions."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import anyio
from fastapi import APIRouter
from starlette.requests import Request as HTTPRequest

from dataset.chat import encode_conversation
from dataset.messages import BadConversation, check_messages, check_tools
from dataset.records import Remarks
from model.request import Drawn, LogProb, Request
from serving import answers
from serving.answer import AnswerStream, Delta
from serving.errors import APIError
from serving.grammar import MOST_CALLS, answer_grammar, call_schema
from serving.json_schema import Size, plain_schema
from serving.protocol import ChatRequest, NamedTool
from serving.schema_values import BadSchema, short
from serving.worker import Job, ServedModel, Worker

# fields of messages that say nothing to a model
UNHEARD = {
    "messages[].name", "messages[].refusal", "messages[].annotations", "messages[].tool_call_id",
    "messages[].tool_calls[].id", "messages[].tool_calls[].type", "messages[].tool_calls[].index",
}  # fmt: skip


def router(worker: Worker, default_tokens: int) -> APIRouter:
    """default_tokens: longest answer where the request does not say."""
    routes = APIRouter()
    encoders = anyio.CapacityLimiter(answers.MOST_ENCODERS)

    @routes.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, http: HTTPRequest):
        model = answers.find_model(worker.models, body.model)
        worker.check_room(body.choices)  # before anything takes long
        prompt = await anyio.to_thread.run_sync(prompt_ids, model, body, limiter=encoders)
        grammar = None
        if body.must_call or body.wants_json:
            grammar = await anyio.to_thread.run_sync(checked_grammar, model, body, limiter=encoders)
        most = body.most_tokens
        if most is None:
            most = max(1, min(default_tokens, model.context - len(prompt)))
        requests = answers.engine_requests(model, prompt, body, most, body.told_logprobs)
        for request in requests:
            request.grammar = grammar
        job = worker.submit(model, requests)
        choices = [
            Choice(model, request, index, body.stops, body.may_call)
            for index, request in enumerate(requests)
        ]
        if body.stream:
            return answers.streamed(job, stream(job, choices, body.wants_usage))
        return await answers.unless_gone(http, job, whole(job, choices))

    return routes


def prompt_ids(model: ServedModel, body: ChatRequest) -> list[int]:
    """The conversation as token ids, up to where the answer begins.

    No text of it becomes a control token. Raises APIError for what the format has no place for.
    """
    if model.kind == "base":
        text = f"{model.name} is a base model without a chat template: it continues texts, by "
        raise APIError(400, text + "POST /v1/completions", "model")
    if body.thinking and not model.can_think:
        text = f"{model.name} was not taught to think (its chat template says)"
        raise APIError(400, text, "chat_template_kwargs.enable_thinking")
    try:
        remarks = Remarks()
        messages, _ = check_messages(body.messages, remarks, in_turn=False)
        if unknown := [name for name in remarks.not_used if name not in UNHEARD]:
            raise APIError(400, f"{unknown[0]}: this field is not supported here", "messages")
        model.check_text(sum(len(message["content"]) for message in messages))
        tools = check_tools(body.tools) if body.tool_choice != "none" else None
        ids, _ = encode_conversation(
            model.tokenizer, messages, tools, add_generation_prompt=True,
            enable_thinking=bool(body.thinking),
        )  # fmt: skip
    except BadConversation as error:
        raise APIError(400, f"messages: {error}", "messages") from None
    except ValueError as error:  # what the template has no place for
        raise APIError(400, f"messages: {error}", "messages") from None
    return ids


def checked_grammar(model: ServedModel, body: ChatRequest) -> str:
    """What an answer follows that has to be JSON or calls. APIError for what it cannot follow."""
    content, calls, field, size = None, None, "response_format", Size()
    try:
        if body.wants_json and not body.must_call:
            content = plain_schema(body.response_format.schema, size)
        if body.may_call:
            field = "tools"
            calls = call_schemas(body, size)
        one = body.parallel_tool_calls is False or isinstance(body.tool_choice, NamedTool)
        grammar = answer_grammar(
            model.tokenizer, content, calls, 1 if one else MOST_CALLS, bool(body.thinking)
        )
        model.grammars.check(grammar)
    except ValueError as error:
        raise APIError(400, f"{field}: {error}", field) from None
    return grammar


def call_schemas(body: ChatRequest, size: Size) -> list[dict]:
    """A schema for every tool that may be called. Raises BadSchema."""
    schemas = []
    for number, tool in enumerate(body.tools):
        function = tool.get("function", tool)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadSchema("expected a function with a name for every tool")
        name = function["name"]
        if isinstance(body.tool_choice, NamedTool) and name != body.tool_choice.function.name:
            continue
        try:
            schemas.append(call_schema(name, function.get("parameters"), size, number))
        except BadSchema as error:
            raise BadSchema(f"{short(name)}: {error}") from None
    if not schemas:
        name = body.tool_choice.function.name
        raise APIError(400, f"tool_choice: no tool has the name {name!r}", "tool_choice")
    return schemas


class Choice:
    """One of the answers to a prompt, while it comes."""

    def __init__(
        self, model: ServedModel, request: Request, index: int, stops: list[str], tools: bool
    ):
        self.model, self.request, self.index = model, request, index
        self.stream = AnswerStream(model.tokenizer, stops, tools, model.can_think)
        self.drawn: list[tuple[int, LogProb]] = []  # not told yet
        self.num_tokens = 0
        self.calls = 0  # tool calls told
        self.finish_reason: str | None = None
        self.content, self.reasoning = "", ""
        self.tool_calls: list[dict] = []
        self.logprobs: list[dict] = []

    def take(self, drawn: Drawn, job: Job) -> list[dict]:
        """What a token adds: deltas in OpenAI's form, with "logprobs" beside where asked for."""
        if self.finish_reason is not None:
            return []
        self.num_tokens += 1
        if drawn.logprob is not None:
            self.drawn.append((drawn.token, drawn.logprob))
        deltas = self.stream.feed([drawn.token])
        if self.stream.stopped:
            job.end(self.request)
        if drawn.last or self.stream.stopped:
            deltas += self.stream.finish()
            self.finish_reason = "length" if drawn.request.ending == "length" else "stop"
            if self.stream.stopped:
                self.finish_reason = "stop"
            elif any(delta.tool_calls for delta in deltas) and self.finish_reason == "stop":
                self.finish_reason = "tool_calls"
        return [told for delta in deltas if (told := self._told(delta))]

    def _told(self, delta: Delta) -> dict:
        told = {}
        if delta.reasoning:
            told["reasoning_content"] = delta.reasoning
            self.reasoning += delta.reasoning
        if delta.content:
            told["content"] = delta.content
            self.content += delta.content
        if delta.tool_calls:
            calls = [
                {
                    "index": self.calls + i,
                    "id": answers.new_id("call"),
                    "type": "function",
                    "function": {
                        "name": call["name"],
                        "arguments": json.dumps(call["arguments"], ensure_ascii=False),
                    },
                }
                for i, call in enumerate(delta.tool_calls)
            ]
            self.calls += len(calls)
            told["tool_calls"] = calls
            self.tool_calls += [{k: v for k, v in c.items() if k != "index"} for c in calls]
        covered, self.drawn = self.drawn[: delta.num_tokens], self.drawn[delta.num_tokens :]
        if covered:
            entries = [self._logprob(token, logprob) for token, logprob in covered]
            self.logprobs += entries
            told = {"logprobs": {"content": entries}, "delta": told}
            return told
        return {"delta": told} if told else {}

    def _logprob(self, token: int, logprob: LogProb) -> dict:
        top = [self._entry(id, value) for id, value in logprob.likeliest]
        return self._entry(token, logprob.token) | {"top_logprobs": top}

    def _entry(self, id: int, value: float) -> dict:
        tokenizer = self.model.tokenizer
        data = tokenizer.bytes_of(id)
        return {"token": answers.token_text(tokenizer, id), "logprob": value, "bytes": list(data)}


async def whole(job: Job, choices: list[Choice]) -> dict:
    """The answer of a request that does not stream."""
    by_request = {choice.request: choice for choice in choices}
    async for news in job:
        for drawn in news:
            by_request[drawn.request].take(drawn, job)
    told = []
    for choice in choices:
        message = {"role": "assistant", "content": choice.content, "refusal": None}
        if choice.reasoning:
            message["reasoning_content"] = choice.reasoning
        if choice.tool_calls:
            message["tool_calls"] = choice.tool_calls
            message["content"] = choice.content or None
        logprobs = None
        if choice.request.logprobs is not None:
            logprobs = {"content": choice.logprobs, "refusal": None}
        told.append({"index": choice.index, "message": message, "logprobs": logprobs,
                     "finish_reason": choice.finish_reason})  # fmt: skip
    head = answers.head("chatcmpl", "chat.completion", job.model)
    return head | {
        "choices": told,
        "usage": answers.usage(job, sum(choice.num_tokens for choice in choices)),
    }


async def stream(job: Job, choices: list[Choice], wants_usage: bool) -> AsyncIterator[dict]:
    """The chunks of a request that streams."""
    head = answers.head("chatcmpl", "chat.completion.chunk", job.model)
    if wants_usage:
        head["usage"] = None

    def chunk(choice: Choice, told: dict, finish_reason: str | None = None) -> dict:
        logprobs = told.get("logprobs")
        place = {"index": choice.index, "delta": told["delta"], "logprobs": logprobs,
                 "finish_reason": finish_reason}  # fmt: skip
        return head | {"choices": [place]}

    for choice in choices:
        yield chunk(choice, {"delta": {"role": "assistant", "content": ""}})
    by_request = {choice.request: choice for choice in choices}
    async for news in job:
        for drawn in news:
            choice = by_request[drawn.request]
            if choice.finish_reason is not None:
                continue
            for told in choice.take(drawn, job):
                yield chunk(choice, told)
            if choice.finish_reason is not None:
                yield chunk(choice, {"delta": {}}, choice.finish_reason)
    if wants_usage:
        yield head | {
            "choices": [],
            "usage": answers.usage(job, sum(choice.num_tokens for choice in choices)),
        }
