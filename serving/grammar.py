"""Answers that follow a grammar: JSON, JSON of a schema, calls of tools.

Three steps, in as many places:

    answer_grammar    from what a client asks for to a grammar, a text
    Grammars.check    whether it can be followed: before any of it is decoded
    Grammars.matcher  from the text to what says which ids may come next: where decoding runs

The library llguidance does the work: a grammar is an automaton over the bytes of tokens, so no
answer is ever taken back. Control tokens are no text for it; those that end a turn may come
once the text is complete, and only then.
"""

from __future__ import annotations

import contextlib
import json
import threading

import llguidance
import numpy as np

from dataset.chat_turns import CALL, END_CALL, END_THINK, THINK
from dataset.tokenizer import Tokenizer
from model.json_file import shown
from serving.json_schema import Size, plain_schema
from serving.schema_values import BadSchema, short

# One blank or one line end with its indentation, where JSON may have white space. Without a limit a
# model that does not know what to say writes line ends for ever.
SPACE = r"[ ]|\n[ ]{0,16}"
ESCAPES = 'nrbtf\\"'  # not \u: one way to write a string, no half characters
MOST_CALLS = 8
# Work and memory, as the library counts them: what takes more than some 10 ms for a mask, or some
# 20 MB for an answer, fails.
LIMITS = llguidance.LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=100_000,
    step_max_items=50_000,
    max_items_in_row=8_000,
    max_lexer_states=10_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)


class GrammarMatcher:
    """A `model.sampling.Matcher`: where an answer stands in its grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int):
        self._matcher, self._vocab_size = matcher, vocab_size
        self._raise_error()

    def allowed(self) -> np.ndarray:
        """Which ids may come next: bool [vocab_size]. ValueError where that is too much work."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._raise_error()  # the mask is that of a complete text then
        if self._matcher.is_stopped() and not self._matcher.is_accepting():
            raise ValueError(f"the grammar cannot go on ({self._matcher.stop_reason()})")
        known = np.unpackbits(bits, bitorder="little")[: self._vocab_size]
        allowed = np.zeros(self._vocab_size, dtype=bool)
        allowed[: len(known)] = known
        if not allowed.any():
            raise ValueError("nothing could come next")
        return allowed

    def accept(self, token: int):
        if not self._matcher.consume_token(token):
            self._raise_error()
            raise ValueError(f"the token {token} could not come next")

    def _raise_error(self):
        if self._matcher.is_error():
            raise ValueError(shown(self._matcher.get_error().partition("\n")[0]))


class Grammars:
    """Grammars over the tokens of one tokenizer.

    ends        the ids that may end an answer
    vocab_size  of the model; ids that the tokenizer does not know never come
    """

    def __init__(self, tokenizer: Tokenizer, ends: frozenset[int], vocab_size: int):
        self.tokenizer, self.vocab_size = tokenizer, vocab_size
        self.ends = sorted(id for id in ends if id < tokenizer.vocab_size)
        self._lock = threading.Lock()
        self._known: llguidance.LLTokenizer | None = None

    def make_ready(self):
        """Make now what the first grammar would have to wait for: up to half a second."""
        with contextlib.suppress(ValueError):  # the request that needs it is told
            self._tokens()

    def matcher(self, grammar: str) -> GrammarMatcher:
        """Where an answer begins. ValueError for a grammar that cannot be followed."""
        matcher = llguidance.LLMatcher(self._tokens(), grammar, log_level=0, limits=LIMITS)
        return GrammarMatcher(matcher, self.vocab_size)

    def check(self, grammar: str):
        """ValueError, in one line, for a grammar that cannot be followed."""
        self.matcher(grammar).allowed()

    def _tokens(self) -> llguidance.LLTokenizer:
        """What the library knows of the tokenizer, made when it is first needed."""
        with self._lock:
            if self._known is None:
                if not self.ends:
                    raise ValueError("no grammars with a tokenizer that cannot end an answer")
                wrapper = llguidance.TokenizerWrapper(_Tokens(self.tokenizer, self.ends[0]))
                try:
                    self._known = llguidance.LLTokenizer(wrapper, eos_token=self.ends)
                except (KeyboardInterrupt, SystemExit):
                    raise
                except BaseException as error:  # the library panics at tokens of 256 bytes
                    raise ValueError(f"no grammars with this tokenizer: {error}") from None
            return self._known


class _Tokens:
    """A tokenizer as llguidance asks for it."""

    def __init__(self, tokenizer: Tokenizer, end: int):
        self.eos_token_id, self.bos_token_id = end, None
        self.tokens = [tokenizer.bytes_of(id) for id in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(tokenizer.control_tokens.values())
        self._encode = tokenizer.encode_text

    def __call__(self, text: bytes) -> list[int]:
        """The ids of a text: where the grammar leaves one text only, these come and no others."""
        return self._encode(text.decode("utf-8"))


def answer_grammar(
    tokenizer: Tokenizer, content: dict | None, calls: list[dict] | None, most_calls: int,
    thinks: bool,
) -> str:  # fmt: skip
    """The grammar of an answer: a think block, then the content or calls of tools.

    content     the schema of the content, of `plain_schema`; None: there is none
    calls       a schema for each call that may be made, of `call_schema`; None: there are none
    most_calls  as many at most
    thinks      whether the answer begins with a think block

    ValueError for a tokenizer without the control tokens.
    """
    start, rules, grammars = [], [], []
    if thinks:
        start.append(f"{_token(tokenizer, THINK)} THOUGHTS {_token(tokenizer, END_THINK)} BLANK")
        rules += ["THOUGHTS: /(?s:.*)/", r"BLANK: /\n\n/"]
    bodies = []
    if content is not None:
        bodies.append("@content")
        grammars.append({"name": "content", "json_schema": _with_options(content)})
    if calls is not None:
        bodies.append("calls")
        call = f"{_token(tokenizer, CALL)} LINE @call LINE {_token(tokenizer, END_CALL)}"
        more = f" (LINE call){{0,{most_calls - 1}}}" if most_calls > 1 else ""
        rules += [f"calls: call{more}", f"call: {call}", r"LINE: /\n/"]
        grammars.append({"name": "call", "json_schema": _with_options(_any_of(calls))})
    start.append(f"({' | '.join(bodies)})")
    top = "\n".join([f"start: {' '.join(start)}", *rules])
    return json.dumps({"grammars": [{"name": "answer", "lark_grammar": top}, *grammars]})


def call_schema(name: str, parameters: object | None, size: Size, number: int = 0) -> dict:
    """The schema of a call of one tool, as dataset/chat.py writes and reads it. Raises BadSchema.

    parameters: the schema of the arguments, of an object; None: there are none
    size: as for `plain_schema`. number: which of the tools it is
    """
    size.add(short(name), parts=4)
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    if isinstance(parameters, dict) and parameters.keys().isdisjoint(("$ref", "anyOf", "oneOf")):
        if parameters.get("type", "object") != "object":
            raise BadSchema(f"expected an object as arguments, got {short(parameters['type'])}")
        parameters = parameters | {"type": "object"}
    arguments = plain_schema(parameters, size, f"{number}-")
    definitions = arguments.pop("$defs")
    return {"type": "object", "properties": {"name": {"enum": [name]}, "arguments": arguments},
            "required": ["name", "arguments"], "additionalProperties": False,
            "$defs": definitions}  # fmt: skip


def _any_of(schemas: list[dict]) -> dict:
    """One schema for several, whose definitions have names of their own."""
    definitions = {name: one for schema in schemas for name, one in schema["$defs"].items()}
    options = [{k: v for k, v in schema.items() if k != "$defs"} for schema in schemas]
    return {"anyOf": options, "$defs": definitions}


def _with_options(schema: dict) -> dict:
    """A schema with what the library is told of how JSON is written."""
    options = {"whitespace_pattern": SPACE, "json_allowed_escapes": ESCAPES}
    return {"x-guidance": options} | schema


def _token(tokenizer: Tokenizer, name: str) -> str:
    if name not in tokenizer.control_tokens:
        raise ValueError(f"the model's tokenizer has no {name}")
    return f"<[{tokenizer.control_tokens[name]}]>"
