'''Messages as they are typed, pasted or piped.

On a terminal a message may have several lines: pasted ones; lines that end with a backslash; what
stands between """ and """. Readline edits the line and remembers earlier ones. From a pipe every
line is a message.
'''

from __future__ import annotations

import select
import sys
from typing import NamedTuple

from dataset.messages import normal_content
from training.terminal import as_text

FENCE = '"""'
PASTE_SECONDS = 0.02  # nobody types the next line so soon after Enter


class Typed(NamedTuple):
    """A message, or a command; between fences it is a message whatever it says."""

    text: str
    is_fenced: bool = False


class Keyboard:
    """Reads from stdin. is_terminal: somebody sits in front of it and sees what is printed."""

    def __init__(self):
        self.is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self.joins_lines = self.is_terminal and use_readline()

    def read(self) -> Typed:
        """The next message or command.

        Raises EOFError at the end of the input, KeyboardInterrupt at Ctrl-C, and ValueError for
        bytes that are no text.
        """
        if not self.is_terminal:
            text = as_text(input("> "), "this line", sys.stdin.encoding).strip()
            if not sys.stdin.isatty():  # show it as if it had been typed
                print(text)
            return Typed(text)
        piece = self._piece("> ")
        is_fenced = piece.lstrip().startswith(FENCE) and "\n" not in piece
        if is_fenced:
            text = piece.lstrip()[len(FENCE) :]
            while not text.rstrip().endswith(FENCE):
                text += "\n" + self._piece("... ")
            text = text.rstrip()[: -len(FENCE)]
        else:
            text = piece
            while piece.endswith("\\") and "\n" not in piece:
                piece = self._piece("... ")
                text = text[:-1] + "\n" + piece
        text = as_text(text, "this message", sys.stdin.encoding)
        return Typed(normal_content(text) if "\n" in text else text.strip(), is_fenced)

    def _piece(self, prompt: str) -> str:
        """A line, or the lines that were pasted at once.

        Most terminals mark what is pasted and readline keeps it together. Not all do, and none
        while an answer is shown: lines that are there as soon as the one before is read go with it.
        """
        lines = [input(prompt)]
        while self.joins_lines and select.select([sys.stdin], [], [], PASTE_SECONDS)[0]:
            try:
                lines.append(input())
            except EOFError:  # Ctrl-D: for the next prompt
                break
        return "\n".join(lines)


def use_readline() -> bool:
    """Have `input` edit lines; False where there is no such thing (Windows)."""
    try:
        import readline
    except ImportError:
        return False
    if "libedit" not in (readline.__doc__ or ""):  # another library under its name, for macOS
        readline.parse_and_bind("set enable-bracketed-paste on")
    return True
