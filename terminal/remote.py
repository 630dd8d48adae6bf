"""Answers of an OpenAI-compatible server, ours or another's, through the `openai` package."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from model.json_file import shown
from serving.answer import Delta
from terminal.answers import End, Stopwatch

SECONDS_TO_CONNECT = 10.0
SECONDS_OF_SILENCE = 600.0  # between two parts of an answer; a long prompt is read in silence


class ServerModel:
    """An answerer (terminal/answers.py).

    url       of the server, with or without /v1
    name      the model's name there; None: the first that the server lists
    api_key   None: from OPENAI_API_KEY, if that is set
    args      of eval_model.py: sampling, --seed, --max_new_tokens

    Raises ValueError, naming the flag, where no such server answers.
    """

    kind = "model"
    is_chat = True
    can_think = True  # it refuses if it cannot

    def __init__(self, url: str, name: str | None, api_key: str | None, args):
        import openai

        self.openai, self.args = openai, args
        self.url = server_address(url)
        key = api_key or os.environ.get("OPENAI_API_KEY") or "none"
        timeout = openai.Timeout(SECONDS_OF_SILENCE, connect=SECONDS_TO_CONNECT)
        self.client = openai.OpenAI(base_url=self.url, api_key=key, timeout=timeout, max_retries=1)
        self.names = []
        try:
            with self._errors():
                self.names = [model.id for model in self.client.models.list()]
        except ValueError as error:
            if name is None:
                raise ValueError(f"--server {url}: {error}") from None
        if not self.names and name is None:
            raise ValueError(f"--server {url}: it lists no models; --model names one")
        if self.names and name not in (None, *self.names):
            raise ValueError(f"--model {name}: the server has {', '.join(self.names[:20])}")
        self.name = name or self.names[0]

    def __str__(self) -> str:
        return f"{self.name} at {self.url}"

    def choose(self, name: str):
        self.name = name

    def answer(
        self, messages: list[dict], tools: list | None, thinking: bool | None, attempt: int
    ) -> Iterator[Delta | End]:
        watch, calls, finish_reason, tokens = Stopwatch(), {}, None, None
        request = self._request(messages, tools, thinking, attempt)
        begun = False
        with self._errors(), self.client.chat.completions.create(**request) as chunks:
            for chunk in chunks:
                if chunk.usage:
                    tokens = chunk.usage.completion_tokens
                for choice in chunk.choices or ():
                    finish_reason = choice.finish_reason or finish_reason
                    delta = choice.delta
                    if delta is None:
                        continue
                    watch.lap()
                    thought = getattr(delta, "reasoning_content", None)
                    thought = thought or getattr(delta, "reasoning", None)  # vLLM's name for it
                    if thought:
                        yield Delta(1, reasoning=whole_text(thought))
                    content = whole_text(delta.content or "")
                    content = content if begun else content.lstrip("\r\n")
                    if content:
                        begun = True
                        yield Delta(1, content=content)
                    for part in delta.tool_calls or ():
                        add_call(calls, part)
        if calls:
            yield Delta(1, tool_calls=[finished(call) for call in calls.values()])
        yield watch.end(finish_reason != "length", tokens)

    def _request(
        self, messages: list[dict], tools: list | None, thinking: bool | None, attempt: int
    ) -> dict:
        """The fields of a request; those that OpenAI does not know only if they were asked for."""
        args, more = self.args, {}
        request = {
            "model": self.name, "messages": openai_messages(messages), "stream": True,
            "stream_options": {"include_usage": True}, "temperature": args.temperature,
            "top_p": args.top_p,
        }  # fmt: skip
        if tools:
            request["tools"] = tools
        if args.max_new_tokens is not None:
            request["max_tokens"] = args.max_new_tokens
        if args.seed is not None:
            request["seed"] = args.seed + attempt
        if args.top_k:
            more["top_k"] = args.top_k
        if args.repetition_penalty != 1:
            more["repetition_penalty"] = args.repetition_penalty
        if thinking is not None:
            more["chat_template_kwargs"] = {"enable_thinking": thinking}
        return request | ({"extra_body": more} if more else {})

    @contextmanager
    def _errors(self):
        """What goes wrong with a server, as a ValueError in one line, in its own words."""
        try:
            yield
        except self.openai.APIStatusError as error:
            raise ValueError(f"{error.status_code}: {server_words(error)}") from None
        except self.openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise ValueError(shown(f"no answer from {self.url}: {cause}")) from None
        except self.openai.OpenAIError as error:
            raise ValueError(server_words(error)) from None
        except (AttributeError, TypeError, json.JSONDecodeError) as error:
            text = f"{self.url} does not answer as OpenAI's API does ({error})"
            raise ValueError(shown(text)) from None


def server_address(url: str) -> str:
    """The address that requests begin with: …/v1, where the URL names no other path."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"--server {url}: expected an address such as http://127.0.0.1:8000")
    return url.rstrip("/") + ("/v1" if parts.path in ("", "/") else "")


def server_words(error) -> str:
    """What a server said with an error, else what the package says."""
    said = getattr(error, "body", None)
    for name in ("error", "message"):  # OpenAI's {"error": {"message"}}, and what is near to it
        said = said.get(name, said) if isinstance(said, dict) else said
    said = said.get("detail", said) if isinstance(said, dict) else said
    return shown(said or error, 300)


def whole_text(text: str) -> str:
    """A text without lone surrogates, which JSON can hold and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")


def openai_messages(messages: list[dict]) -> list[dict]:
    """Messages as OpenAI's reference has them: calls have ids, which their results name.

    Thoughts go along only while tools are called for the last question, when models need them.
    """
    last_question = max(i for i, message in enumerate(messages) if message["role"] == "user")
    told, pending = [], []
    for i, message in enumerate(messages):
        one = {"role": message["role"], "content": message["content"]}
        if calls := message.get("tool_calls"):
            pending = [f"call_{i}_{j}" for j in range(len(calls))]
            one["tool_calls"] = [
                {"id": id, "type": "function", "function": openai_function(call)}
                for id, call in zip(pending, calls)
            ]
            if i > last_question and "reasoning_content" in message:
                one["reasoning_content"] = message["reasoning_content"]
        if message["role"] == "tool":
            one["tool_call_id"] = pending.pop(0)
        told.append(one)
    return told


def openai_function(call: dict) -> dict:
    arguments = call["arguments"]
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {"name": call["name"], "arguments": arguments}


def add_call(calls: dict[int, dict], part):
    """A part of a tool call, as it was streamed, to those before it."""
    index = part.index if part.index is not None else len(calls)
    call = calls.setdefault(index, {"name": "", "arguments": ""})
    if part.function is not None:
        call["name"] += part.function.name or ""
        call["arguments"] += part.function.arguments or ""


def finished(call: dict) -> dict:
    """A streamed call with its arguments as an object; as the text they are if that is no JSON."""
    name, arguments = whole_text(call["name"]), whole_text(call["arguments"])
    try:
        return {"name": name, "arguments": json.loads(arguments or "{}")}
    except (ValueError, RecursionError):
        return {"name": name, "arguments": arguments}
