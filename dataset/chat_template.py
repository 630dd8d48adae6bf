"""Chat formats of other folders: their Jinja templates, rendered so that text stays text.

The fast, written-out form of our own templates is dataset/chat.py; this is the way that takes any.
A control token's name inside a message is changed before rendering, so that only the template's own
become control tokens, and changed back when the pieces between them are encoded. Where an answer
begins and ends is found by rendering the conversation before it with a generation prompt.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from itertools import takewhile

from dataset.chat_turns import InPieces, from_ids
from dataset.tokenizer import Tokenizer
from model.json_file import shown

MOST_TOKENS = 1 << 23  # encoded for the answers of one conversation: about 1,000 turns
# Unicode sets these code points aside for such uses: no text in exchange holds them.
NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]


def encode(
    tokenizer: Tokenizer,
    messages: list[dict],
    tools: list | None,
    add_generation_prompt: bool,
    enable_thinking: bool,
) -> tuple[list[int], list[int]]:
    """(ids, mask) of a whole conversation, as chat.encode_conversation; ValueError as `answers`."""
    render = _Renderer(tokenizer, messages, tools)
    if messages and messages[-1]["role"] == "assistant" and not add_generation_prompt:
        ids, mask, *_ = _sequences(render, messages)[-1]
        return ids, mask
    ids = render.ids(render(len(messages), add_generation_prompt, enable_thinking))
    return ids, [0] * len(ids)


def answers(tokenizer: Tokenizer, messages: list[dict], tools: list | None) -> list[InPieces]:
    """The sequences of chat.training_sequences, for any template.

    Raises ValueError where a template cannot say what a message holds, or shows an answer behind
    other ids than those of its own generation prompt.
    """
    made = _sequences(_Renderer(tokenizer, messages, tools), messages, MOST_TOKENS)
    return [
        from_ids(ids[: ends[-1]], mask[: ends[-1]], ends) for ids, mask, _, ends in made if ends
    ]


def answer(
    tokenizer: Tokenizer, prompt: list[dict], answer: list[dict], tools: list | None
) -> InPieces | None:
    """A prompt and an answer that may not be cut; None if it does not stand behind its prompt."""
    ids, mask = encode(tokenizer, prompt + answer, tools, False, False)
    for thinking in (True, False):  # where an answer may think, its think block is a part of it
        before, _ = encode(tokenizer, prompt, tools, True, thinking)
        if ids[: len(before)] == before:
            # earlier answers are a part of the prompt
            mask = [0] * len(before) + mask[len(before) :]
            return from_ids(ids, mask, [len(ids)])
    return None


def after_tools(
    tokenizer: Tokenizer, messages: list[dict], tools: list | None, enable_thinking: bool
) -> list[int]:
    """What `chat.after_tools` says, for any template."""
    render = _Renderer(tokenizer, messages, tools)
    answer = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
    before, _, end = _answer(render, answer)
    ids = render.ids(render(len(messages), True, enable_thinking))
    if ids[:end] != before[:end]:
        raise ValueError(
            f"the chat template of {tokenizer.folder} shows an answer otherwise once a tool has "
            "answered"
        )
    return ids[end:]


@lru_cache
def _check_generation_prompt(tokenizer: Tokenizer, template: str) -> None:
    """ValueError if answers would begin with a header that belongs into a generation prompt."""
    said = "@@@@"  # nothing that a header says
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": said}]
    render = _Renderer(tokenizer, messages, None)
    prompt, text = render(1, True), render(2)
    if prompt != render(1) or not text.startswith(prompt) or said not in text:
        return  # it has one, or `_answer` says what is wrong
    header = text[len(prompt) : text.index(said)]
    if header.replace("<think>", "").replace("</think>", "").strip():
        raise ValueError(
            f"the chat template of {tokenizer.folder} has no generation prompt: "
            f"{shown(header.strip(), 40)!r} would be a part of every answer"
        )


def _sequences(render: _Renderer, messages: list[dict], most: int | None = None) -> list[tuple]:
    """[(ids, mask, end of its last answer, where it may be cut)].

    Every answer stands where it is generated; those whose sequences begin alike share one. What is
    behind an answer's last control token may look otherwise when a later turn follows. Answers are
    left out once so many tokens (`most`) have been encoded: for each all before it is, once more.
    """
    _check_generation_prompt(render.tokenizer, render.tokenizer.chat_template)
    made: list[tuple[list[int], list[int], int, list[int]]] = []
    num_tokens = 0
    for k, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        weight = int(message.get("weight", 1))
        ids, begin, end = _answer(render, k)
        num_tokens += len(ids)
        if most and num_tokens > most and made:
            break
        mask = [weight * (begin <= i < end) for i in range(len(ids))]
        ends = [len(ids)] * weight
        if made and ids[: made[-1][2]] == made[-1][0][: made[-1][2]]:  # it goes on from the last
            before, before_mask, last_end, before_ends = made.pop()
            mask[:last_end] = before_mask[:last_end]
            both = zip(ids[last_end:begin], before[last_end:])
            common = last_end + sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], both))
            ends = [min(place, common) for place in before_ends] + ends
        made.append((ids, mask, end, ends))
    return made


def end_of_turn(tokenizer: Tokenizer) -> int:
    """The control token at which an answer ends. ValueError as `answers`."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    ids, _, end = _answer(_Renderer(tokenizer, messages, None), 1)
    return ids[end - 1]


def _answer(render: _Renderer, k: int) -> tuple[list[int], int, int]:
    """Ids of the conversation that ends with message k, and where what is generated begins, ends.

    It begins behind the generation prompt, the shorter one if thinking on and off both fit, and
    ends with the last control token.
    """
    text = render(k + 1)
    render.check(k, text)
    prompts = {render(k, True, thinking) for thinking in (True, False)}
    fitting = [prompt for prompt in prompts if text.startswith(prompt)]
    if not fitting:
        raise ValueError(
            f"the chat template of {render.tokenizer.folder} shows message {k + 1} otherwise than "
            "behind its own generation prompt: training on it would teach what is never asked"
        )
    prompt = min(fitting, key=len)
    before, said = render.ids(prompt), render.ids(text[len(prompt) :])
    controls = set(render.tokenizer.control_tokens.values())
    end = max((i + 1 for i, id in enumerate(said) if id in controls), default=0)
    if not end:
        ending = shown(text[len(prompt) :].strip()[-40:])
        raise ValueError(
            f"the chat template of {render.tokenizer.folder} ends an answer by no token of its "
            f"tokenizer (it ends in {ending!r}): what is generated would never stop"
        )
    return before + said, len(before), len(before) + end


class _Renderer:
    """Renders the first messages of a conversation, and encodes what comes out."""

    def __init__(self, tokenizer: Tokenizer, messages: list[dict], tools: list | None):
        self.tokenizer = tokenizer
        names = sorted(tokenizer.control_tokens, key=len, reverse=True)  # the longest match counts
        self._names = re.compile("|".join(map(re.escape, names)))
        # some tokens swallow the white space on their left or right
        spaced = (tokenizer.swallows_space[name] for name in names)
        self._in_template = re.compile(
            "|".join(
                r"\s*" * left + re.escape(name) + r"\s*" * right
                for name, (left, right) in zip(names, spaced)
            )
        )
        text = json.dumps([messages, tools], ensure_ascii=False, default=str)
        free = (character for character in NONCHARACTERS if character not in text)
        self._hide = dict(zip(sorted({name[0] for name in names}), free))
        self._show = str.maketrans({hidden: first for first, hidden in self._hide.items()})
        self._messages = [_with_functions(self._hidden(message)) for message in messages]
        self._tools = self._hidden(tools) if tools else None

    def __call__(self, count: int, add_generation_prompt=False, enable_thinking=False) -> str:
        """What the template makes of the first `count` messages."""
        # only here: a model with one of our own templates need not wait for these imports
        import jinja2
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            rendered, _ = render_jinja_template(
                [self._messages[:count]], self._tools, chat_template=self.tokenizer.chat_template,
                add_generation_prompt=add_generation_prompt, enable_thinking=enable_thinking,
                **self.tokenizer.special_tokens,
            )  # fmt: skip
        except (jinja2.TemplateError, TypeError, ValueError, AttributeError, KeyError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"{self._template} refuses the conversation: {reason}") from None
        return rendered[0]

    @property
    def _template(self) -> str:
        return f"the chat template of {self.tokenizer.folder}"

    def check(self, k: int, text: str):
        """ValueError unless the rendered text holds all that message k and those before it say.

        Earlier answers are left out: a template may show them without their thoughts.
        """
        message = self._messages[k]
        parts = [(f"the {name} of message {k + 1}", message.get(name)) for name in _SAID]
        for call in message.get("tool_calls") or []:
            parts.append((f"the tool calls of message {k + 1}", call["function"]["name"]))
        for tool in self._tools or []:
            function = tool.get("function", tool) if isinstance(tool, dict) else {}
            parts.append(("tools", function.get("name")))
        for j, earlier in enumerate(self._messages[:k]):
            if earlier["role"] != "assistant":
                parts.append((f"the {earlier['role']} message {j + 1}", earlier["content"]))
        for name, part in parts:
            part = part.strip() if isinstance(part, str) else ""
            if part not in text and json.dumps(part, ensure_ascii=False)[1:-1] not in text:
                raise ValueError(f"{self._template} has no place for {name}")

    def ids(self, text: str) -> list[int]:
        """The ids of rendered text: the template's control tokens by id, all between as text."""
        ids, at, controls = [], 0, self.tokenizer.control_tokens
        for match in self._in_template.finditer(text):
            ids += self._plain(text[at : match.start()])
            name = match[0] if match[0] in controls else match[0].strip()
            ids.append(controls[name])
            at = match.end()
        return ids + self._plain(text[at:])

    def _plain(self, text: str) -> list[int]:
        return self.tokenizer.encode_text(text.translate(self._show)) if text else []

    def _hidden(self, value):
        """The value, with another first letter in every name of a control token in its texts."""
        if isinstance(value, str):
            return self._names.sub(lambda name: self._hide[name[0][0]] + name[0][1:], value)
        if isinstance(value, dict):
            return {self._hidden(key): self._hidden(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._hidden(item) for item in value]
        return value


_SAID = ("content", "reasoning_content")


def _with_functions(message: dict) -> dict:
    """Tool calls as templates expect them: {"type": "function", "function": {…}}."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    calls = [{"type": "function", "function": call.get("function", call)} for call in calls]
    return message | {"tool_calls": calls}
