"""How a chat looks: thoughts, tool calls and figures are dim on a terminal.

Anywhere else thoughts and calls stand between the tags of the chat format, so that a file or a
program gets plain text, and there are no figures unless they are asked for.
"""

from __future__ import annotations

import json
import os
import sys

from serving.answer import Delta
from terminal.answers import End

DIM, PLAIN = "\033[2m", "\033[0m"
MOST_SHOWN = 1000  # characters of a call or its result, on a terminal
# What a terminal would obey: a model's text moves no cursor and changes no window's title.
CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
CONTROLS |= {ord("\n"): "\n", ord("\t"): "\t", ord("\r"): None}


class Screen:
    """Prints to stdout. show_speed: tokens/s after every answer; None: on a terminal."""

    def __init__(self, show_speed: bool | None = None):
        self.is_terminal = sys.stdout.isatty()
        has_styles = os.environ.get("TERM", "dumb") != "dumb" and not os.environ.get("NO_COLOR")
        self.has_styles = self.is_terminal and has_styles
        self.tells_speed = self.is_terminal if show_speed is None else show_speed
        self._place = ""  # "thoughts" or "content" while an answer is shown

    def show(self, delta: Delta):
        """A part of an answer."""
        if delta.reasoning:
            self._go_to("thoughts")
            self._print(delta.reasoning)
        if delta.content:
            self._go_to("content")
            self._print(delta.content)
        for call in delta.tool_calls or ():
            self._go_to("call")
            name, arguments = call["name"], json.dumps(call["arguments"], ensure_ascii=False)
            if self.has_styles:
                self._dim(f"→ {name} {arguments}")
            else:
                call = f'{{"name": {json.dumps(name)}, "arguments": {arguments}}}'
                self._print(f"<tool_call>\n{call}\n</tool_call>")

    def end_answer(self, is_complete: bool):
        """A message is over, or was broken off."""
        if self._place or is_complete:
            self._go_to("")
            print(flush=True)

    def show_speed(self, end: End | None):
        """How long an answer was and how fast it came."""
        if end is not None and self.tells_speed:
            self.note(str(end))

    def end_turn(self):
        """It is the user's turn: a blank line on a terminal."""
        if self.is_terminal:
            print(flush=True)

    def show_result(self, result: str):
        """What a tool has answered."""
        if self.has_styles:
            self._dim(f"← {result}")
        else:
            self._print(f"<tool_response>\n{result}\n</tool_response>")
        print(flush=True)

    def note(self, text: str):
        """Something the chat itself says, in one line."""
        text = f"({' '.join(text.split())})"
        self._dim(text) if self.has_styles else self._print(text)
        print(flush=True)

    def _go_to(self, place: str):
        """Close what was shown before, and open what comes now."""
        before, self._place = self._place, place
        if place == before and place != "call":
            return
        if before == "thoughts":
            close = PLAIN if self.has_styles else "\n</think>"
            print(close + ("\n\n" if place else ""), end="")
        elif before and place:
            print("\n", end="")
        if place == "thoughts":
            print(DIM if self.has_styles else "<think>\n", end="")

    def _dim(self, text: str):
        text = text if len(text) <= MOST_SHOWN else text[:MOST_SHOWN] + "…"
        print(DIM, end="")
        self._print(text)
        print(PLAIN, end="")

    def _print(self, text: str):
        print(text.translate(CONTROLS) if self.is_terminal else text, end="", flush=True)
