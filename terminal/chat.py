"""The chat in the terminal: what is typed, what is answered, what the commands do."""

from __future__ import annotations

import json
import os
import re
from contextlib import closing
from pathlib import Path

from dataset.conversations import to_conversation
from dataset.messages import normal_content
from serving.answer import message_of
from terminal.answers import End
from terminal.keyboard import Keyboard, Typed
from terminal.screen import Screen
from tools.calls import TOOLS, Tool
from tools.calls import answer as result_of

MOST_ROUNDS = 8  # of tool calls for one question
HELP = """/system TEXT    start anew with this system prompt; without TEXT, with none
/think on|off   let the model think before it answers
/tools on|off   let the model call tools; /tools NAME …: only these, of
                {tools}
{choose}
/retry          answer the last message again
/reset          forget the conversation
/save FILE      add the conversation to a .jsonl file, as a line that can be trained on
/help           this list
/exit           leave (also Ctrl-D)
Several lines: paste them, end a line with \\, or put them between \"\"\" and \"\"\".
Ctrl-C ends an answer."""
CHOOSE = {
    "adapter": "/lora NAME      answer with this adapter from now on; /lora off: with none",
    "model": "/model NAME     let this one of the server's models answer from now on",
}
NONE = {"adapter": "none; --lora FOLDER brings them", "model": "none that the server tells of"}


class Chat:
    """Talks in the terminal until /exit.

    answerer  who answers (terminal/answers.py)
    messages  the conversation, in the checked form of dataset/messages.py. The last question has no
              answer if it was broken off before anything was said; the next one takes its place.
    """

    def __init__(
        self, answerer, screen: Screen, system: str | None = None, thinking: bool | None = None,
        tools: dict[str, Tool] = TOOLS,
    ):  # fmt: skip
        self.answerer, self.screen, self.thinking, self.tools = answerer, screen, thinking, tools
        self.opening = opening(system)
        self.messages = list(self.opening)
        self.offered: dict[str, Tool] = {}  # tools that may be called
        self.described: list[dict] = []  # tools that this conversation knows of
        self.attempt = 0

    def run(self):
        keyboard = Keyboard()
        print(f"{self.answerer}. /help lists the commands.")
        if self.answerer.kind == "adapter" and self.answerer.names:
            names = self.answerer.names
            print(f"Adapters: {', '.join(names)} (on: {names[0]}).")
        while True:
            try:
                typed = keyboard.read()
                if not self.take(typed):
                    return None
            except EOFError:
                return print()
            except KeyboardInterrupt:
                if not keyboard.is_terminal:
                    raise
                print()
                self.screen.note("Ctrl-D or /exit leaves")
            except ValueError as error:
                self.screen.note(str(error))

    def take(self, typed: Typed) -> bool:
        """Do what a command says, or have a message answered. False: it is time to leave."""
        word, _, rest = typed.text.partition(" ")
        if "\n" in word:
            word, _, rest = typed.text.partition("\n")
        if typed.is_fenced or not re.fullmatch(r"/\w+", word):
            if typed.text:
                self.ask(typed.text)
        elif word in ("/exit", "/quit"):
            return False
        else:
            self.do(word, rest.strip())
        return True

    def do(self, command: str, rest: str):
        kind = self.answerer.kind
        if command == "/help":
            print(HELP.format(tools=", ".join(self.tools), choose=CHOOSE[kind]))
        elif command == "/reset":
            self.begin()
        elif command == "/system":
            self.opening = opening(normal_content(rest))
            self.begin()
        elif command == "/think":
            if rest == "on" and not self.answerer.can_think:
                raise ValueError("this model was not taught to think (its chat template says)")
            self.thinking = self.switched(command, rest, self.thinking)
        elif command == "/tools":
            self.offer(rest)
        elif command == CHOOSE[kind].split()[0]:
            self.choose(rest)
        elif command == "/retry":
            self.retry()
        elif command == "/save":
            self.save(rest)
        else:
            self.screen.note(f"{command}: no such command here; /help lists them")

    def begin(self):
        self.messages, self.described = list(self.opening), []
        self.screen.note("a new conversation")

    def switched(self, command: str, rest: str, state: bool | None) -> bool | None:
        if rest not in ("on", "off", ""):
            raise ValueError(f"{command}: expected on or off, got {rest}")
        state = rest == "on" if rest else state
        self.screen.note(f"{command}: {'on' if state else 'off'}")
        return state

    def offer(self, rest: str):
        """Let the model call tools: all ("on"), none ("off"), or those that are named."""
        names = {"on": [*self.tools], "off": []}.get(rest, rest.split())
        if unknown := [name for name in names if name not in self.tools]:
            raise ValueError(f"/tools: no tool {unknown[0]}, only {', '.join(self.tools)}")
        if names and not self.answerer.is_chat:
            raise ValueError("a base model calls no tools")
        if rest:
            self.offered = {name: self.tools[name] for name in names}
        self.screen.note(f"/tools: {', '.join(self.offered) or 'off'}")

    def choose(self, name: str):
        kind, names = self.answerer.kind, self.answerer.names
        if name in names or (name == "off" and kind == "adapter"):
            self.answerer.choose(name)
            self.screen.note(f"{kind}: {name}")
        else:
            self.screen.note(f"{kind}s: {', '.join(names) or NONE[kind]}")

    def ask(self, text: str):
        """Have a message answered."""
        if self.messages and self.messages[-1]["role"] == "user":
            self.messages.pop()
        self.messages.append({"role": "user", "content": text})
        self.attempt = 0
        self.answer()

    def retry(self):
        """Have the last message answered again."""
        questions = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        if not questions:
            raise ValueError("there is no message to answer yet")
        del self.messages[questions[-1] + 1 :]
        self.attempt += 1
        self.answer()

    def answer(self):
        """Answer the last message. Tools that are called are run, and the model is asked again.

        What was said when an answer was broken off is kept; if nothing was, the message stays
        without one.
        """
        asked = len(self.messages)
        try:
            for number in range(MOST_ROUNDS + 1):
                message, end = self.one_answer()
                calls = message.get("tool_calls", [])
                if calls or message["content"]:
                    self.messages.append(message)
                else:
                    del self.messages[asked:]
                calls = calls if self.offered else []
                if calls and number == MOST_ROUNDS:
                    raise ValueError(f"{MOST_ROUNDS} rounds of tool calls, and still no answer")
                for call in calls:
                    self.run_tool(call)
                self.screen.show_speed(end)
                if not calls:
                    return
        except KeyboardInterrupt:  # while a tool ran
            del self.messages[asked:]
            self.screen.note("stopped")
        except BaseException:
            del self.messages[asked:]
            raise
        finally:
            self.screen.end_turn()

    def run_tool(self, call: dict):
        """Show and keep what a tool says; it is told, too, what is wrong with a call."""
        result = result_of(call["name"], call["arguments"], self.offered)
        self.screen.show_result(result)
        self.messages.append({"role": "tool", "content": normal_content(result)})

    def one_answer(self) -> tuple[dict, End | None]:
        """The model's message, shown while it is made; of weight 0 if it is not whole."""
        tools = [tool.description for tool in self.offered.values()] or None
        self.described = tools or self.described
        parts = self.answerer.answer(self.messages, tools, self.thinking, self.attempt)
        deltas, end, was_stopped = [], None, False
        with closing(parts):
            try:
                for part in parts:
                    if isinstance(part, End):
                        end = part
                    else:
                        deltas.append(part)
                        self.screen.show(part)
            except KeyboardInterrupt:
                was_stopped = True
            finally:
                self.screen.end_answer(end is not None)
        message = message_of(deltas)
        message["content"] = normal_content(message["content"])
        if was_stopped:
            self.screen.note("stopped")
        if end is None or not end.is_whole:
            message["weight"] = 0  # read as a part of the conversation, and not trained on
        return message, end

    def save(self, name: str):
        """Add the conversation to a file of conversations (docs/data.md)."""
        if not name.endswith(".jsonl") or "\n" in name:
            raise ValueError("/save: expected the name of a .jsonl file")
        messages = self.messages
        if messages and messages[-1]["role"] == "user":  # without an answer
            messages = messages[:-1]
        if messages == self.opening:
            raise ValueError("/save: there is no answer yet")
        record = {"conversations": messages}
        if self.described:
            record["tools"] = self.described
        line = json.dumps(record, ensure_ascii=False)
        to_conversation(json.loads(line))  # ValueError for what training would not read
        path = Path(name).expanduser()
        try:
            add_line(path, line)
        except OSError as error:
            raise ValueError(f"/save {name}: {error.strerror}") from None
        self.screen.note(f"saved to {path}")


def add_line(path: Path, line: str):
    """Add a line to a file, on a line of its own."""
    with path.open("a+b") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else "\n" + line
        file.write(f"{line}\n".encode())


def opening(system: str | None) -> list[dict]:
    return [{"role": "system", "content": system}] if system else []
