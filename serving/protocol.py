"""The fields of requests, as in OpenAI's reference, with bounds. Any other field is refused.

What a field does stands in docs/serving.md; what of it cannot be done is refused by its name, never
ignored, but for the few that could only be ignored (`Ignored`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from model.sampling import Sampling

MOST_FIELDS = 64
MOST_CHOICES = 16
MOST_MESSAGES = 1024
MOST_PROMPTS = 64
MOST_STOPS, LONGEST_STOP = 16, 256
MOST_TOP = 20  # likeliest tokens told at each place
MOST_BIASES = 1024
MOST_TOOLS = 128
LARGEST_SEED = 2**63 - 1
LARGEST_ID = 2**31 - 1

Stop = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]
Id = Annotated[int, Field(ge=0, le=LARGEST_ID)]
Ids = Annotated[list[Id], Field(min_length=1, fail_fast=True)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Penalty = Annotated[Number, Field(ge=-2, le=2)]
Name = Annotated[str, Field(max_length=256)]


class Fields(BaseModel):
    """An object whose fields are all known. Pydantic keeps an error of 1 kB for every one that is
    wrong, so that of what is given in great numbers only the first one may count: a body of 4 MiB
    would take gigabytes, and half a minute of the event loop. (Lists of items: fail_fast.)"""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _bound(cls, values: Any) -> Any:
        return _at_most(MOST_FIELDS)(values)


def _at_most(most: int) -> Callable[[Any], Any]:
    def check(values: Any) -> Any:
        if isinstance(values, dict) and len(values) > most:
            raise ValueError(f"expected at most {most} fields, got {len(values)}")
        return values

    return check


class Ignored(Fields):
    """Fields about accounts and storage, which there are none of here."""

    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None


class StreamOptions(Fields):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # pads chunks for privacy on a network; never done here


class SamplingFields(Ignored):
    """What both routes have in common."""

    model: Name | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=LARGEST_ID)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: Annotated[Number, Field(ge=0.1, le=10)] | None = None
    logit_bias: Annotated[
        dict[Annotated[str, Field(max_length=10)], Annotated[Number, Field(ge=-100, le=100)]],
        BeforeValidator(_at_most(MOST_BIASES)),
    ] | None = None  # fmt: skip
    seed: Annotated[int, Field(ge=-LARGEST_SEED - 1, le=LARGEST_SEED)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    max_tokens: Annotated[int, Field(ge=0, le=LARGEST_ID)] | None = None

    @model_validator(mode="after")
    def _check(self):
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options belongs to stream: true")
        for id in self.logit_bias or ():
            if not id.isascii() or not id.isdecimal():
                raise ValueError(f"logit_bias: the keys are token ids, got {id!r}")
        return self

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self) -> Sampling:
        """The settings; what is not given has OpenAI's defaults."""

        def given(value, default):
            return default if value is None else value

        return Sampling(
            repetition_penalty=given(self.repetition_penalty, 1.0),
            frequency_penalty=given(self.frequency_penalty, 0.0),
            presence_penalty=given(self.presence_penalty, 0.0),
            logit_bias={int(id): bias for id, bias in (self.logit_bias or {}).items()},
            temperature=_in_float32(given(self.temperature, 1.0)),
            top_k=max(given(self.top_k, 0), 0),
            top_p=given(self.top_p, 1.0),
            min_p=given(self.min_p, 0.0),
        )


def _in_float32(temperature: float) -> float:
    """So near to 0 that logits divided by it are infinite, it takes the likeliest token, too."""
    return temperature if temperature >= 1e-4 else 0.0


class TemplateFields(Fields):
    enable_thinking: bool | None = None


class NamedSchema(Fields):
    """strict is what is done anyway."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: Annotated[str, Field(max_length=4096)] | None = None
    schema_: Annotated[dict[str, Any] | bool, Field(alias="schema")] = True
    strict: bool | None = None


class ResponseFormat(Fields):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _check_schema(self):
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise ValueError("json_schema belongs to the type json_schema, and this to it")
        return self


class NamedFunction(Fields):
    name: Name


class NamedTool(Fields):
    type: Literal["function"]
    function: NamedFunction


class ChatRequest(SamplingFields):
    """POST /v1/chat/completions. Messages and tools are checked by dataset/messages.py."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=LARGEST_ID)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: TemplateFields | None = None
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _check_chat(self):
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs belongs to logprobs: true")
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise ValueError("max_tokens and max_completion_tokens are given, and they differ")
        if self.max_tokens == 0:
            raise ValueError("max_tokens: an answer has at least one token")
        if self.must_call and not self.tools:
            raise ValueError("tool_choice: there are no tools to choose from")
        if self.parallel_tool_calls is False and not self.must_call:
            raise ValueError("parallel_tool_calls: false is supported where tool_choice asks for a "
                             "call")  # fmt: skip
        if self.wants_json and self.stops:
            raise ValueError("stop: with response_format it could end the JSON in the middle")
        return self

    @property
    def must_call(self) -> bool:
        return self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool)

    @property
    def may_call(self) -> bool:
        return bool(self.tools) and self.tool_choice != "none"

    @property
    def wants_json(self) -> bool:
        return self.response_format is not None and self.response_format.type != "text"

    @property
    def most_tokens(self) -> int | None:
        return self.max_tokens or self.max_completion_tokens

    @property
    def thinking(self) -> bool | None:
        return self.chat_template_kwargs and self.chat_template_kwargs.enable_thinking

    @property
    def told_logprobs(self) -> int | None:
        """As `Request.logprobs`."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(SamplingFields):
    """POST /v1/completions. A prompt is a text or token ids; several are several choices."""

    prompt: (
        str
        | Ids
        | Annotated[list[str], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True)]
        | Annotated[list[Ids], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True)]
    )
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None
    best_of: Literal[1] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt
