"""A generated answer while it comes: what of its text can be shown already, and as what.

Two streams are fed token ids and say what is certain by now:

    TextStream    plain text, for completions: whole characters, never a part of a stop string
    AnswerStream  an assistant's message: its thoughts, its content, its tool calls

Everything an AnswerStream says, joined, is what `dataset.chat.parse_answer` says of all the ids, so
that streamed and unstreamed answers are equal. Exceptions: a think block that is never closed is
reasoning, since it was shown before one could know; and the content ends before a stop string.

Each piece also says how many tokens it covers, in their order, so that what is known of them (their
log-probabilities) can be told along with it. A token is covered when its first character is shown.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from dataset.chat import parse_answer, stop_ids
from dataset.chat_turns import CALL, END_THINK, THINK
from dataset.messages import BLANK_LINES
from dataset.tokenizer import Tokenizer


class Piece(NamedTuple):
    """Some text, and where the tokens that it covers begin: characters from the text's start.

    A character of several tokens begins and ends in the last of them; a piece without text may
    cover tokens, too, when a text ends.
    """

    text: str
    starts: list[int]


class TextStream:
    """The text of ids as they are generated.

    stop     strings, none empty: the text ends before the first one to be complete
    trimmed  without blank lines around it, as `dataset.messages.normal_content`; stop strings are
             then looked for behind those at its beginning
    stopped  whether a stop string has come; what is fed from then on is ignored
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), trimmed: bool = False):
        if not all(stop):
            raise ValueError("expected stop strings that are not empty")
        self.stopped = False
        self._stop = stop
        self._trimmed = trimmed
        self._decoder = tokenizer.stream_decoder()
        self._held = ""  # decoded, not shown
        self._end = 0  # characters decoded
        self._starts: list[int] = []  # of tokens that no piece has covered
        self._in_front = trimmed  # whether only white space has come
        self._is_blank = trimmed  # whether only white space could be shown

    def feed(self, ids: Iterable[int]) -> Piece:
        """What can be shown now that these ids have come."""
        if self.stopped:
            return Piece("", [])
        for id in ids:
            self._starts.append(self._end)
            text = self._decoder.decode([id])
            self._held += text
            self._end += len(text)
        return self._show(final=False)

    def finish(self) -> Piece:
        """What was held back, when no more ids come. Covers all tokens that are left."""
        if self.stopped:
            return Piece("", [])
        text = self._decoder.flush()
        self._held += text
        self._end += len(text)
        return self._show(final=True)

    def _show(self, final: bool) -> Piece:
        if self._in_front and self._held.strip():
            blank = BLANK_LINES.match(self._held)
            self._held = self._held[blank.end() if blank else 0 :]
            self._in_front = False
        begin = self._end - len(self._held)
        stop = None if self._in_front else self._first_stop()
        self.stopped = stop is not None
        text = self._held[:stop]
        covered_to = begin + len(text) if self.stopped else self._end + 1
        if not final and not self.stopped:
            text = text[: len(text) - self._begun_stop()]
        if self._trimmed:
            text = text.rstrip("\r\n")
            if self._is_blank and not text.strip():
                text = ""
            self._is_blank = self._is_blank and not text
        if not final and not self.stopped:
            if not text:
                return Piece("", [])
            covered_to = begin + len(text)
        self._held = self._held[len(text) :]
        count = bisect_left(self._starts, covered_to)
        covered, self._starts = self._starts[:count], self._starts[count:]
        return Piece(text, covered)

    def _first_stop(self) -> int | None:
        """Where in what is held the stop string begins that is complete first."""
        places = [(self._held.find(stop), len(stop)) for stop in self._stop]
        ends = [(place + length, place) for place, length in places if place >= 0]
        return min(ends)[1] if ends else None

    def _begun_stop(self) -> int:
        """How many characters at the end of what is held may become a stop string."""
        longest = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:length]):
                    longest = length
                    break
        return longest


class Delta(NamedTuple):
    """A part of an answer: one of thoughts, content (texts, perhaps empty) and tool calls.

    tool_calls  [{"name", "arguments"}] as the model wrote them: check the arguments
    num_tokens  how many tokens it covers, in their order, the ends of a think block included
    """

    num_tokens: int
    reasoning: str | None = None
    content: str | None = None
    tool_calls: list[dict] | None = None


class AnswerStream:
    """An answer as it is generated: thoughts, then content, then tool calls.

    stop     strings that end the content; in thoughts and tool calls they are not looked for
    tools    whether tool calls are told from content: from the first one on all is held back until
             the end, and is content after all unless it is one well-formed call after the other
    thinks   whether a think block at the beginning is told from content
    stopped  whether a stop string has come: generate no more

    The ids are what follows the opening of the turn. Those at the end that end a turn are no part
    of the answer, whether they are fed or not, and no Delta covers them.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], tools: bool, thinks: bool):
        self._tokenizer = tokenizer
        control = tokenizer.control_tokens
        self._ends = frozenset(stop_ids(tokenizer))
        self._think = control.get(THINK) if thinks else None
        self._end_think = control.get(END_THINK)
        self._call = control.get(CALL) if tools else None
        self._begun = False
        self._held_ends: list[int] = []
        self._thoughts: TextStream | None = None  # while they come
        self._content = TextStream(tokenizer, stop, trimmed=True)
        self._calls: list[int] = []  # all from the first call on

    @property
    def stopped(self) -> bool:
        return self._content.stopped

    def feed(self, ids: Iterable[int]) -> list[Delta]:
        """What can be shown now that these ids have come: seldom more than one Delta."""
        deltas: list[Delta] = []
        for id in ids:
            if id in self._ends:
                self._held_ends.append(id)
                continue
            for one in (*self._held_ends, id):
                self._take(one, deltas)
            self._held_ends = []
        return deltas

    def finish(self) -> list[Delta]:
        """What was held back, when no more ids come."""
        deltas: list[Delta] = []
        if self._thoughts:
            text, starts = self._thoughts.finish()
            if text or starts:
                deltas.append(Delta(len(starts), reasoning=text))
        calls = parse_answer(self._tokenizer, self._calls).get("tool_calls")
        if not calls:
            self._say(self._content.feed(self._calls), deltas)
        self._say(self._content.finish(), deltas)
        if calls and not self.stopped:
            deltas.append(Delta(len(self._calls), tool_calls=calls))
        return deltas

    def _take(self, id: int, deltas: list[Delta]) -> None:
        begun, self._begun = self._begun, True
        if not begun and id == self._think:
            self._thoughts = TextStream(self._tokenizer, trimmed=True)
            deltas.append(Delta(1, reasoning=""))
        elif self._thoughts and id == self._end_think:
            text, starts = self._thoughts.finish()
            deltas.append(Delta(len(starts) + 1, reasoning=text))
            self._thoughts = None
        elif self._thoughts:
            text, starts = self._thoughts.feed([id])
            if text or starts:
                deltas.append(Delta(len(starts), reasoning=text))
        elif self._calls or (id == self._call and not self.stopped):
            self._calls.append(id)
        else:
            self._say(self._content.feed([id]), deltas)

    def _say(self, piece: Piece, deltas: list[Delta]) -> None:
        text, starts = piece
        if text or starts:
            deltas.append(Delta(len(starts), content=text))


def message_of(deltas: Iterable[Delta]) -> dict:
    """The assistant's message that an answer's Deltas are, as `dataset.chat.parse_answer`'s."""
    message = {"role": "assistant", "content": ""}
    for delta in deltas:
        if delta.reasoning:
            message["reasoning_content"] = message.get("reasoning_content", "") + delta.reasoning
        message["content"] += delta.content or ""
        if delta.tool_calls:
            message["tool_calls"] = delta.tool_calls
    return message
