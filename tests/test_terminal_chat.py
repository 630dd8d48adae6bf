"""terminal/chat.py with an answerer that says what a test gives it: tools, /save, /retry."""

import io
import json
import sys

import pytest

from dataset.conversations import read_conversations
from serving.answer import Delta
from terminal.answers import End, Stopwatch
from terminal.chat import MOST_ROUNDS, Chat
from terminal.screen import Screen
from tools.calls import tool_of

ran: list[int] = []


def add_one(a: int) -> dict:
    """Add one."""
    ran.append(a)
    return {"result": a + 1}


def other() -> str:
    """Another tool."""
    return "other"


TOOLS = {tool.__name__: tool_of(tool) for tool in (add_one, other)}
DESCRIPTIONS = [tool.description for tool in TOOLS.values()]


class Scripted:
    """An answerer with the answers of a list, each a list of Deltas, texts, Ends or exceptions."""

    kind, names, is_chat, can_think = "adapter", ["shop"], True, True

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def __str__(self):
        return "a script"

    def answer(self, messages, tools, thinking, attempt):
        self.asked.append((json.loads(json.dumps(messages)), tools, thinking, attempt))
        whole = End(True, 3, 0.1, 0.1)
        for part in self.answers.pop(0):
            if isinstance(part, BaseException):
                raise part
            whole = part if isinstance(part, End) else whole
            if not isinstance(part, End):
                yield Delta(1, content=part) if isinstance(part, str) else part
        yield whole


def call(name="add_one", **arguments) -> Delta:
    return Delta(1, tool_calls=[{"name": name, "arguments": arguments}])


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


@pytest.fixture
def talk(monkeypatch, capsys):
    """A function that types lines to a Chat; it gives back the Chat and what was printed."""
    ran.clear()

    def talk(answerer, *lines, **options):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
        chat = Chat(answerer, Screen(), tools=TOOLS, **options)
        capsys.readouterr()
        chat.run()
        return chat, capsys.readouterr().out

    return talk


def test_a_tool_is_run_and_the_model_asked_again(talk):
    """Call, result and answer are shown in order and stand so in the conversation."""
    answerer = Scripted(["I add.", call(a=41)], ["It is 42."])
    chat, out = talk(answerer, "/tools on", "41 + 1?")
    assert ran == [41]
    turns = [
        user("41 + 1?"),
        assistant("I add.", tool_calls=[{"name": "add_one", "arguments": {"a": 41}}]),
        {"role": "tool", "content": '{"result": 42}'},
    ]
    assert [asked[0] for asked in answerer.asked] == [turns[:1], turns]
    assert all(asked[1] == DESCRIPTIONS for asked in answerer.asked)
    assert chat.messages == [*turns, assistant("It is 42.")]
    assert out.split("41 + 1?\n")[1] == (
        'I add.\n<tool_call>\n{"name": "add_one", "arguments": {"a": 41}}\n</tool_call>\n'
        '<tool_response>\n{"result": 42}\n</tool_response>\nIt is 42.\n> \n'
    )


def test_tools_are_off_until_they_are_offered(talk):
    """Off, nothing is offered and a call is not run; /tools NAME offers one of them."""
    answerer = Scripted([call(a=1)], [call(a=1)], ["no"], ["yes"])
    chat, out = talk(answerer, "go", "/tools nothing", "/tools other", "go", "/tools off", "go")
    assert ran == []
    assert chat.messages[4]["content"] == "error: unknown tool 'add_one'; expected one of other"
    offered = [asked[1] for asked in answerer.asked]
    assert offered == [None, DESCRIPTIONS[1:], DESCRIPTIONS[1:], None]
    assert "(/tools: no tool nothing, only add_one, other)" in out


def test_tool_calls_come_to_an_end(talk):
    """A model that calls on and on is asked no more after some rounds; the chat goes on."""
    answerer = Scripted(*[[call(a=1)]] * (MOST_ROUNDS + 1), ["fine"])
    chat, out = talk(answerer, "/tools on", "go", "better?")
    assert len(ran) == MOST_ROUNDS
    assert f"({MOST_ROUNDS} rounds of tool calls, and still no answer)" in out
    assert chat.messages == [user("better?"), assistant("fine")]


def test_a_saved_conversation_is_data_to_train_on(talk, tmp_path):
    """/save adds a line that dataset/conversations.py reads as the conversation there was."""
    file = tmp_path / "chats.jsonl"
    file.write_text('{"conversations": [{"role": "user", "content": "a"}, '
                    '{"role": "assistant", "content": "b"}]}')  # fmt: skip
    answerer = Scripted(
        [Delta(1, reasoning="Hm."), call(a=1)], ["<b>好</b>\nzwei"], ["half", End(False, 9, 0, 0)],
        ["more"],
    )  # fmt: skip
    chat, out = talk(
        answerer, "/system Be brief.", "/tools add_one", "eins", f"/save {file}", "/tools off",
        "weiter", f"/save {file}", "/reset", "neu", f"/save {file}",
    )  # fmt: skip
    assert out.count("(saved to ") == 3
    lines = file.read_text(encoding="utf-8").splitlines()
    assert all(line.startswith('{"conversations": [') for line in lines)
    before, first, second, third = read_conversations([file])
    assert [m["content"] for m in before.messages] == ["a", "b"]
    system = {"role": "system", "content": "Be brief."}
    turns = [
        system, user("eins"),
        assistant("", reasoning_content="Hm.",
                  tool_calls=[{"name": "add_one", "arguments": {"a": 1}}]),
        {"role": "tool", "content": '{"result": 2}'}, assistant("<b>好</b>\nzwei"),
    ]  # fmt: skip
    assert first.messages == turns and first.tools == DESCRIPTIONS[:1]
    assert second.messages == [*turns, user("weiter"), assistant("half", weight=0)]
    assert second.tools == DESCRIPTIONS[:1]
    assert third.messages == [system, user("neu"), assistant("more")] == chat.messages
    assert third.tools is None


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["/save {tmp}/x.jsonl"], "(/save: there is no answer yet)"),
        (["hi", "/save {tmp}/README.md"], "(/save: expected the name of a .jsonl file)"),
        (["hi", "/save"], "(/save: expected the name of a .jsonl file)"),
        (["hi", "/save {tmp}/none/x.jsonl"], "none/x.jsonl: No such file or directory)"),
        (["cut", "/save {tmp}/x.jsonl"], "(expected an assistant message to learn, got only ones"),
    ],
)
def test_what_cannot_be_saved(talk, tmp_path, lines, expected):
    """One line says why, no file is made, and the chat goes on."""
    cut = lines[0] == "cut"
    answerer = Scripted(["half", End(False, 1, 0, 0)] if cut else ["hello"], ["still here"])
    chat, out = talk(answerer, *(line.format(tmp=tmp_path) for line in lines), "on")
    assert expected in out and not list(tmp_path.iterdir())
    assert chat.messages[-2] == user("on")


def test_retry_asks_the_last_message_again(talk):
    """What it led to is forgotten, and the draws are others; also after an answer that failed."""
    answerer = Scripted(["one"], [call(a=1)], ["two"], ["three"], [ValueError("no")], ["four"])
    chat, _ = talk(
        answerer, "/retry", "first", "/tools on", "second", "/retry", "third", "/retry"
    )  # fmt: skip
    asked = [(messages[-1]["content"], attempt) for messages, _, _, attempt in answerer.asked]
    assert asked[:4] == [("first", 0), ("second", 0), ('{"result": 2}', 0), ("second", 1)]
    assert asked[4:] == [("third", 0), ("third", 1)]
    answers = [m["content"] for m in chat.messages if m["role"] == "assistant"]
    assert answers == ["one", "three", "four"]


def test_ctrl_c_keeps_what_was_said(talk):
    """A broken-off answer stays in the conversation, not to be trained on; if it said nothing, its
    message waits for /retry or gives way to the next one."""
    halted = KeyboardInterrupt()
    answerer = Scripted(
        ["half an ", "answer", halted], [Delta(1, reasoning="Hm."), halted], ["fine"], [halted],
        ["good"],
    )  # fmt: skip
    chat, out = talk(answerer, "a", "b", "/retry", "c", "d")
    assert out.count("(stopped)") == 3 and "half an answer\n(stopped)" in out
    assert chat.messages == [
        user("a"), assistant("half an answer", weight=0), user("b"), assistant("fine"), user("d"),
        assistant("good"),
    ]  # fmt: skip


def test_an_error_in_an_answer_ends_nothing(talk):
    """The reason in one line; nothing of that answer is kept."""
    answerer = Scripted(["begun", ValueError("503: too\nmany")], ["ok"])
    chat, out = talk(answerer, "a", "b")
    assert "begun\n(503: too many)\n> b\nok\n" in out
    assert chat.messages == [user("b"), assistant("ok")]


def test_think_is_said_only_if_it_was_chosen(talk):
    """None until /think; then True or False; a model that cannot think refuses."""
    answerer = Scripted(["x"], ["x"], ["x"])
    talk(answerer, "a", "/think on", "b", "/think off", "c")
    assert [asked[2] for asked in answerer.asked] == [None, True, False]
    answerer = Scripted(["x"])
    answerer.can_think = False
    _, out = talk(answerer, "/think on", "/think maybe", "a")
    assert "(this model was not taught to think" in out and "expected on or off, got maybe" in out
    assert [asked[2] for asked in answerer.asked] == [None]


def test_thoughts_stand_in_tags_where_there_is_no_terminal(talk):
    """As in the chat format; an answer that ends in them closes the tag."""
    thought = Delta(1, reasoning="Hm.\nHm.")
    _, out = talk(Scripted([thought, "Yes."], [thought]), "a", "b")
    assert out.endswith("> a\n<think>\nHm.\nHm.\n</think>\n\nYes.\n> b\n<think>\nHm.\nHm.\n"
                        "</think>\n> \n")  # fmt: skip


def test_only_words_behind_a_slash_are_commands(talk):
    """Paths and comments are messages; an unknown command is named."""
    answerer = Scripted(["1"], ["2"])
    _, out = talk(answerer, "/usr/bin/env python", "// a comment", "/nonsense", "/help")
    assert [asked[0][-1]["content"] for asked in answerer.asked] == [
        "/usr/bin/env python", "// a comment",
    ]  # fmt: skip
    assert "/nonsense: no such command" in out and "add_one, other" in out


def test_figures_are_told_only_if_asked_for(talk, monkeypatch, capsys):
    """Not on a pipe; with --show_speed tokens and tokens/s behind the answer."""
    _, out = talk(Scripted(["x"]), "a")
    assert "token" not in out.split("> a")[1]
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\n"))
    Chat(Scripted(["x", End(True, 21, 0.5, 2.0)]), Screen(show_speed=True)).run()
    assert "x\n(21 tokens, 10 tokens/s, the first after 0.50 s)\n" in capsys.readouterr().out


def test_a_stopwatch_tells_the_first_token_from_the_rest(monkeypatch):
    """first: until something came; rest: from there to the last lap."""
    times = iter([10.0, 12.0, 13.0, 15.0])
    monkeypatch.setattr("terminal.answers.time.perf_counter", lambda: next(times))
    watch = Stopwatch()
    for _ in range(3):
        watch.lap()
    assert watch.end(True, 4) == End(True, 4, 2.0, 3.0)
