"""Answers of a model in this process, decoded by model/engine.py."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dataset.chat import can_think, encode_conversation
from dataset.tokenizer import Tokenizer
from model import lora
from model.decoding_layers import for_decoding
from model.engine import Engine
from model.hf_format import weights_sha256
from model.model import MiniMindLM
from model.request import Request
from model.sampling import Sampling
from serving.answer import AnswerStream, Delta
from terminal.answers import End, Stopwatch


class LocalModel:
    """An answerer (terminal/answers.py).

    folder    the model's, which adapters were made for
    ends      ids at which an answer ends
    adapters  folders by name; the first one is on
    args      of eval_model.py: sampling, --seed, --max_new_tokens, --quantize, --compile
    """

    kind = "adapter"

    def __init__(
        self, model: MiniMindLM, folder: Path, tokenizer: Tokenizer, ends: set[int],
        adapters: dict[str, Path], args,
    ):  # fmt: skip
        self.model, self.folder, self.tokenizer, self.ends = model, folder, tokenizer, ends
        self.adapters, self.args = adapters, args
        self.sampling = Sampling(
            temperature=args.temperature, top_k=args.top_k, top_p=args.top_p,
            repetition_penalty=args.repetition_penalty,
        )  # fmt: skip
        self.is_chat = tokenizer.chat_template is not None
        self.can_think = can_think(tokenizer)
        self.end: End | None = None  # of the answer before
        self.choose(next(iter(adapters), "off"))

    def __str__(self) -> str:
        kind = "a chat model" if self.is_chat else "a base model: it continues what you write"
        return f"{self.model.num_parameters() / 1e6:.1f}M parameters, {kind}"

    @property
    def names(self) -> list[str]:
        return list(self.adapters)

    def choose(self, name: str):
        """Put one adapter beside the base's weights, or none ("off")."""
        switch_adapter(self.model, self.adapters.get(name), self.folder)
        self.fast = for_decoding(self.model, self.args.quantize == "int8")
        self._forget()

    def _forget(self):
        """Make the engine anew, and with it what it knows of conversations."""
        # one sequence at a time; the row beside it keeps what is common to another conversation
        self.engine = Engine(self.fast, max_running=1, kept=1, compiled=self.args.compile)

    def answer(
        self, messages: list[dict], tools: list | None, thinking: bool | None, attempt: int
    ) -> Iterator[Delta | End]:
        if not self.is_chat:
            ids = base_ids(self.tokenizer, messages[-1]["content"])
            yield from (Delta(1, content=text) for text in self.text(ids, attempt) if text)
        else:
            ids = self.chat_ids(messages, tools, bool(thinking))
            # calls are told from content without tools, too: they are said with control tokens
            stream = AnswerStream(self.tokenizer, (), tools=True, thinks=self.can_think)
            for token in self.tokens(ids, attempt):
                if token not in self.ends:
                    yield from stream.feed([token])
            yield from stream.finish()
        yield self.end

    def text(self, ids: list[int], attempt: int = 0) -> Iterator[str]:
        """What follows `ids`, as it is generated: whole characters, control tokens by name."""
        decoder = self.tokenizer.stream_decoder()
        for token in self.tokens(ids, attempt):
            yield decoder.flush() if token in self.ends else decoder.decode([token])
        yield decoder.flush()

    def tokens(self, ids: list[int], attempt: int = 0) -> Iterator[int]:
        """The ids that follow `ids`, one by one; `self.end` tells of them afterwards.

        Raises KeyboardInterrupt between two of them, and ValueError for what outgrows the context.
        """
        args, watch = self.args, Stopwatch()
        seed = None if args.seed is None else args.seed + attempt
        request = Request(ids, args.max_new_tokens, self.ends, self.sampling, seed)
        with ctrl_c_noted() as presses:
            try:
                for drawn in self.engine.stream(request):
                    watch.lap()
                    yield drawn.token
                    if presses:
                        raise KeyboardInterrupt
            finally:
                if len(presses) > 1:  # in the middle of a step
                    self._forget()
        self.end = watch.end(request.ending == "stop", len(request.tokens))

    def chat_ids(self, messages: list[dict], tools: list | None, thinking: bool) -> list[int]:
        """The conversation as token ids, without its oldest turns if it outgrows the context."""
        room = self.model.config.max_position_embeddings - self.args.max_new_tokens
        first = 1 if messages[0]["role"] == "system" else 0
        questions = [i for i, message in enumerate(messages) if message["role"] == "user"]
        left_out = 0
        while True:
            kept = messages[:first] + messages[questions[left_out] if left_out else first :]
            ids, _ = encode_conversation(
                self.tokenizer, kept, tools, add_generation_prompt=True, enable_thinking=thinking
            )
            if len(ids) <= room or left_out == len(questions) - 1:
                break
            left_out += 1
        if left_out:
            turns = "turn no longer fits" if left_out == 1 else f"{left_out} turns no longer fit"
            print(f"(the oldest {turns} the context: left out)", file=sys.stderr)
        return ids


@contextmanager
def ctrl_c_noted() -> Iterator[list[int]]:
    """Ctrl-C is noted in a list, for a loop to end between two steps; a second one ends at once."""
    presses = []

    def note(number, _frame):
        presses.append(number)
        if len(presses) > 1:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield presses
    finally:
        signal.signal(signal.SIGINT, before)


def switch_adapter(model: MiniMindLM, adapter: Path | None, folder: Path):
    """Put one adapter beside the weights of the base in `folder`, or none."""
    if adapter is None:
        lora.detach(model)
    else:
        lora.load_adapter(model, adapter, weights_sha256(folder))


def base_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The ids of a base model's prompt: as it stands, or, without any, what begins a text."""
    return tokenizer.encode_text(prompt) or [tokenizer.eos_id]
