"""The chat in a real terminal (a pseudo-terminal): typing, pasting, Ctrl-C, what is shown."""

import json
import os
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from terminal.screen import CONTROLS

pty = pytest.importorskip("pty")
pytest.importorskip("readline")

REPOSITORY = Path(__file__).resolve().parent.parent
STYLES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")

# A chat whose answers show what was asked; "slowly" is answered one letter after the other.
ECHO = """
import sys, time
from serving.answer import Delta
from terminal.answers import End
from terminal.chat import Chat
from terminal.screen import Screen

class Echo:
    kind, names, is_chat, can_think = "adapter", [], True, True

    def answer(self, messages, tools, thinking, attempt):
        asked = messages[-1]["content"]
        if asked == "slowly":
            for _ in range(1000):
                yield Delta(1, content="z")
                time.sleep(0.02)
        if asked == "think":
            yield Delta(1, reasoning="Hm.")
        if asked == "call":
            calls = [{"name": "calculator", "arguments": {"expression": "12 + 30"}}]
            yield Delta(1, tool_calls=calls)
        if asked == "obey":
            yield Delta(1, content="a\\x1b]0;title\\x07b\\x9b2Jc\\rd\\te")
        yield Delta(1, content=f"<{asked!r}>")
        yield End(True, 5, 0.1, 0.5)

Chat(Echo(), Screen()).run()
"""


class Terminal:
    """A process in a pseudo-terminal. sent(keys, until): what is shown from then on."""

    def __init__(self, *command, **environment):
        self.ours, theirs = pty.openpty()
        environment = {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1", **environment}
        self.process = subprocess.Popen(
            [sys.executable, *map(str, command)], stdin=theirs, stdout=theirs, stderr=theirs,
            cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
            start_new_session=True, preexec_fn=take_terminal,
        )  # fmt: skip
        os.close(theirs)

    def sent(self, keys: str | bytes = "", until: str = "> ", seconds: float = 60) -> str:
        os.write(self.ours, keys if isinstance(keys, bytes) else keys.encode())
        shown, deadline = b"", time.monotonic() + seconds
        while not re.search(until, text(shown)):
            left = deadline - time.monotonic()
            assert left > 0, f"{until!r} was not shown, but {shown!r}"
            if select.select([self.ours], [], [], left)[0]:
                try:
                    shown += os.read(self.ours, 4096)
                except OSError:  # the process has left
                    break
        return shown.decode(errors="replace")

    def leave(self) -> int:
        self.sent("\x04", until="$^")
        return self.process.wait(timeout=30)

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.ours)


def take_terminal():
    """In the child: its stdin becomes the terminal that Ctrl-C comes from."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def text(shown: bytes | str) -> str:
    """What was shown without styles, lines as they are seen."""
    shown = shown.decode(errors="replace") if isinstance(shown, bytes) else shown
    return STYLES.sub("", shown).replace("\r\n", "\n").replace("\n\r", "\n")


@pytest.fixture
def terminal():
    """A function that starts a process in a terminal, the echoing chat if nothing else is said."""
    started = []

    def start(*command, **environment):
        started.append(Terminal(*(command or ("-c", ECHO)), **environment))
        started[-1].sent(until="/help lists the commands.\n.*> ")
        return started[-1]

    yield start
    for one in started:
        one.close()


ANSWERED = r"tokens/s.*\n(.*\n)*.*> $"


@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
def test_what_is_pasted_is_one_message(terminal, term):
    """Several lines at once, marked as pasted or not, with Chinese, tabs and empty lines in them;
    what is typed behind them belongs to it, and Enter ends it."""
    chat = terminal(TERM=term)
    marked = "\x1b[200~一 line\n\n\ttwo\n  three\x1b[201~"
    assert "three" in chat.sent(marked, until="three")
    assert r"<'一 line\n\n\ttwo\n  three!'>" in chat.sent("!\r", until=ANSWERED)
    assert "cc" in chat.sent("/reset a\nb \\\n/exit\n/nonsense\ncc", until="cc")
    chat.sent("\x15\r", until="> $")
    chat.sent("aa\nb \\\n/exit\ncc", until="cc")
    assert r"<'aa\nb \\\n/exit\ncc'>" in chat.sent("\r", until=ANSWERED)
    assert chat.leave() == 0


def test_lines_that_are_typed_for_one_message(terminal):
    """A line that ends with a backslash goes on; fences hold any lines, commands too."""
    chat = terminal()
    chat.sent("one \\\r", until=r"\.\.\. $")
    chat.sent("two\\\r", until=r"\.\.\. $")
    assert r"<'one \ntwo\n三'>" in chat.sent("三\r", until=ANSWERED)
    chat.sent('"""\r', until=r"\.\.\. $")
    chat.sent("/exit\r", until=r"\.\.\. $")
    chat.sent("\r", until=r"\.\.\. $")
    assert r"<'/exit\n\nend'>" in chat.sent('end"""\r', until=ANSWERED)
    assert r"<'/help'>" in chat.sent('"""/help"""\r', until=ANSWERED)


def test_earlier_lines_come_back(terminal):
    """The arrow up, as in a shell; Ctrl-C leaves a line that was begun."""
    chat = terminal()
    chat.sent("first\r", until=ANSWERED)
    chat.sent("second\r", until=ANSWERED)
    assert "<'first'>" in chat.sent("\x1b[A\x1b[A\r", until=ANSWERED)
    chat.sent("begun", until="begun")
    time.sleep(0.2)  # readline misses a Ctrl-C in the moment before it waits for keys
    shown = text(chat.sent("\x03", until=r"leaves\)\n> $"))
    assert "(Ctrl-D or /exit leaves)" in shown
    assert "<'third'>" in chat.sent("third\r", until=ANSWERED)


def test_ctrl_c_ends_an_answer(terminal):
    """What was said so far stays on the screen, and the chat goes on."""
    chat = terminal()
    chat.sent("slowly\r", until="zzz")
    shown = text(chat.sent("\x03", until=r"\(stopped\)\n+> $"))
    assert shown.count("z") < 500
    assert "<'on'>" in chat.sent("on\r", until=ANSWERED)


def test_thoughts_calls_and_figures_are_dim(terminal):
    """… and the answer is not; a tool's result is shown behind its call. Not with NO_COLOR."""
    chat = terminal()
    shown = chat.sent("think\r", until=ANSWERED)
    assert "\x1b[2mHm.\x1b[0m\r\n\r\n<'think'>" in shown
    assert "\x1b[2m(5 tokens, 8 tokens/s, the first after 0.10 s)\x1b[0m" in shown
    chat.sent("/tools on\r", until=r"\)\n> $")
    shown = chat.sent("call\r", until=r"tokens/s(.*\n)*.*tokens/s(.*\n)*.*> $")
    calls = '\x1b[2m→ calculator {"expression": "12 + 30"}\x1b[0m'
    assert calls in shown and '\x1b[2m← {"result": 42}\x1b[0m' in shown
    plain = terminal(NO_COLOR="1").sent("think\r", until=ANSWERED)
    assert "<think>\r\nHm.\r\n</think>" in plain and "\x1b[2m" not in plain


def test_a_models_text_commands_no_terminal(terminal):
    """Escape sequences are shown as what they are; a return to the line's beginning is dropped."""
    shown = terminal().sent("obey\r", until=ANSWERED)
    assert r"a\x1b]0;title\x07b\x9b2Jcd" in shown and "\x1b]0;" not in shown


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_tokenizer_dir) -> Path:
    """A tiny chat model with random weights."""
    import torch

    from dataset.tokenizer import load_tokenizer
    from model.config import LMConfig
    from model.hf_format import save_model
    from model.model import MiniMindLM

    folder = tmp_path_factory.mktemp("chat")
    torch.manual_seed(0)
    config = LMConfig(
        vocab_size=512, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=64, initializer_range=0.4,
    )  # fmt: skip
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    save_model(MiniMindLM(config), folder, tokenizer.eos_id)
    tokenizer.save(folder)
    return folder


SLOW = """
import sys, time
import eval_model
from model.engine import Engine
from training import cli

step = Engine.step
def slow_step(engine):
    time.sleep(0.02)
    return step(engine)
Engine.step = slow_step
cli.run(eval_model.main)
"""


def test_eval_model_in_a_terminal(terminal, folder, tmp_path):
    """A model of our own: an answer is ended with Ctrl-C, the next one is whole, and both are
    saved as what was shown; the engine has forgotten nothing."""
    chat = terminal(
        "-c", SLOW, "--model", folder, "--temperature", "1", "--seed", "1",
        "--max_new_tokens", "200", "--device", "cpu",
    )  # fmt: skip
    begun = text(chat.sent("你好\r", until="(.|\n){40}"))
    stopped = begun + text(chat.sent("\x03", until=r"\(stopped\)\n+> $"))
    chat.sent("and\\\r", until=r"\.\.\. $")
    whole = text(chat.sent("on\r", until=ANSWERED))
    file = tmp_path / "said.jsonl"
    chat.sent(f"/save {file}\r", until=r"\(saved to (.|\n)*\)\n> $")
    messages = json.loads(file.read_text(encoding="utf-8"))["conversations"]
    assert [m["content"] for m in messages[::2]] == ["你好", "and\non"]
    for message, shown in zip(messages[1::2], (stopped, whole)):
        assert letters(message["content"].translate(CONTROLS)) in letters(shown)
    assert messages[1]["weight"] == 0 and letters(messages[1]["content"])
    assert chat.leave() == 0


def letters(shown: str) -> str:
    """What is left of a text when a terminal has wrapped its lines."""
    return "".join(re.findall(r"\w", shown))
