"""JSON and tool calls by a grammar: what a model of random numbers writes is what was asked for.

Such a model would never write JSON by itself. Whether an answer satisfies a schema is judged by
the jsonschema-rs package, with the schema that the client sent.
"""

import json
import random
import re
import time

import jsonschema_rs
import numpy as np
import openai
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from served import inside, tiny_folder

from dataset.chat import THINKING, parse_answer, stop_ids
from dataset.tokenizer import load_tokenizer
from model.config import LMConfig
from model.engine import Engine
from model.model import MiniMindLM
from model.request import Request
from model.sampling import Sampling
from serving.grammar import Grammars, answer_grammar, call_schema
from serving.json_schema import KNOWN, Size, plain_schema
from serving.schema_values import BadSchema

PADDING = 32  # ids of the model that the tokenizer does not know
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 8},
        "年龄": {"type": "integer", "minimum": 0, "exclusiveMaximum": 150},
        "height": {"type": ["number", "null"], "exclusiveMinimum": 0.1, "maximum": 2.5},
        "tags": {
            "type": "array",
            "items": {"enum": ["a", "小猫", 'q"\\\n', 7, -0.5, None, [1, {}]]},
            "minItems": 1,
            "maxItems": 3,
        },
        "home": {
            "title": "Home",
            "type": "object",
            "properties": {
                "city": {"const": "北京"},
                "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
            },
            "required": ["city"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "tags", "home"],
}  # fmt: skip
SCHEMAS = {
    "person": PERSON,
    "list": {
        "$defs": {
            "Node": {
                "type": "object",
                "properties": {
                    "value": {"type": "boolean"},
                    "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
                },
                "required": ["value", "next"],
            }
        },
        "$ref": "#/$defs/Node",
    },
    "map": {
        "type": "object",
        "properties": {"n": {"type": "integer", "multipleOf": 7}},
        "required": ["n"],
        "additionalProperties": {"type": "string", "maxLength": 4},
    },
    "tuple": {
        "type": "array",
        "prefixItems": [{"type": "string", "format": "date"}, {"type": "number", "minimum": 3}],
        "items": {"type": "string", "pattern": "^(?:a|[一-龥]+)?\\d{2}$"},
        "minItems": 2,
        "maxItems": 4,
    },
    "either": {
        "oneOf": [
            {
                "type": "object",
                "properties": {"kind": {"const": "cat"}, "lives": {"type": "integer"}},
                "required": ["kind", "lives"],
            },
            {
                "type": "object",
                "properties": {"kind": {"const": "dog"}, "name": {"type": "string"}},
                "required": ["kind"],
            },
        ]
    },
    "optional": {"type": "object", "properties": {c: {"type": "null"} for c in "abcd"}},
    "text": {"type": "string", "maxLength": 6},
}  # fmt: skip
JSON_ENDS = ('"', "}", "]", " ", "0")  # made likelier, that answers come to their ends


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir):
    own = load_tokenizer(tiny_tokenizer_dir)
    own.chat_template = THINKING
    return own


@pytest.fixture(scope="module")
def grammars(tokenizer):
    ends = frozenset(stop_ids(tokenizer))
    return Grammars(tokenizer, ends, tokenizer.vocab_size + PADDING)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(1)
    config = LMConfig(
        vocab_size=tokenizer.vocab_size + PADDING, hidden_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, intermediate_size=64, initializer_range=0.2,
        max_position_embeddings=512,
    )  # fmt: skip
    return MiniMindLM(config).eval()


def content(tokenizer, schema: object = None, thinks: bool = False) -> str:
    plain = plain_schema({"type": "object"} if schema is None else schema, Size())
    return answer_grammar(tokenizer, plain, None, 1, thinks)


def calls(tokenizer, tools: dict, most: int = 3, thinks: bool = False) -> str:
    size = Size()
    schemas = [call_schema(name, one, size, i) for i, (name, one) in enumerate(tools.items())]
    return answer_grammar(tokenizer, None, schemas, most, thinks)


def request(tokenizer, grammar: str | None, seed: int, count: int = 220, **sampling) -> Request:
    bias = {tokenizer.encode_text(text)[0]: 3.0 for text in JSON_ENDS}
    sampling = {"temperature": 1.5, "logit_bias": bias} | sampling
    prompt = [1, 5 + seed % 90, 9]
    ends = frozenset(stop_ids(tokenizer))
    return Request(prompt, count, ends, Sampling(**sampling), seed, grammar=grammar)


def answers(model, grammars, requests: list[Request], rows: int = 16) -> list[Request]:
    engine = Engine(model, rows, make_matcher=grammars.matcher)
    for one in requests:
        engine.add(one)
    while engine.has_work:
        engine.step()
    assert not any(one.failure for one in requests)
    return requests


def check_ids(tokenizer, one: Request):
    """No padding, and little white space outside of strings."""
    assert all(id < tokenizer.vocab_size for id in one.tokens)
    text = tokenizer.decode(one.tokens)
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', '""', text)
    assert not re.search(r"\s{19}", bare)


def finished(tokenizer, requests: list[Request]) -> list[dict]:
    """The messages of those that came to an end of their own."""
    for one in requests:
        check_ids(tokenizer, one)
        assert (one.ending == "stop") == (one.tokens[-1] in one.stop_ids)
    return [parse_answer(tokenizer, one.tokens) for one in requests if one.ending == "stop"]


@pytest.mark.parametrize("name", SCHEMAS)
def test_answers_satisfy_their_schema(name, model, grammars, tokenizer):
    """At temperature 1.5 and greedily, whatever the seed; most answers come to their end."""
    grammar = content(tokenizer, SCHEMAS[name])
    some = [request(tokenizer, grammar, seed) for seed in range(24)]
    some += [request(tokenizer, grammar, seed, temperature=0.0) for seed in range(3)]
    validator = jsonschema_rs.validator_for(SCHEMAS[name])
    messages = finished(tokenizer, answers(model, grammars, some))
    assert len(messages) > 12
    values = [json.loads(message["content"]) for message in messages]
    for value in values:
        validator.validate(value)
    assert len({json.dumps(value) for value in values}) > 3


def test_json_objects_parse(model, grammars, tokenizer):
    """Any keys and values; none is cut off, none is anything but an object."""
    grammar = content(tokenizer)
    some = [request(tokenizer, grammar, seed) for seed in range(32)]
    messages = finished(tokenizer, answers(model, grammars, some))
    values = [json.loads(message["content"]) for message in messages]
    assert len(values) > 16 and all(isinstance(value, dict) for value in values)
    assert len({type(item) for value in values for item in value.values()}) > 2


def test_an_answer_is_the_same_alone_and_among_others(model, grammars, tokenizer):
    """Some with a grammar, some without; filters, penalties; log-probabilities are the model's."""
    shapes = [
        (content(tokenizer, PERSON), {}), (None, {}), (calls(tokenizer, {"add": PERSON}), {}),
        (content(tokenizer), {"top_p": 0.9, "frequency_penalty": 0.4}), (None, {"top_k": 5}),
        (content(tokenizer, SCHEMAS["tuple"]), {"top_k": 20, "min_p": 0.01}),
    ]  # fmt: skip

    def made() -> list[Request]:
        some = [request(tokenizer, g, s, 60, **more) for s, (g, more) in enumerate(shapes * 2)]
        for one in some:
            one.logprobs = 2
        return some

    together = answers(model, grammars, made(), rows=5)
    alone = [answers(model, grammars, [one])[0] for one in made()]
    assert [one.tokens for one in together] == [one.tokens for one in alone]
    one = made()[0]
    told = list(Engine(model, make_matcher=grammars.matcher).stream(one))
    with torch.no_grad():
        logits = model(torch.tensor([one.prompt + one.tokens]))[0][0, len(one.prompt) - 1 :]
    scores = logits.log_softmax(-1)
    for place, drawn in enumerate(told):
        expected = scores[place, drawn.token].item()
        assert drawn.logprob.token == pytest.approx(expected, abs=1e-4)


TOOLS = {
    "add": PERSON,
    "小猫": SCHEMAS["map"],
    "now": None,
    "none": {"type": "object", "properties": {}},
}


@pytest.mark.parametrize("thinks", [False, True])
def test_calls_are_those_of_the_chat_format(thinks, model, grammars, tokenizer):
    """parse_answer reads every answer as calls of tools that there are, with right arguments."""
    grammar = calls(tokenizer, TOOLS, thinks=thinks)
    bias = {tokenizer.encode_text(text)[0]: 3.0 for text in JSON_ENDS}
    bias |= {tokenizer.control_id("</think>"): 9.0}
    some = [request(tokenizer, grammar, seed, 300, logit_bias=bias) for seed in range(24)]
    messages = finished(tokenizer, answers(model, grammars, some))
    assert len(messages) > 8
    seen = set()
    for message in messages:
        assert message["content"] == "" and 1 <= len(message["tool_calls"]) <= 3
        assert thinks or "reasoning_content" not in message
        for call in message["tool_calls"]:
            seen.add(call["name"])
            jsonschema_rs.validator_for(TOOLS[call["name"]] or {}).validate(call["arguments"])
            if call["name"] in ("now", "none"):
                assert call["arguments"] == {}
    assert len(seen) > 2
    first = {one.tokens[0] for one in some}
    assert first == {tokenizer.control_id("<think>" if thinks else "<tool_call>")}


def test_with_both_an_answer_is_content_or_calls(model, grammars, tokenizer):
    """Tools that may be called beside a response_format: either, never a mixture."""
    grammar = answer_grammar(
        tokenizer,
        plain_schema(SCHEMAS["optional"], Size()),
        [call_schema("now", None, Size())],
        1,
        True,
    )
    bias = {tokenizer.control_id("</think>"): 9.0, tokenizer.control_id("<tool_call>"): 2.0}
    some = [request(tokenizer, grammar, seed, 200, logit_bias=bias) for seed in range(24)]
    kinds = set()
    for message in finished(tokenizer, answers(model, grammars, some)):
        kinds.add("tool_calls" in message)
        if "tool_calls" not in message:
            jsonschema_rs.validator_for(SCHEMAS["optional"]).validate(
                json.loads(message["content"])
            )
    assert kinds == {True, False}


def written(grammars, grammar: str, seed: int, most: int = 400) -> str | None:
    """What somebody writes who takes any id that may come, short ones rather than long ones."""
    rng, matcher, ids = random.Random(seed), grammars.matcher(grammar), []
    tokenizer = grammars.tokenizer
    while len(ids) < most:
        may = np.flatnonzero(matcher.allowed()).tolist()
        if rng.random() < 0.6:
            may = sorted(may, key=lambda id: len(tokenizer.bytes_of(id)))[:4]
        ids.append(rng.choice(may))
        if ids[-1] in grammars.ends:
            return tokenizer.decode(ids[:-1])
        matcher.accept(ids[-1])
    return None


bounds = st.one_of(
    st.integers(-(10**6), 10**6), st.floats(-100, 100), st.sampled_from([0, 0.1, 0.3, 1e-9, 1e300])
)
words = {"minimum": bounds, "maximum": bounds, "exclusiveMinimum": bounds,
         "exclusiveMaximum": bounds, "multipleOf": st.integers(1, 60)}  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(
    st.fixed_dictionaries({"type": st.sampled_from(["number", "integer"])}, optional=words),
    st.integers(0, 1000),
)
def test_numbers_keep_their_bounds(schema, seed):
    """Exclusive ones, fractions, multiples; a schema is refused if no number could satisfy it."""
    grammars, tokenizer = BY_HYPOTHESIS
    try:
        grammar = content(tokenizer, schema)
    except BadSchema as error:
        assert "no number" in str(error)
        return
    text = written(grammars, grammar, seed)
    if text is not None:
        jsonschema_rs.validator_for(schema).validate(json.loads(text))


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=3)
    | st.sampled_from(["object", "string", "#", "#/$defs/a", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from([*sorted(KNOWN), "$defs", "a"]), inner, max_size=4),
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.sampled_from([*sorted(KNOWN), "$defs"]), junk, max_size=4))
def test_junk_is_refused_in_one_line_or_followed(schema):
    """Whatever stands at a keyword's place: a ValueError, or a grammar with a first mask."""
    grammars, tokenizer = BY_HYPOTHESIS
    try:
        grammars.check(content(tokenizer, schema))
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000


BY_HYPOTHESIS = None  # what hypothesis cannot have as a fixture


@pytest.fixture(autouse=True)
def _for_hypothesis(grammars, tokenizer):
    global BY_HYPOTHESIS
    BY_HYPOTHESIS = grammars, tokenizer


NESTED: dict = {"type": "null"}
for _ in range(40):
    NESTED = {"type": "array", "items": NESTED}
REFUSED = [
    ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"type": "object", "patternProperties": {"a": {}}}, "patternProperties"),
    ({"type": "object", "properties": {"x": {"not": {}}}}, "#/properties/x: \"not\""),
    ({"allOf": [{"type": "string"}]}, "allOf"),
    ({"type": "object", "anyOf": [{"required": ["a"]}]}, "anyOf is supported alone"),
    ({"$ref": "http://somewhere/else.json"}, "$ref"),
    ({"$ref": "#/$defs/missing"}, "no place"),
    ({"$ref": "#"}, "no value that ends"),
    ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "no value"),
    ({"type": "string", "format": "regex"}, "format"),
    ({"type": "string", "pattern": "(a"}, ""),
    ({"type": "string", "pattern": "^(?=a)b$"}, "pattern"),
    ({"type": "string", "pattern": "a++"}, "pattern"),
    ({"type": "string", "pattern": "[a-z&&[^b]]"}, "pattern"),
    ({"type": "string", "pattern": "^a$", "minLength": 2}, ""),
    ({"type": "string", "pattern": "x" * 300}, "pattern"),
    ({"type": "string", "minLength": 10**6}, "minLength"),
    ({"type": "array", "minItems": 10**9}, "minItems"),
    ({"type": "integer", "multipleOf": 999_983}, "multipleOf"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
    ({"oneOf": [{"const": 1}, {"enum": ["a", 1.0]}]}, "oneOf"),
    # what is written for the second satisfies the first one, too
    ({"oneOf": [
        {"type": "object", "properties": {}},
        {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]},
    ]}, "oneOf"),
    ({"oneOf": [{"maxLength": 3}, {"maximum": 3}]}, "oneOf"),
    ({"type": "integer", "minimum": 10**20}, "no number"),
    ({"const": 2**53}, "15 digits"),
    ({"enum": []}, "enum"),
    ({"type": "string", "enum": [1]}, "enum"),
    ({"const": "\x00"}, "control"),
    ({"type": "thing"}, "type"),
    ({"enum": list(range(5000))}, "too large"),
    ({"type": "object", "properties": {f"p{i}": {} for i in range(3000)}}, "too large"),
    ({"description": "x" * 100_000}, "characters"),
    (NESTED, "levels"),
    ({"$defs": {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}]} for i in range(999)},
      "$ref": "#/$defs/d0"}, "levels"),
    (False, ""),
    ({"type": "object", "required": ["a"], "additionalProperties": False}, "required"),
]  # fmt: skip


@pytest.mark.parametrize("schema, words", REFUSED, ids=lambda value: str(value)[:40])
def test_what_a_grammar_cannot_do_is_refused(schema, words, grammars, tokenizer):
    """In one line that names the keyword, and quickly."""
    begun = time.perf_counter()
    with pytest.raises(ValueError) as caught:
        grammars.check(content(tokenizer, schema))
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert time.perf_counter() - begun < 2


LARGE = [
    {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(490)}},
    {"enum": [f"value {i} 小猫" for i in range(990)]},
    {"type": "array", "items": {"type": "integer"}, "minItems": 900, "maxItems": 950},
    {"type": "object", "properties": {
        f"p{i}": {"type": "string", "pattern": "^(a|b){0,9}.*[xyz]{9}$", "maxLength": 200}
        for i in range(20)}},
    {"type": "string", "pattern": "^" + "a?" * 60 + "a" * 60 + "$"},
    {"type": "string", "pattern": "^((a{0,99}){0,99}){0,99}$"},
    {"type": "string", "pattern": "(.*a){20}.{200}"},
    {"$defs": {f"d{i}": {"type": "object", "properties": {"x": {"$ref": f"#/$defs/d{i + 1}"}}}
               for i in range(180)} | {"d180": {}}, "$ref": "#/$defs/d0"},
    {"anyOf": [{"type": "object", "properties": {"a": {"const": i}}} for i in range(240)]},
]  # fmt: skip


@pytest.mark.parametrize("schema", LARGE, ids=lambda value: str(value)[:40])
def test_large_schemas_take_bounded_time(schema, grammars, tokenizer):
    """To compile, and for each mask; what is too much for a mask ends in a ValueError."""
    grammar = content(tokenizer, schema)
    begun = time.perf_counter()
    grammars.check(grammar)
    assert time.perf_counter() - begun < 3
    rng, matcher, longest = random.Random(0), grammars.matcher(grammar), 0.0
    try:
        for _ in range(100):
            begun = time.perf_counter()
            may = np.flatnonzero(matcher.allowed())
            longest = max(longest, time.perf_counter() - begun)
            id = int(rng.choice(may.tolist()))
            if id in grammars.ends:
                break
            matcher.accept(id)
    except ValueError as error:
        assert "\n" not in str(error)
    assert longest < 0.5


class Broken:
    """A matcher that raises at its third token, or does not allow anything else."""

    def __init__(self, size: int, where: str):
        self.size, self.where, self.count = size, where, 0

    def allowed(self) -> np.ndarray:
        self.count += 1
        if self.count == 3 and self.where == "allowed":
            raise RuntimeError("out of order")
        return np.ones(self.size, dtype=bool)

    def accept(self, token: int):
        if self.count == 3 and self.where == "accept":
            raise RuntimeError("out of order")


def test_a_grammar_that_fails_ends_its_own_request_alone(model, tokenizer):
    """When it is made, asked or told; the others have the tokens that they have alone."""
    size = model.config.vocab_size

    def maker(grammar: str):
        if grammar == "made":
            raise ValueError("no such thing")
        return Broken(size, grammar)

    def others() -> list[Request]:
        return [request(tokenizer, None, seed, 12) for seed in range(3)]

    def finish(*requests) -> list:
        engine = Engine(model, 8, make_matcher=maker)
        for one in requests:
            engine.add(one)
        drawn = []
        while engine.has_work:
            drawn += engine.step()
        assert engine.running == 0
        return drawn

    expected, beside = others(), others()
    finish(*expected)
    broken = [request(tokenizer, where, 5, 12) for where in ("made", "allowed", "accept")]
    drawn = finish(*beside[:2], *broken, beside[2])
    assert [one.tokens for one in beside] == [one.tokens for one in expected]
    assert [len(one.tokens) for one in broken] == [0, 2, 2]
    assert [one.ending for one in broken] == ["failed"] * 3
    assert broken[0].failure == "no such thing" and broken[2].failure == "out of order"
    for one in broken:
        ends = [d for d in drawn if d.request is one and d.last]
        assert len(ends) == 1 and ends[0].token is None
    with pytest.raises(ValueError, match="matchers"):
        Engine(model).add(request(tokenizer, "anything", 1))


def test_a_tokenizer_without_control_tokens_is_refused(tokenizer, monkeypatch):
    """Calls need <tool_call>, thoughts <think>: in one line, without the folder's name."""
    monkeypatch.setattr(tokenizer, "control_tokens", {"<|im_end|>": 2})
    with pytest.raises(ValueError, match=r"^the model's tokenizer has no <tool_call>$"):
        calls(tokenizer, TOOLS)


# Through the server, by the openai package


@pytest.fixture(scope="module")
def server(tmp_path_factory, tiny_tokenizer_dir):
    folder = tiny_folder(
        tmp_path_factory.mktemp("grammar") / "tiny", tiny_tokenizer_dir, context=16384
    )
    with inside(folder) as found:
        yield found


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)


ASK = [{"role": "user", "content": "Who is 小猫?"}]


class Cat(BaseModel):
    """A cat, as a client describes it."""

    name: str
    lives: int | None
    friends: list[str]
    colour: dict[str, bool] | None = None


def ask(client, tokenizer, **options):
    bias = {str(tokenizer.encode_text(text)[0]): 6 for text in JSON_ENDS}
    usual = {"model": "tiny", "messages": ASK, "max_tokens": 300, "temperature": 1.5}
    return client.chat.completions.create(**usual | {"logit_bias": bias} | options)


def test_json_by_the_client(client, tokenizer):
    """json_object and json_schema; streamed as whole; cut at max_tokens it is "length"."""
    schema = {"name": "person", "schema": PERSON, "strict": True}
    validator = jsonschema_rs.validator_for(PERSON)
    ended = 0
    for seed in range(6):
        for kind in ({"type": "json_object"}, {"type": "json_schema", "json_schema": schema}):
            options = {"response_format": kind, "seed": seed}
            [choice] = ask(client, tokenizer, **options).choices
            if choice.finish_reason == "stop":
                ended += 1
                value = json.loads(choice.message.content)
                assert isinstance(value, dict)
                assert kind["type"] == "json_object" or validator.validate(value) is None
            chunks = list(ask(client, tokenizer, **options, stream=True))
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            assert text == choice.message.content
            assert chunks[-1].choices[0].finish_reason == choice.finish_reason
    assert ended > 6
    [choice] = ask(client, tokenizer, **options | {"max_tokens": 3}).choices
    assert choice.finish_reason == "length"


def test_the_clients_own_classes_are_filled(client, tokenizer):
    """openai's `parse` with a pydantic class, whose schema has anyOf, titles and defaults."""
    bias = {str(tokenizer.encode_text(text)[0]): 6 for text in JSON_ENDS}
    found = client.chat.completions.parse(
        model="tiny", messages=ASK, response_format=Cat, max_tokens=400, temperature=1.5, seed=3,
        logit_bias=bias, n=8,
    )  # fmt: skip
    cats = [choice.message.parsed for choice in found.choices if choice.finish_reason == "stop"]
    assert len(cats) > 2 and all(isinstance(cat, Cat) for cat in cats)


TOLD = [{"type": "function", "function": {"name": name, "parameters": schema}}
        for name, schema in (("add", PERSON), ("小猫", SCHEMAS["optional"]))]  # fmt: skip


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "小猫"}}])
def test_calls_by_the_client(choice, client, tokenizer):
    """finish_reason "tool_calls", arguments by the schema, streamed as whole; one call if asked."""
    ended = 0
    for seed in range(5):
        options = {"tools": TOLD, "tool_choice": choice, "seed": seed}
        if seed % 2:
            options["parallel_tool_calls"] = False
        [found] = ask(client, tokenizer, **options).choices
        if found.finish_reason == "length":
            continue
        ended += 1
        assert found.finish_reason == "tool_calls" and found.message.content is None
        for call in found.message.tool_calls:
            schema = {"add": PERSON, "小猫": SCHEMAS["optional"]}[call.function.name]
            jsonschema_rs.validator_for(schema).validate(json.loads(call.function.arguments))
        if seed % 2 or choice != "required":
            assert len(found.message.tool_calls) == 1
        if choice != "required":
            assert call.function.name == "小猫"
        deltas = [c.choices[0].delta for c in ask(client, tokenizer, **options, stream=True)]
        streamed = [call for delta in deltas for call in delta.tool_calls or []]
        both = [
            [(call.function.name, call.function.arguments) for call in some]
            for some in (streamed, found.message.tool_calls)
        ]
        assert both[0] == both[1]
    assert ended > 2


def test_thoughts_come_before_the_json(client, tokenizer):
    """With thinking on the grammar begins behind the think block."""
    bias = {str(tokenizer.encode_text(text)[0]): 6 for text in JSON_ENDS}
    bias[str(tokenizer.control_id("</think>"))] = 10
    found = ask(
        client, tokenizer, response_format={"type": "json_object"}, logit_bias=bias, n=6, seed=1,
        extra_body={"chat_template_kwargs": {"enable_thinking": True}},
    )  # fmt: skip
    ended = [choice.message for choice in found.choices if choice.finish_reason == "stop"]
    assert ended and all(isinstance(json.loads(message.content), dict) for message in ended)
    assert any(message.model_extra.get("reasoning_content") for message in ended)


JSON = {"type": "json_object"}


def by_schema(schema: dict) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


def one_tool(parameters: dict) -> dict:
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    return {"tool_choice": "required", "tools": [tool]}


def many_values(number: int) -> dict:
    parameters = {"properties": {"a": {"enum": list(range(200))}}}
    return {"type": "function", "function": {"name": f"f{number}", "parameters": parameters}}


NAMED = {"type": "function", "function": {"name": "sub"}}
NOT_DONE = [
    ({"response_format": by_schema({"not": {}})}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": JSON | {"json_schema": {"name": "a"}}}, "response_format"),
    ({"response_format": {"type": "grammar"}}, "response_format"),
    ({"response_format": JSON, "stop": "}"}, "stop"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": NAMED, "tools": TOLD}, "sub"),
    (one_tool({"not": {}}), "tools"),
    (one_tool({"type": "string"}), "tools"),
    ({"tools": TOLD, "parallel_tool_calls": False}, "parallel_tool_calls"),
    ({"tool_choice": "required", "tools": [many_values(i) for i in range(9)]}, "too large"),
]


@pytest.mark.parametrize("options, word", NOT_DONE, ids=lambda value: str(value)[:60])
def test_what_cannot_be_done_is_refused_by_name(options, word, client, tokenizer):
    """OpenAI's error object with 400 and one line; the server goes on."""
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, tokenizer, **options)
    body = caught.value.body
    assert set(body) == {"message", "type", "param", "code"}
    assert word in body["message"] and "\n" not in body["message"]


def test_a_mask_that_fails_is_an_error_object(server, client, tokenizer, monkeypatch):
    """Whole and streamed; beside it another answer comes to its end, and no row is lost."""
    monkeypatch.setattr("serving.grammar.GrammarMatcher.accept", lambda *_: 1 / 0)
    with pytest.raises(openai.InternalServerError, match="could not go on"):
        ask(client, tokenizer, response_format=JSON)
    with pytest.raises(openai.APIError, match="could not go on"):
        list(ask(client, tokenizer, response_format=JSON, stream=True))
    assert ask(client, tokenizer, max_tokens=5).choices[0].finish_reason in ("length", "stop")
    assert server.worker.sequences == 0 and server.models["tiny"].engine.running == 0


def test_plain_schemas_are_schemas_that_allow_less(tokenizer, grammars):
    """What is left open is closed: bounds of numbers, further properties, the depth of anything."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {}}}
    plain = plain_schema(schema, Size())
    first = plain["$defs"]["d0"]
    assert first["additionalProperties"] is False
    assert first["properties"]["a"] == {
        "type": "integer", "minimum": -(10**15) + 1, "maximum": 10**15 - 1
    }  # fmt: skip
    validator = jsonschema_rs.validator_for(plain)
    deep = deeper = 1
    for _ in range(8):
        deep = [deep]
    for _ in range(9):
        deeper = [deeper]
    assert validator.is_valid({"b": deep}) and not validator.is_valid({"b": deeper})
